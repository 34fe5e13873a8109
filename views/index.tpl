% rebase('base', title=f'{words}forge', icon=icon, busy=bool(running or pending))
% parts = include('parts')
% badge, moment, running_strip = parts['badge'], parts['moment'], parts['running_strip']
<h1>Repositories</h1>
% running_strip(running, pending)
% if room.low:
<p class="trouble">The disk is nearly full: {{room.words}}. On the server: <code>forge prune</code> makes room, and <code>FORGE_LOG_DAYS</code> keeps logs from filling it.</p>
% end
% if not repos:
<p class="empty">There is no repo yet. Make one on the server with <code>forge create NAME</code>, or copy a bare repository into <code>{{clone}}</code>. Then push a first branch to the path that <code>forge create</code> prints: it becomes base.</p>
% else:
<div class="wide">
<table class="rows">
<thead><tr><th>Repo</th><th>Base</th><th>Deployment</th><th>Merge requests</th></tr></thead>
<tbody>
% for r in repos:
<tr data-key="repo-{{r['repo']}}">
<td class="main"><a href="/r/{{r['repo']}}"><strong>{{r['repo']}}</strong></a>
% if r['trouble']:
<p class="trouble">{{r['trouble']}}</p>
% end
</td>
<td>
% if r['verdict']:
<a href="/jobs/{{r['verdict']['id']}}">
%   badge(r['verdict']['status'])
</a>
% end
% if r['head']:
{{r['base']}} <code>{{r['head'][:10]}}</code>
% else:
<span class="dim">empty: push a first branch</span>
% end
</td>
<td data-label="Deployment">
% if r['job']:
<a href="/r/{{r['repo']}}/deployments">
%   badge(r['job']['status'])
</a> <span class="dim">
%   moment(r['job']['created_at'])
</span>
% else:
<span class="dim">none</span>
% end
</td>
<td data-label="Merge requests">
% if r['open']:
<a href="/r/{{r['repo']}}">{{r['open']}} open</a>
%   for word in ('passed', 'failed', 'testing'):
%     if r[word]:
<span class="count" data-standing="{{'ready' if word == 'passed' else word}}">{{r[word]}} {{word}}</span>
%     end
%   end
% else:
<span class="dim">none</span>
% end
</td>
</tr>
% end
</tbody>
</table>
</div>
% end
% if not room.low:
<p class="dim">Disk: {{room.words}}</p>
% end
