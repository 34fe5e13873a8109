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
<div class="scroll"><table class="lines {{'split' if split else 'unified'}}">
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
