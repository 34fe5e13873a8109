% live = job and not settled
% rebase('base', title=f'{branch} · {repo} · forge', busy=bool(live))
% parts = include('parts')
% badge, job_table, password_field = parts['badge'], parts['job_table'], parts['password_field']
<p class="crumbs"><a href="/r/{{repo}}">{{repo}}</a> / merge request</p>
<h1>{{branch}}</h1>
<p class="lead">{{subject}}</p>
<p class="under">
% if job:
<a href="/jobs/{{job['id']}}">\\
% badge(job['status'])
 job {{job['id']}}</a> · <a href="/jobs/{{job['id']}}#log">its log</a> ·
% end
{{ahead if ahead is not None else '?'}} ahead, {{behind if behind is not None else '?'}} behind {{base}} · <code>{{head[:10]}}</code> by {{author}}
% if auto_merge:
· <span class="tag">auto-merge</span>
% end
</p>
<p class="verdict" data-tone="{{'good' if mergeable else 'busy' if live else 'bad' if job else 'still'}}">{{why}}</p>
% flaky = next((check for check in jobs if check.get('flake')), None)
% if flaky:
<p class="verdict" data-tone="bad">It has a flake: jobs <a href="/jobs/{{flaky['reused_from'] or flaky['id']}}">{{flaky['reused_from'] or flaky['id']}}</a> and <a href="/jobs/{{flaky['flake']}}">{{flaky['flake']}}</a> ran the same command on the same tree and came to different verdicts.</p>
% end
<div class="actions">
% if mergeable or live:
<form method="post" action="{{mr_path(repo, branch)}}/merge"><input type="hidden" name="head" value="{{head}}">
% password_field()
<button class="go">Merge</button></form>
% end
% if job and not live and job['status'] != 'passed':
<form method="post" action="/jobs/{{job['id']}}/retry">
% password_field()
<button>Retry</button></form>
% end
<form method="post" action="{{mr_path(repo, branch)}}/delete"><input type="hidden" name="head" value="{{head}}">
% password_field()
<button class="danger">Delete branch</button></form>
</div>
% if about.body.partition('\n')[2].strip():
<pre class="message">{{about.body}}</pre>
% end
% if jobs:
<h2>Checks</h2>
%   job_table(jobs, with_repo=False)
% end
<h2>Changes</h2>
% if diff == ['']:
<p class="empty">It changes no file.</p>
% else:
<div class="wide"><pre class="diff">\\
%   head_of_file = True
%   for line in diff:
%     head_of_file = line.startswith('diff ') or (head_of_file and not line.startswith('@'))
%     kind = 'file' if head_of_file else {'+': 'add', '-': 'del', '@': 'hunk'}.get(line[:1], '')
<span class="{{kind}}">{{line}}
</span>\\
%   end
</pre></div>
%   if cut:
<p class="dim">The rest of this large diff is not shown: <code>git diff {{(merge_base or '')[:10]}} {{head[:10]}}</code></p>
%   end
% end
