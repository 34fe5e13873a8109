% rebase('base', title=f'{visible(change.path)} · {title} · {repo}', scripts=())
% diff = include('diff')
<p class="crumbs"><a href="/r/{{repo}}">{{repo}}</a> / <a href="{{diff['address'](here, split and 'view=split')}}#{{change.mark}}">{{title}}</a></p>
<h1 class="path">{{visible(change.path)}}</h1>
% diff['views'](here, f'file={quote(change.path)}', split)
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
