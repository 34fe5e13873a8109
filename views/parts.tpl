% def badge(status):
<span class="badge" data-status="{{status}}">{{status}}</span>\\
% end
% def job_table(jobs, with_repo=True):
<div class="wide">
<table>
<thead><tr><th>Job</th><th>Status</th>{{!'<th>Branch</th>' if with_repo else '<th>Kind</th>'}}<th>Commit</th><th>Took</th><th>When</th></tr></thead>
<tbody>
% for job in jobs:
<tr>
<td><a href="/jobs/{{job['id']}}">{{job['id']}}</a></td>
<td>\\
% badge(job['status'])
</td>
% if with_repo:
<td><a href="/r/{{job['repo']}}">{{job['repo']}}</a> / \\
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
% def password_field():
% if not logged_in:
<label>Password <input type="password" name="password" autocomplete="current-password" required></label>
% end
% end
