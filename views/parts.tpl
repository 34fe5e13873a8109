% def badge(status):
<span class="badge" data-status="{{status}}">{{status}}</span>\\
% end
% def moment(at):
%   if at:
<time datetime="{{at}}" title="{{at}}">{{ago(at)}}</time>\\
%   else:
<span class="dim">no date</span>\\
%   end
% end
% def job_table(jobs):
<div class="wide">
<table class="rows">
<thead><tr><th>Job</th><th>Status</th><th>Branch</th><th>Commit</th><th>Took</th><th>When</th></tr></thead>
<tbody>
% for job in jobs:
<tr data-key="job-{{job['id']}}">
<td><a href="/jobs/{{job['id']}}">{{job['id']}}</a></td>
<td>
%   badge(job['status'])
</td>
<td class="main"><a href="/r/{{job['repo']}}">{{job['repo']}}</a> / \\
%   if job.get('rollback_to'):
{{job['branch']}} <span class="dim">rollback</span>\\
%   elif job['kind'] == PRE:
<a href="{{mr_path(job['repo'], job['branch'])}}">{{job['branch']}}</a>\\
%     if len(job['heads']) > 1:
 <span class="dim">and {{len(job['heads']) - 1}} more</span>\\
%     end
%   else:
{{job['branch']}} <span class="dim">post-merge</span>\\
%   end
</td>
<td><code>{{job['commit'][:10]}}</code></td>
<td>{{spell_duration(job['duration'])}}</td>
<td>
%   moment(job['created_at'])
</td>
</tr>
% end
</tbody>
</table>
</div>
% end
% def running_strip(running, pending):
% if running or pending:
<ul class="strip" aria-label="What runs now">
%   for job in running:
<li data-key="job-{{job['id']}}"><span class="badge" data-status="running">running</span> <a href="/jobs/{{job['id']}}">{{job['repo']}} / {{job['branch']}}</a> <span class="dim">{{job['kind']}}, for {{spell_duration(job['duration']) or 'a moment'}}</span></li>
%   end
%   if pending:
<li data-key="pending"><a href="/jobs?status=pending">{{pending}} waiting</a></li>
%   end
</ul>
% end
% end
% def password_field():
% if not logged_in:
<label>Password <input type="password" name="password" autocomplete="current-password" required></label>
% end
% end
% def trail_lines(lines):
%   for line in lines:
<ol class="trail" aria-label="From cause to effect">
%     for step in line:
<li>\\
%       if step['what'] == 'said':
{{step['repo']}} <code>{{step['commit'][:10]}}</code> job {{step['job']}} <span class="dim">(not known here)</span>\\
%       elif step['what'] == 'deployment':
<a href="/jobs/{{step['job']}}">{{step['repo']}} deployment {{step['job']}}</a> <span class="badge" data-status="{{step['status']}}">{{step['status']}}</span>\\
%       elif step['what'] == 'request':
<a href="{{mr_path(step['repo'], step['branch'])}}">{{step['repo']}} / {{visible(step['branch'])}}</a> <span class="badge" data-status="{{step['status']}}">{{step['status']}}</span>\\
%       elif step['what'] == 'merge':
<a href="/jobs/{{step['job']}}">{{step['repo']}} / {{visible(step['branch'])}}</a> merged as <code>{{step['commit'][:10]}}</code>\\
%       else:
<a href="/r/{{step['repo']}}">{{step['repo']}}</a> <code>{{step['commit'][:10]}}</code> pushed\\
%       end
</li>
%     end
</ol>
%   end
% end
