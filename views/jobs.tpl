% rebase('base', title=f'{words}Jobs · forge', icon=icon, busy=bool(running or pending))
% parts = include('parts')
% job_table, password_field = parts['job_table'], parts['password_field']
<h1>Jobs</h1>
% if running:
<h2>Running</h2>
<div class="wide">
<table class="rows">
<thead><tr><th>Job</th><th>Branch</th><th>CPU</th><th>Memory</th><th>Processes</th><th>For</th><th><span class="hidden">Actions</span></th></tr></thead>
<tbody>
% for job in running:
<tr data-key="job-{{job['id']}}">
<td><a href="/jobs/{{job['id']}}">{{job['id']}}</a></td>
<td class="main"><a href="/r/{{job['repo']}}">{{job['repo']}}</a> / {{job['branch']}}
% if job['kind'] == POST:
<span class="dim">post-merge</span>
% end
</td>
<td data-label="CPU">{{job['cpu_percent'] if job['cpu_percent'] is not None else '–'}} %</td>
<td data-label="Memory">{{spell_bytes(job['rss_bytes']) or '–'}}</td>
<td data-label="Processes">{{job['processes'] if job['processes'] is not None else '–'}}</td>
<td data-label="For">{{spell_duration(job['duration'])}}</td>
<td><form method="post" action="/jobs/{{job['id']}}/cancel">
% password_field()
<button class="danger">Cancel</button></form></td>
</tr>
% end
</tbody>
</table>
</div>
% end
% if pending:
<p class="dim"><a href="/jobs?status=pending">{{pending}} waiting</a></p>
% end
<h2>{{'Older' if newest is not None else 'Newest'}}</h2>
<form class="filter" action="/jobs" role="search" aria-label="Jobs">
<label>Repo <input name="repo" value="{{!exact(wanted.get('repo', ''))}}" list="repos" autocomplete="off"></label>
<datalist id="repos">
% for repo in repos:
<option value="{{repo}}"></option>
% end
</datalist>
<label>Branch <input name="branch" value="{{!exact(wanted.get('branch', ''))}}" autocomplete="off"></label>
% for name, choices in (('status', statuses), ('kind', (PRE, POST))):
<label>{{name.capitalize()}} <select name="{{name}}"><option value="">any</option>
%   for choice in choices:
<option{{!' selected' if wanted.get(name) == choice else ''}}>{{choice}}</option>
%   end
</select></label>
% end
<button>Filter</button>
% if wanted:
<a href="/jobs">all jobs</a>
% end
</form>
% if jobs:
%   job_table(jobs)
% else:
<p class="empty">{{'No job fits.' if wanted or newest is not None else 'No job yet. Push a branch, and it is tested.'}}</p>
% end
<p class="further">
% if newest is not None:
<a href="/jobs?{{newest}}">Newest</a>
% end
% if older:
<a href="/jobs?{{older}}">Older</a>
% end
</p>
