% rebase('base', title=f'History of {repo} · forge')
% parts = include('parts')
% badge, job_table, password_field = parts['badge'], parts['job_table'], parts['password_field']
<p class="crumbs"><a href="/r/{{repo}}">{{repo}}</a></p>
<h1>History</h1>
% if not merges:
<p class="empty">Nothing has been merged yet.</p>
% else:
<div class="wide">
<table>
<thead><tr><th>Branch</th><th>Merge</th><th>Head</th><th>How</th><th>Job</th><th>When</th></tr></thead>
<tbody>
% for m in merges:
<tr>
<td><strong>{{m['branch']}}</strong></td>
<td><code>{{m['merge_commit'][:10]}}</code></td>
<td><code>{{m['head'][:10]}}</code></td>
<td>{{m['how']}}</td>
<td><a href="/jobs/{{m['job']}}">{{m['job']}}</a></td>
<td><time datetime="{{m['merged_at']}}" title="{{m['merged_at']}}">{{ago(m['merged_at'])}}</time></td>
</tr>
% end
</tbody>
</table>
</div>
% end
