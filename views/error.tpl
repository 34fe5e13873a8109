% rebase('base', title=f'{status} · forge')
% merge = extra.get('merge')
% if merge:
<h1>{{merge['branch']}} <span class="badge" data-status="passed">merged</span></h1>
<p class="verdict" data-tone="good">It {{text.removeprefix(f"{merge['branch']} ")}}.</p>
<dl class="facts">
<dt>Merged</dt><dd><time datetime="{{merge['merged_at']}}" title="{{merge['merged_at']}}">{{ago(merge['merged_at'])}}</time>, {{'by itself' if merge['how'] == 'auto' else 'since somebody asked for it'}}</dd>
<dt>Merge</dt><dd><code>{{merge['merge_commit']}}</code></dd>
<dt>Its head</dt><dd><code>{{merge['head']}}</code></dd>
<dt>Tested by</dt><dd><a href="/jobs/{{merge['job']}}">job {{merge['job']}}</a> · <a href="/jobs/{{merge['job']}}#log">its log</a></dd>
<dt>What it brought</dt><dd><code>git diff {{merge['parent'][:10]}} {{merge['merge_commit'][:10]}}</code></dd>
</dl>
% include('parts')['trail_lines'](extra.get('trail', []))
<p><a href="/r/{{merge['repo']}}">{{merge['repo']}}</a> · <a href="/r/{{merge['repo']}}/history">History of {{merge['repo']}}</a></p>
% else:
<h1>{{status}}</h1>
<p class="trouble" role="alert">{{text}}</p>
%   if status == 401:
<p><a href="/login?to={{here_quoted}}">Log in</a> with the merge password.</p>
%   end
<p><a href="/">All repositories</a></p>
% end
