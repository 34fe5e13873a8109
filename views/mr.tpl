% live = bool(job) and not settled
% state = 'running' if live else 'passed' if mergeable else 'failed' if job and job['status'] in ('failed', 'timeout') else 'forge'
% rebase('base', title=f"{'' if state == 'forge' else 'ready · ' if mergeable else f'{state} · '}{branch} · {repo}", busy=live, scripts=('live.js', 'mr.js'), icon=state)
% parts, diff = include('parts'), include('diff')
% badge, moment, password_field = parts['badge'], parts['moment'], parts['password_field']
% address, here = diff['address'], mr_path(repo, branch)
<p class="crumbs"><a href="/r/{{repo}}">{{repo}}</a> / merge request</p>
<h1>{{branch}}</h1>
<p class="lead">{{visible(subject, 500)}}</p>
<p class="under">
% if job:
% badge(job['status'])
 <a href="/jobs/{{job['id']}}">job {{job['id']}}</a> · <a href="/jobs/{{job['id']}}#log">its log</a> ·
% end
{{ahead if ahead is not None else '?'}} ahead, {{behind if behind is not None else '?'}} behind {{base}} · <code>{{head[:10]}}</code> by {{visible(author, 200)}}\\
% if about:
, \\
%   moment(about.authored_at)
% end

% if auto_merge:
· <span class="tag">auto-merge</span>
% end
</p>
<p class="verdict" data-key="why" data-tone="{{'good' if mergeable else 'busy' if live else 'bad' if job else 'still'}}">{{visible(why, 10_000)}}</p>
% parts['trail_lines'](get('trail', []))
% flaky = next((check for check in checks if check.get('flake')), None)
% if flaky:
<p class="verdict" data-key="flake" data-tone="bad">It has a flake: jobs <a href="/jobs/{{flaky['reused_from'] or flaky['id']}}">{{flaky['reused_from'] or flaky['id']}}</a> and <a href="/jobs/{{flaky['flake']}}">{{flaky['flake']}}</a> ran the same command on the same tree and came to different verdicts.</p>
% end
<div class="actions" data-key="actions">
% if offers_merge:
<form data-key="merge" method="post" action="{{here}}/merge"><input type="hidden" name="head" value="{{head}}">
% password_field()
<button class="go">Merge</button></form>
% end
% if job and job['status'] in ('pending', 'running'):
<form data-key="cancel" method="post" action="/jobs/{{job['id']}}/cancel">
% password_field()
<button class="danger">Cancel</button></form>
% elif job and not live and job['status'] != 'passed' and not no_retry:
<form data-key="retry" method="post" action="/jobs/{{job['id']}}/retry">
% password_field()
<button>Retry</button></form>
% end
% if held:
<form data-key="lift" method="post" action="/r/{{repo}}/hold"><input type="hidden" name="lift" value="1"><input type="hidden" name="commit" value="{{held}}">
% password_field()
<button>Lift the hold</button></form>
% end
<form data-key="delete" method="post" action="{{here}}/delete"><input type="hidden" name="head" value="{{head}}">
% password_field()
<button class="danger">Delete branch</button></form>
</div>
% if job and not live and job['status'] != 'passed' and no_retry:
<p class="dim" data-key="no-retry">No retry: {{visible(no_retry, 1000)}}</p>
% end
% if conflicts:
<h2>Conflicts</h2>
<ul class="paths">
%   for path in conflicts[:100]:
<li><code>{{visible(path, 300)}}</code></li>
%   end
%   if len(conflicts) > 100:
<li class="dim">and {{len(conflicts) - 100}} more</li>
%   end
</ul>
% end
% if about and about.body.partition('\n')[2].strip():
<pre class="message" data-key="message">{{'\n'.join(visible(line) for line in about.body.split('\n'))}}{{'…' if len(about.body) > 9_000 else ''}}</pre>
% end
% if live and (queue or len(job['heads']) > 1):
<h2 data-key="queue-head">Queue</h2>
<div data-key="queue">
%   if queue:
<p>Before it:</p>
<ol class="paths">
%     for other in queue[:20]:
<li><a href="/jobs/{{other['id']}}">job {{other['id']}}</a> {{'runs' if other['status'] == 'running' else 'waits'}}: <a href="{{mr_path(other['repo'], other['branch'])}}">{{other['repo']}} / {{other['branch']}}</a>{{f" and {len(other['heads']) - 1} more" if len(other['heads']) > 1 else ''}}</li>
%     end
%     if len(queue) > 20:
<li class="dim">and {{len(queue) - 20}} more</li>
%     end
</ol>
%   end
%   if len(job['heads']) > 1:
<p>Tested together, to be merged in this order:</p>
<ol class="paths">
%     for other in job['heads'][:50]:
<li><a href="{{mr_path(repo, other['branch'])}}">{{other['branch']}}</a> <code>{{other['commit'][:10]}}</code></li>
%     end
%     if len(job['heads']) > 50:
<li class="dim">and {{len(job['heads']) - 50}} more</li>
%     end
</ol>
%   end
</div>
% end
% if checks:
<h2 data-key="checks-head">Checks</h2>
<div class="wide" data-key="checks">
<table class="rows">
<thead><tr><th>Job</th><th>Status</th><th>Commit</th><th>Waited</th><th>Ran</th><th>When</th></tr></thead>
<tbody>
%   for check in checks:
<tr data-key="job-{{check['id']}}">
<td><a href="/jobs/{{check['id']}}">{{check['id']}}</a></td>
<td>\\
%     badge(check['status'])
%     if check['reason']:
<div class="why">{{visible(check['reason'], 1000)}}</div>\\
%     elif len(check['heads']) > 1:
<div class="why">together with {{len(check['heads']) - 1}} more</div>\\
%     end
</td>
<td><code>{{check['commit'][:10]}}</code></td>
<td data-label="waited">{{spell_wait(check)}}</td>
<td data-label="ran">{{spell_duration(check['duration'])}}</td>
<td>\\
%     moment(check['created_at'])
</td>
</tr>
%   end
</tbody>
</table>
</div>
% end
% if commits:
<h2 data-key="commits-head">Commits</h2>
<div class="wide" data-key="commits">
<table class="rows">
<thead><tr><th>Commit</th><th>Subject</th><th>Author</th><th>When</th></tr></thead>
<tbody>
%   for commit in commits:
<tr data-key="commit-{{commit.id}}">
<td><code title="{{commit.id}}">{{commit.id[:10]}}</code></td>
<td class="foreign main">{{visible(commit.subject, 300)}}</td>
<td class="foreign">{{visible(commit.author, 100)}}</td>
<td>\\
%     moment(commit.authored_at)
</td>
</tr>
%   end
</tbody>
</table>
</div>
%   if ahead is not None and ahead > len(commits):
<p class="dim">These are the newest {{len(commits)}} of {{ahead}} commits.</p>
%   end
% end
<h2 data-key="changes-head" id="changes">Changes \\
% if files:
<span class="dim">{{len(files) if whole else f'more than {len(files)}'}} file{{'' if len(files) == 1 else 's'}}</span> \\
%   if whole and any(file.added is not None for file in files):
%     diff['counts'](sum(file.added or 0 for file in files), sum(file.deleted or 0 for file in files))
%   end
% end
</h2>
% if trouble:
<p class="trouble">{{trouble}}</p>
% elif not files:
<p class="empty">It changes no file.</p>
% end
% diff['listing'](here, merge_base or base or '', head, files, whole, listed, lines, first, split)
