% def badge(status):
<span class="badge" data-status="{{status}}">{{status}}</span>\\
% end
% def moment(at):
<time datetime="{{at}}" title="{{at}}">{{ago(at)}}</time>\\
% end
% def job_table(jobs, with_repo=True):
<div class="wide">
<table class="rows">
<thead><tr><th>Job</th><th>Status</th>{{!'<th>Branch</th>' if with_repo else '<th>Kind</th>'}}<th>Commit</th><th>Took</th><th>When</th></tr></thead>
<tbody>
% for job in jobs:
<tr data-key="job-{{job['id']}}">
<td><a href="/jobs/{{job['id']}}">{{job['id']}}</a></td>
<td><span class="badge" data-status="{{job['status']}}">{{job['status']}}</span></td>
% if with_repo:
<td class="main"><a href="/r/{{job['repo']}}">{{job['repo']}}</a> / \\
%   if job['kind'] == PRE:
<a href="{{mr_path(job['repo'], job['branch'])}}">{{job['branch']}}</a>\\
%     if len(job['heads']) > 1:
 <span class="dim">and {{len(job['heads']) - 1}} more</span>\\
%     end
%   else:
{{job['branch']}} <span class="dim">post-merge</span>\\
%   end
</td>
% else:
<td>{{job['kind']}}</td>
% end
<td><code>{{job['commit'][:10]}}</code></td>
<td>{{spell_duration(job['duration'])}}</td>
<td><time datetime="{{job['created_at']}}" title="{{job['created_at']}}">{{ago(job['created_at'])}}</time></td>
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
