% rebase('base', title=f'{status} · forge')
% merge = extra.get('merge')
% if merge:
<h1>{{merge['branch']}} <span class="badge" data-status="passed">merged</span></h1>
<p class="verdict" data-tone="good">{{text}}.</p>
<p><a href="/jobs/{{merge['job']}}">Job {{merge['job']}}</a> · <a href="/r/{{merge['repo']}}/history">History of {{merge['repo']}}</a></p>
% else:
<h1>{{status}}</h1>
<p class="trouble" role="alert">{{text}}</p>
%   if status == 401:
<p><a href="/login">Log in</a> with the merge password.</p>
%   end
<p><a href="/">All repositories</a></p>
% end
