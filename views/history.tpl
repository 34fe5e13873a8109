% rebase('base', title=f'History of {repo} · forge')
% parts = include('parts')
% moment = parts['moment']
<p class="crumbs"><a href="/">Repositories</a> / <a href="/r/{{repo}}">{{repo}}</a> /</p>
<h1>History</h1>
<nav class="tabs" aria-label="{{repo}}"><a href="/r/{{repo}}">Merge requests</a> <a href="/r/{{repo}}/history" aria-current="page">History</a> <a href="/r/{{repo}}/deployments">Deployments</a> <a href="/jobs?repo={{repo}}">Jobs</a></nav>
% if not merges:
<p class="empty">{{'Nothing has been merged yet.' if first else 'Nothing older has been merged.'}}</p>
% else:
<div class="wide">
<table class="rows">
<thead><tr><th>Branch</th><th>Merge</th><th>Head</th><th>How</th><th>Job</th><th>When</th></tr></thead>
<tbody>
% for m in merges:
<tr data-key="{{m['merge_commit']}}">
<td class="main"><a href="/jobs?{{query(repo=repo, branch=m['branch'])}}"><strong>{{m['branch']}}</strong></a>
% if m['how'] == 'rollback':
<div>rolled back{{', untested, as was asked' if m.get('untested') else ''}}</div>
% end
% parts['trail_lines'](m.get('trail', []))
</td>
<td><code>{{m['merge_commit'][:10]}}</code></td>
<td data-label="{{'To' if m['how'] == 'rollback' else 'Head'}}"><code>{{m['head'][:10]}}</code></td>
<td>{{m['how']}}</td>
<td data-label="Job">\\
% if m['job']:
<a href="/jobs/{{m['job']}}">{{m['job']}}</a>\\
% else:
none\\
% end
</td>
<td>
% moment(m['merged_at'])
</td>
</tr>
% end
</tbody>
</table>
</div>
% end
<p class="further">
% if not first:
<a href="/r/{{repo}}/history?limit={{limit}}">Newest</a>
% end
% if before:
<a href="/r/{{repo}}/history?limit={{limit}}&amp;before={{before}}">Older</a>
% end
</p>
