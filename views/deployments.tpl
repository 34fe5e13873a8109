% live = [d for d in deployments if d['status'] in ('pending', 'running')]
% rebase('base', title=f'{words}Deployments of {repo} · forge', icon=icon, busy=bool(live))
% parts = include('parts')
% badge, moment = parts['badge'], parts['moment']
<p class="crumbs"><a href="/">Repositories</a> / <a href="/r/{{repo}}">{{repo}}</a> /</p>
<h1>Deployments</h1>
<nav class="tabs" aria-label="{{repo}}"><a href="/r/{{repo}}">Merge requests</a> <a href="/r/{{repo}}/history">History</a> <a href="/r/{{repo}}/deployments" aria-current="page">Deployments</a> <a href="/jobs?repo={{repo}}">Jobs</a></nav>
% if current:
<p class="under">Deployed last: <code>{{current[:10]}}</code></p>
% end
% if not deployments:
<p class="empty">{{'Nothing has been deployed yet: every change of base starts post-merge.' if first else 'Nothing older has been deployed.'}}</p>
% else:
<div class="wide">
<table class="rows">
<thead><tr><th>Job</th><th>Status</th><th>Commit</th><th>It brought</th><th>Took</th><th>When</th></tr></thead>
<tbody>
% for d in deployments:
<tr data-key="job-{{d['id']}}">
<td><a href="/jobs/{{d['id']}}">{{d['id']}}</a></td>
<td>
% badge(d['status'])
</td>
<td><code>{{d['commit'][:10]}}</code>
% if d['commit'] == current:
<span class="tag">deployed</span>
% end
</td>
<td class="main">
% if d['merges']:
<ul class="plain">
%   for m in d['merges']:
<li>{{m['branch']}} <a class="dim" href="/jobs/{{m['job']}}">job {{m['job']}}</a></li>
%   end
</ul>
% else:
<span class="dim">no merge: {{d['branch']}} was pushed, or it ran again</span>
% end
% parts['trail_lines'](d.get('trail', []))
</td>
<td>{{spell_duration(d['duration'])}}</td>
<td>
% moment(d['created_at'])
</td>
</tr>
% end
</tbody>
</table>
</div>
% end
<p class="further">
% if not first:
<a href="/r/{{repo}}/deployments?limit={{limit}}">Newest</a>
% end
% if older:
<a href="/r/{{repo}}/deployments?limit={{limit}}&amp;before={{older}}">Older</a>
% end
</p>
