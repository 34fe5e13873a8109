% rebase('base', title=f'{words}{repo} · forge', icon=icon, busy=bool(running or pending), feed=f'/r/{repo}/feed.atom')
% parts = include('parts')
% badge, moment, job_table, running_strip = parts['badge'], parts['moment'], parts['job_table'], parts['running_strip']
% verdict, deployment = summary['verdict'], summary['job']
<p class="crumbs"><a href="/">Repositories</a> /</p>
<h1>{{repo}}</h1>
<p class="under">
% if head:
base <strong>{{base}}</strong> at <code>{{head[:10]}}</code>
%   if verdict:
%     badge(verdict['status'])
 by <a href="/jobs/{{verdict['id']}}">{{verdict['kind']}} job {{verdict['id']}}</a>,
%     moment(verdict['created_at'])
%   end
 ·
% end
% if deployment and deployment['id'] != verdict['id']:
last deployment \\
%   badge(deployment['status'])
 <a href="/jobs/{{deployment['id']}}">job {{deployment['id']}}</a>,
%   moment(deployment['created_at'])
 ·
% end
<code>git clone {{clone}}</code> · push to <code>{{path}}</code>
</p>
<nav class="tabs" aria-label="{{repo}}"><a href="/r/{{repo}}" aria-current="page">Merge requests</a> <a href="/r/{{repo}}/history">History</a> <a href="/r/{{repo}}/deployments">Deployments</a> <a href="/jobs?repo={{repo}}">Jobs</a></nav>
% running_strip(running, pending)
% if trouble:
<p class="trouble">{{trouble}}</p>
% end
% if holds:
<p class="verdict" data-key="holds" data-tone="still">{{len(holds)}} commit{{'s are' if len(holds) > 1 else ' is'}} on hold and will not come back by a merge: <a href="/r/{{repo}}/deployments#holds">see and lift</a></p>
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
% total = sum(tally.values())
% if shown or total > 8:
<nav class="tabs" aria-label="Which merge requests"><a href="/r/{{repo}}"{{!'' if shown else ' aria-current="page"'}}>all {{total}}</a>
%   for word, spoken in standings.items():
%     if tally[word] or shown == word:
<a href="/r/{{repo}}?show={{word}}"{{!' aria-current="page"' if shown == word else ''}}>{{spoken}} {{tally[word]}}</a>
%     end
%   end
</nav>
% end
% if not total:
<p class="empty">No branch is open. Push one beside {{base}}; with <code>Auto-Merge: yes</code> as the last line of its head commit it merges by itself once it has passed.</p>
% elif not merge_requests:
<p class="empty">No merge request is {{standings[shown]}} now.</p>
% else:
<div class="wide">
<table class="rows">
<thead><tr><th>State</th><th>Branch</th><th>Commits</th><th>Why</th></tr></thead>
<tbody>
% for mr in merge_requests:
%   job = mr['job']
<tr data-key="mr-{{mr['branch']}}">
<td><span class="standing" data-standing="{{mr['standing']}}">{{standings[mr['standing']]}}</span>
%   if job:
<a class="dim" href="/jobs/{{job['id']}}">job {{job['id']}} {{job['status']}}</a>
%   end
</td>
<td class="main"><a href="{{mr_path(repo, mr['branch'])}}"><strong>{{mr['branch']}}</strong></a>{{!' <span class="tag">auto-merge</span>' if mr['auto_merge'] else ''}}
<div class="dim">{{visible(mr['subject'], 300)}} <span class="by">{{visible(mr['author'], 100)}}, {{ago(mr['authored_at']) or 'no date'}}</span></div></td>
<td class="counts">{{mr['ahead'] if mr['ahead'] is not None else '?'}} ahead <br>{{mr['behind'] if mr['behind'] is not None else '?'}} behind</td>
<td class="why">{{visible(mr['why'], 1000)}}</td>
</tr>
% end
</tbody>
</table>
</div>
%   if left_out:
<p class="dim">and {{left_out}} more, which do not fit on one page; <code>forge status {{repo}} BRANCH</code> tells of each, the JSON of this page of all.</p>
%   end
% end
% if rows:
<h2>Where the time went</h2>
<ul class="legend">
%   for what in ('waiting', 'testing', 'merging', 'deploying'):
<li><svg width="28" height="14" aria-hidden="true"><rect class="{{what}}" x="1" y="{{shapes[what][0] - 21.5}}" width="26" height="{{shapes[what][1]}}"/></svg> {{what}}</li>
%   end
</ul>
<figure class="card">{{!timeline}}</figure>
<details id="times"><summary>The last {{len(rows)}} push{{'es' if len(rows) > 1 else ''}} as a table</summary>
<div class="wide">
<table>
<thead><tr><th>Push</th><th>Job</th><th>Came to</th><th>Waiting</th><th>Testing</th><th>Merging</th><th>Deploying</th><th>In all</th></tr></thead>
<tbody>
%   for row in rows:
<tr><td>{{row.branch}}</td><td><a href="/jobs/{{row.job}}">{{row.job}}</a></td><td>{{row.outcome}}</td>
%     for what in shapes:
<td>{{spell_duration(row.spent(what)) if row.spent(what) else '–'}}</td>
%     end
<td>{{spell_duration(row.total)}}</td></tr>
%   end
</tbody>
</table>
</div>
</details>
% end
% if trends:
<h2>How long jobs take</h2>
<div class="pair">
%   for kind, drawn in trends:
<figure class="card"><figcaption>{{kind}}, oldest first; hollow with a cross: failed. <a href="/jobs?repo={{repo}}&amp;kind={{kind}}">All of them</a></figcaption>{{!drawn}}</figure>
%   end
</div>
% end
<h2>Newest jobs</h2>
% if jobs:
%   job_table(jobs)
% else:
<p class="empty">No job has run yet.</p>
% end
