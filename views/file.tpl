% rebase('base', title=f'{visible(change.path)} · {branch} · {repo}', scripts=())
% diff = include('diff')
<p class="crumbs"><a href="/r/{{repo}}">{{repo}}</a> / <a href="{{diff['address'](mr_path(repo, branch), split and 'view=split')}}#{{change.mark}}">{{branch}}</a></p>
<h1 class="path">{{visible(change.path)}}</h1>
% diff['views'](mr_path(repo, branch), f'file={quote(change.path)}', split)
<details class="file" id="{{change.mark}}" open>
<summary>\\
% diff['name'](change)
</summary>
<div class="body">
% if change.quiet:
%   diff['nothing'](change)
% elif lines:
%   diff['table'](change.mark, lines, split)
% end
% if cut:
<p class="dim">{{'The rest is' if lines else 'Its lines are'}} not shown here; in a clone: <code>git diff {{start[:10]}} {{head[:10]}} -- {{visible(change.path)}}</code></p>
% end
</div>
</details>
