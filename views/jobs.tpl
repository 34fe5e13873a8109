% rebase('base', title='Jobs · forge', busy=bool(running))
% parts = include('parts')
% badge, job_table, password_field = parts['badge'], parts['job_table'], parts['password_field']
<h1>Jobs</h1>
% if running:
<h2>Running</h2>
<div class="wide">
<table>
<thead><tr><th>Job</th><th>Branch</th><th>CPU</th><th>Memory</th><th>Processes</th><th>For</th><th><span class="hidden">Actions</span></th></tr></thead>
<tbody>
% for job in running:
<tr>
<td><a href="/jobs/{{job['id']}}">{{job['id']}}</a></td>
<td><a href="/r/{{job['repo']}}">{{job['repo']}}</a> / {{job['branch']}}
% if job['kind'] == POST:
<span class="dim">post-merge</span>
% end
</td>
<td>{{job['cpu_percent'] if job['cpu_percent'] is not None else '–'}} %</td>
<td>{{spell_bytes(job['rss_bytes']) or '–'}}</td>
<td>{{job['processes'] if job['processes'] is not None else '–'}}</td>
<td>{{spell_duration(job['duration'])}}</td>
<td><form method="post" action="/jobs/{{job['id']}}/cancel">
% password_field()
<button class="danger">Cancel</button></form></td>
</tr>
% end
</tbody>
</table>
</div>
% end
<h2>Newest
% if wanted:
<span class="dim">{{', '.join(f'{k} {v}' for k, v in wanted.items())}}</span>
% end
</h2>
% if jobs:
%   job_table(jobs)
%   if older:
<p><a href="/jobs?{{older}}">Older</a></p>
%   end
% else:
<p class="empty">{{'No job fits.' if wanted else 'No job yet. Push a branch, and it is tested.'}}</p>
% end
