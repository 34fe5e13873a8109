% rebase('base', title='forge')
% parts = include('parts')
% badge, job_table, password_field = parts['badge'], parts['job_table'], parts['password_field']
<h1>Repositories</h1>
% if not repos:
<p class="empty">There is no repo yet. Make one on the server with <code>forge create NAME</code>, or copy a bare repository into <code>{{clone}}</code>.</p>
% else:
<div class="wide">
<table>
<thead><tr><th>Repo</th><th>Base</th><th>Last deployment</th><th>Open branches</th></tr></thead>
<tbody>
% for r in repos:
<tr>
<td><a href="/r/{{r['repo']}}"><strong>{{r['repo']}}</strong></a>
% if r['trouble']:
<p class="trouble">{{r['trouble']}}</p>
% end
</td>
<td>
% if r['head']:
{{r['base']}} <code>{{r['head'][:10]}}</code>
% else:
<span class="dim">empty</span>
% end
</td>
<td>
% if r['job']:
<a href="/jobs/{{r['job']['id']}}">
% badge(r['job']['status'])
</a> <span class="dim">{{ago(r['job']['created_at'])}}</span>
% else:
<span class="dim">none</span>
% end
</td>
<td>{{r['open']}}</td>
</tr>
% end
</tbody>
</table>
</div>
% end
