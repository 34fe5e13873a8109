% live = [d for d in deployments if d['status'] in ('pending', 'running')]
% rebase('base', title=f'{words}Deployments of {repo} · forge', icon=icon, busy=bool(live))
% parts = include('parts')
% badge, moment, password_field = parts['badge'], parts['moment'], parts['password_field']
<p class="crumbs"><a href="/">Repositories</a> / <a href="/r/{{repo}}">{{repo}}</a> /</p>
<h1>Deployments</h1>
<nav class="tabs" aria-label="{{repo}}"><a href="/r/{{repo}}">Merge requests</a> <a href="/r/{{repo}}/history">History</a> <a href="/r/{{repo}}/deployments" aria-current="page">Deployments</a> <a href="/jobs?repo={{repo}}">Jobs</a></nav>
% last = next((d for d in deployments if d['commit'] == current and d['status'] == 'passed'), None)
% if current:
<p class="under">Deployed last: <code>{{current[:10]}}</code>\\
%   if last:
 by <a href="/jobs/{{last['id']}}">job {{last['id']}}</a>, \\
%     moment(last['finished_at'] or last['created_at'])
%   end
</p>
% end
% now = deployments[0] if deployments and first else None
% if now and now['status'] == 'running':
<p class="verdict" data-key="now" data-tone="busy">Job {{now['id']}} deploys <code>{{now['commit'][:10]}}</code> now.</p>
% elif now and now['status'] in ('failed', 'timeout', 'canceled') and now['started_at']:
<p class="verdict" data-key="now" data-tone="bad">Job {{now['id']}} was to deploy <code>{{now['commit'][:10]}}</code> and ended as {{now['status']}}\\
%   if (now['reason'] or '').startswith('interrupted'):
: it was interrupted, so how far it came is not known. It is not run again by itself{{'; when that does no harm, use Retry.' if now['id'] == newest and not no_retry else '.'}}\\
%   else:
; how far it came is in its log.\\
%   end
</p>
% end
% if rolling:
<p class="verdict" data-key="rolling" data-tone="busy"><a href="/jobs/{{rolling}}">Job {{rolling}}</a> tests a rollback; base moves when it has passed, and nothing is merged before. For another rollback, wait for it or cancel it.</p>
% end
% if holds:
<h2 id="holds">On hold</h2>
<p>What was rolled back does not come back by a merge until somebody lifts its hold.</p>
<form method="post" action="/r/{{repo}}/hold" data-key="holds">
<button hidden disabled></button><input type="hidden" name="lift" value="1">
% if not logged_in:
<p class="actions">
%   password_field()
</p>
% end
<div class="wide">
<table class="rows">
<thead><tr><th>Commit</th><th>It brought</th><th>Why</th><th>Since</th><th>Lift</th></tr></thead>
<tbody>
%   for hold in holds[-100:][::-1]:
<tr data-key="hold-{{hold['commit']}}">
<td><code>{{hold['commit'][:10]}}</code></td>
<td class="main">
%     for pair in hold['inputs'][:20]:
<div>input <strong>{{visible(pair['input'], 100)}}</strong> at <code>{{pair['commit'][:10]}}</code></div>
%     end
<div class="dim">tree <code>{{hold['tree'][:10]}}</code>{{f" and {len(hold['inputs']) - 20} more inputs" if len(hold['inputs']) > 20 else ''}}</div></td>
<td>{{visible(hold['reason'], 300)}}</td>
<td>
%     moment(hold['since'])
</td>
<td><button name="commit" value="{{hold['commit']}}">Lift the hold</button></td>
</tr>
%   end
</tbody>
</table>
</div>
%   if len(holds) > 100:
<p class="dim">and {{len(holds) - 100}} older ones: <code>forge hold {{repo}}</code></p>
%   end
</form>
% end
% if not deployments:
<p class="empty">{{'Nothing has been deployed yet: every change of base starts post-merge.' if first else 'Nothing older has been deployed.'}}</p>
% else:
<form method="post" action="/r/{{repo}}/rollback" data-key="rows">
<button hidden disabled></button>
<p class="dim" id="rollback-words">Roll back makes a new commit on {{base or 'base'}} with the tree of that deployment, and deploys it. What came after it is put on hold. A tree that has never passed pre-merge is tested first.</p>
<p class="actions">
% password_field()
<label><input type="checkbox" name="untested" value="1"> Roll back without a test, too</label></p>
<div class="wide">
<table class="rows deployments">
<thead><tr><th>Job</th><th>Status</th><th>Commit</th><th>It brought</th><th>Took</th><th>When</th><th>Do</th></tr></thead>
<tbody>
% held = {hold['commit'] for hold in holds}
% for d in deployments:
<tr data-key="job-{{d['id']}}">
<td><a href="/jobs/{{d['id']}}">{{d['id']}}</a> <a class="dim" href="/jobs/{{d['id']}}#log">log</a></td>
<td>
%   badge(d['status'])
%   if d['reason'] and d['status'] != 'passed':
<div class="why">{{visible(d['reason'], 300)}}</div>
%   end
</td>
<td><code>{{d['commit'][:10]}}</code>
%   if d['commit'] == current:
<span class="tag">deployed</span>
%   end
%   if d['commit'] in held:
<span class="tag">on hold</span>
%   end
%   if d['diff_url']:
<div><a class="dim" href="/r/{{repo}}/deployments/{{d['id']}}">what changed</a></div>
%   end
</td>
<td class="main">
%   lines = d['merges'][:20]
%   if lines or d['pushed']:
<ul class="plain">
%     for m in lines:
%       if m['how'] == 'rollback':
<li><strong>rolled back</strong> to <code>{{m['head'][:10]}}</code>{{' untested' if m.get('untested') else ''}}</li>
%       else:
<li>{{visible(m['branch'], 200)}} <a class="dim" href="/jobs/{{m['job']}}">job {{m['job']}}</a></li>
%       end
%     end
%     for one in d['pushed'][:20]:
<li><span class="dim">pushed</span> <code>{{one['commit'][:10]}}</code> {{visible(one['subject'], 100)}}</li>
%     end
%     more = len(d['merges']) + len(d['pushed']) - len(lines) - len(d['pushed'][:20])
%     if more or not d['whole']:
<li class="dim">and {{more or 'older ones'}}{{' more' if more else ''}}</li>
%     end
</ul>
%   elif not d['trouble']:
<span class="dim">nothing new</span>
%   end
%   if d['trouble']:
<div class="why">{{visible(d['trouble'], 300)}}</div>
%   end
%   if d['includes']:
<div class="dim">includes what {{len(d['includes'])}} superseded deployment{{'s' if len(d['includes']) > 1 else ''}} would have brought\\
%     if d['included']:
: {{', '.join(visible(name, 100) for name in d['included'][:20])}}\\
%     end
</div>
%   end
%   if d['commit_count']:
<div class="dim">{{d['commit_count']}}{{'' if d['whole'] else '+'}} commit{{'' if d['commit_count'] == 1 else 's'}} by {{', '.join(visible(one['name'], 100) for one in d['authors'][:5])}}{{f" and {len(d['authors']) - 5} more" if len(d['authors']) > 5 else ''}}</div>
%   end
% parts['trail_lines'](d.get('trail', []))
</td>
<td>{{spell_duration(d['duration'])}}</td>
<td>
%   moment(d['created_at'])
</td>
<td>
%   refused = no_rollbacks.get(d['commit'])
%   if d['commit'] != tip and d['status'] != 'pending' and refused:
%     if not rolling:
<div class="dim">{{refused}}</div>
%     end
%   elif d['commit'] != tip and d['status'] != 'pending':
<button name="commit" value="{{d['commit']}}" aria-describedby="rollback-words">Roll back</button>
%     if d['tree'] and d['tree'] not in passed:
<div class="dim">is tested first</div>
%     end
%   elif d['id'] == newest and d['status'] not in ('passed', 'pending', 'running'):
%     if no_retry:
<div class="dim">{{visible(no_retry, 300)}}</div>
%     else:
<button formaction="/jobs/{{d['id']}}/retry">Retry</button>
%     end
%   end
</td>
</tr>
% end
</tbody>
</table>
</div>
</form>
% end
<p class="further">
% if not first:
<a href="/r/{{repo}}/deployments?limit={{limit}}">Newest</a>
% end
% if older:
<a href="/r/{{repo}}/deployments?limit={{limit}}&amp;before={{older}}">Older</a>
% end
</p>
