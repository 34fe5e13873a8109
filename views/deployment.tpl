% rebase('base', title=f"What job {id} deployed · {repo}", scripts=())
% parts, diff = include('parts'), include('diff')
% badge, moment = parts['badge'], parts['moment']
<p class="crumbs"><a href="/r/{{repo}}">{{repo}}</a> / <a href="/r/{{repo}}/deployments">deployments</a> /</p>
<h1>What <a href="/jobs/{{id}}">job {{id}}</a> deployed \\
% badge(status)
</h1>
<p class="under"><code>{{commit[:10]}}</code>\\
% if base:
, after <code>{{base[:10]}}</code>\\
% end
, \\
% moment(created_at)
</p>
% if commits:
<h2>Commits</h2>
<div class="wide">
<table class="rows">
<thead><tr><th>Commit</th><th>Subject</th><th>Author</th><th>When</th></tr></thead>
<tbody>
%   for one in commits:
<tr>
<td><code title="{{one['id']}}">{{one['id'][:10]}}</code></td>
<td class="foreign main">{{visible(one['subject'], 300)}}</td>
<td class="foreign">{{visible(one['author'], 100)}}</td>
<td>
%     moment(one['authored_at'])
</td>
</tr>
%   end
</tbody>
</table>
</div>
%   if commit_count > len(commits):
<p class="dim">These are the newest {{len(commits)}} of {{commit_count}} commits.</p>
%   end
% end
<h2 id="changes">Changes</h2>
% if trouble:
<p class="trouble">{{trouble}}</p>
% elif not base:
<p class="empty">It was the first deployment: nothing was there before.</p>
% elif not files:
<p class="empty">No file differs.</p>
% end
% diff['listing'](here, base or '', commit, files, whole, listed, lines, first, split)
