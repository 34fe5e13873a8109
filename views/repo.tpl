% rebase('base', title=f'{repo} · forge', feed=f'/r/{repo}/feed.atom')
% parts = include('parts')
% badge, job_table, password_field = parts['badge'], parts['job_table'], parts['password_field']
<h1>{{repo}}</h1>
<p class="under">
% if head:
base <strong>{{base}}</strong> at <code>{{head[:10]}}</code> ·
% end
<a href="/r/{{repo}}/history">History</a> · <a href="/jobs?repo={{repo}}">Jobs</a> · <code>git clone {{path}}</code>
</p>
% if trouble:
<p class="trouble">{{trouble}}</p>
% end
% if not head:
%   if heads:
<p class="trouble">HEAD names {{base or 'no branch'}}, which does not exist, so there is no base to merge into. On the server: <code>git -C {{path}} symbolic-ref HEAD refs/heads/NAME</code></p>
%   else:
<p class="empty">This repo is empty. The first branch you push becomes its base:</p>
<pre class="shell">git remote add origin {{path}}
git push origin HEAD:{{base or 'master'}}</pre>
%   end
% end
<h2>Merge requests</h2>
% if not merge_requests:
<p class="empty">No branch is open. Push one beside {{base}}; with <code>Auto-Merge: yes</code> as the last line of its head commit it merges by itself once it has passed.</p>
% else:
<div class="wide">
<table>
<thead><tr><th>Branch</th><th>State</th><th>Ahead</th><th>Behind</th></tr></thead>
<tbody>
% for mr in merge_requests:
<tr>
<td><a href="{{mr_path(repo, mr['branch'])}}"><strong>{{mr['branch']}}</strong></a>
% if mr['auto_merge']:
<span class="tag">auto-merge</span>
% end
<div class="dim">{{mr['subject']}}</div></td>
<td>
% if mr['job']:
<a href="/jobs/{{mr['job']['id']}}">
%   badge(mr['job']['status'])
</a>
% end
<div class="why">{{mr['why']}}</div></td>
<td>{{mr['ahead']}}</td>
<td>{{mr['behind']}}</td>
</tr>
% end
</tbody>
</table>
</div>
% end
<h2>Newest jobs</h2>
% if jobs:
%   job_table(jobs)
% else:
<p class="empty">No job has run yet.</p>
% end
