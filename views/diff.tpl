% KINDS = {'+': 'add', '-': 'del', '@': 'hunk', '\\': 'hunk', ' ': 'same'}
% def number(mark, side, n):
%   if n:
<td id="{{mark}}{{side}}{{n}}"><a href="#{{mark}}{{side}}{{n}}">{{n}}</a></td>\\
%   else:
<td></td>\\
%   end
% end
% def unified(mark, lines):
%   for line in lines:
<tr class="{{KINDS[line.sign]}}">\\
%     number(mark, 'L', line.old)
%     number(mark, 'R', line.new)
<td>{{line.sign if line.sign in '+- ' else ''}}{{line.text}}</td></tr>
%   end
% end
% def halves(mark, lines):
%   for left, right in side_by_side(lines):
%     if left and left.sign == '@':
<tr class="hunk"><td></td><td>{{left.text}}</td><td></td><td></td></tr>
%     else:
<tr>\\
%       number(mark, 'L', left and left.old)
%       half(left)
%       number(mark, 'R', right and right.new)
%       half(right)
</tr>
%     end
%   end
% end
% def half(line):
%   if line:
<td class="{{KINDS[line.sign]}}">{{line.sign if line.sign in '+- ' else ''}}{{line.text}}</td>\\
%   else:
<td class="none"></td>\\
%   end
% end
% def table(mark, lines, split):
%   last = max((number for line in lines for number in (line.old, line.new) if number), default=0)
<div class="scroll"><table class="lines {{'split' if split else 'unified'}}" data-digits="{{len(str(last))}}">
%   (halves if split else unified)(mark, lines)
</table></div>
% end
% def counts(added, deleted):
%   if added is not None:
<span class="count"><span class="plus">+{{added}}</span> <span class="minus">−{{deleted}}</span></span>\\
%   end
% end
% def name(change, most=None):
<code>{{visible(change.path, most)}}</code> <span class="dim">{{visible(change.words, most)}}</span> \\
%   counts(None if change.quiet else change.added, change.deleted)
% end
% def nothing(change):
%   if change.binary:
<p class="dim">Git shows no lines of it: it is binary, or larger than 16 MB.</p>
%   else:
<p class="dim">No line differs.</p>
%   end
% end
% def address(path, *asked):
%   asked = '&'.join(filter(None, asked))
%   return f'{path}?{asked}' if asked else path
% end
% def views(path, asked, split):
<p class="views">Show it <a href="{{address(path, asked)}}"\\
%   if not split:
 aria-current="true"\\
%   end
>unified</a> <a href="{{address(path, asked, 'view=split')}}"\\
%   if split:
 aria-current="true"\\
%   end
>side by side</a></p>
% end
% def listing(here, start, head, files, whole, listed, lines, first, split):
% if files:
%   views(here, first and f'from={first}', split)
%   if 1 < len(listed) <= 50:
<details class="list" data-key="list"><summary>{{len(listed)}} files{{' on this page' if len(listed) < len(files) else ''}}</summary>
<ul class="paths">
%     for file in listed:
<li><a href="#{{file.mark}}">\\
%       name(file, 300)
</a></li>
%     end
</ul>
</details>
%   end
%   for file in listed:
%     shown = lines.get(file.path)
<details class="file" id="{{file.mark}}"\\
%     if shown or file.quiet:
 open\\
%     end
>
<summary>\\
%     name(file)
</summary>
<div class="body" data-key="{{file.version}}" data-keep>
%     if shown:
%       table(file.mark, shown, split)
%     elif file.quiet:
%       nothing(file)
%     else:
<p><a class="fetch" href="{{address(here, f'file={quote(file.path)}', split and 'view=split')}}">Show its lines</a></p>
%     end
</div>
</details>
%   end
%   last = first + len(listed)
%   if first or last < len(files):
<p class="views">Files {{first + 1}} to {{last}}\\
%     if first:
 · <a href="{{address(here, split and 'view=split')}}#changes">the first files</a>\\
%     end
%     if last < len(files):
 · <a href="{{address(here, f'from={last}', split and 'view=split')}}#changes">the next files</a>\\
%     end
</p>
%   end
%   if not whole:
<p class="dim">There are more files than can be listed here; in a clone: <code>git diff --stat {{start[:10]}} {{head[:10]}}</code></p>
%   end
% end
% end
