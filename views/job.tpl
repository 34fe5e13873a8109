% live = job['status'] in ('pending', 'running')
% icon = {'passed': 'passed', 'failed': 'failed', 'timeout': 'failed', 'running': 'running', 'pending': 'running'}.get(job['status'], 'forge')
% rebase('base', title=f"{job['status']} · job {job['id']} · {job['repo']}", busy=live, scripts=('log.js',), icon=icon)
% parts = include('parts')
% badge, password_field = parts['badge'], parts['password_field']
<div class="watch" id="watch">
<p class="crumbs"><a href="/r/{{job['repo']}}">{{job['repo']}}</a> /
% if job['kind'] == PRE and not job.get('rollback_to'):
<a href="{{mr_path(job['repo'], job['branch'])}}">{{job['branch']}}</a>
% else:
{{job['branch']}}
% end
</p>
<div class="jobhead" id="jobhead">
<h1>Job {{job['id']}} \\
% badge(job['status'])
</h1>
<div class="actions">
% if live:
<form method="post" action="/jobs/{{job['id']}}/cancel">
% password_field()
<button class="danger">Cancel</button></form>
% elif not no_retry:
<form method="post" action="/jobs/{{job['id']}}/retry">
% password_field()
<button>Retry</button></form>
% end
</div>
</div>
<div class="told" id="told">
% if digest:
%   tone = 'good' if job['status'] == 'passed' else 'bad' if job['status'] in ('failed', 'timeout') else 'still'
<section class="digest" data-tone="{{tone}}" aria-label="What it came to">
<p class="outcome">{{digest.outcome}}</p>
%   if digest.line:
<p class="cause"><a href="#L{{digest.line}}">line {{digest.line}}</a> <code>{{digest.cause}}</code></p>
%   end
%   if digest.rest:
<pre>{{digest.rest}}</pre>
%   end
</section>
% end
% if live and not stopping:
<p class="verdict" data-tone="busy">{{'Running' if job['status'] == 'running' else 'Queued'}}\\
%   if job['status'] == 'running':
 for {{spell_duration(job['duration']) or 'a moment'}}{{': ' if job['command'] else ''}}\\
%     if job['command']:
<code>{{job['command']}}</code>\\
%     end
<br><span class="dim">{{job['cpu_percent'] if job['cpu_percent'] is not None else '–'}} % CPU, {{spell_bytes(job['rss_bytes']) or '–'}} of memory, {{job['processes'] if job['processes'] is not None else '–'}} process{{'' if job['processes'] == 1 else 'es'}}</span>\\
%   end
</p>
% end
% if job['reason'] and not (digest and job['reason'] in digest.outcome):
<p class="verdict" data-tone="{{'bad' if job['status'] in ('failed', 'timeout') else 'still'}}">{{job['reason']}}</p>
% elif stopping:
<p class="verdict" data-tone="busy">It is being stopped: {{stopping[1]}}</p>
% end
% if trouble:
<p class="trouble">{{trouble}}</p>
% end
% if job.get('flake'):
<p class="verdict" data-tone="bad">This is a flake: <a href="/jobs/{{job['flake']}}">job {{job['flake']}}</a> ran the same command on the same tree and came to the other verdict.</p>
% end
% if job.get('rollback_to'):
<p class="verdict" data-tone="still">It tests a rollback of {{job['branch']}} to <code>{{job['rollback_to'][:10]}}</code>, which lands when it passes; see the <a href="/r/{{job['repo']}}/deployments">deployments</a>.</p>
% end
% if merge:
<p class="verdict" data-tone="good">Merged into base as <code>{{merge['merge_commit'][:10]}}</code>; see the <a href="/r/{{job['repo']}}/history">history</a>.</p>
% end
% parts['trail_lines'](job.get('trail', []))
</div>
% address = f"/jobs/{job['id']}"
<h2 class="loghead" id="loghead">Log <span class="dim"><a href="{{address}}/log">raw</a> · <a href="{{address}}/log?download=1">download</a>
% if job['log_size']:
· {{spell_bytes(job['log_size'])}}
% end
</span></h2>
% if gone:
<p class="empty">The log of this job was pruned to save room. What it came to is above{{'' if no_retry else '; Retry makes a new one'}}.</p>
% elif not piece:
<section id="logview" data-keep></section>
% else:
<section id="logview" data-keep data-refresh="{{address}}?facts=1" aria-labelledby="loghead">
<form class="logtools" id="logtools" role="search" hidden>
<label class="hidden" for="find">Search the log</label>
<input id="find" type="search" placeholder="Search the log" autocomplete="off" autocapitalize="off" spellcheck="false" maxlength="200">
<button type="button" id="previous" title="Previous match (N)"><span aria-hidden="true">↑</span><span class="hidden">Previous match</span></button>
<button type="button" id="next" title="Next match (n)"><span aria-hidden="true">↓</span><span class="hidden">Next match</span></button>
<output id="count" for="find"></output>
<label><input type="checkbox" id="filter"> Only matching lines</label>
<label><input type="checkbox" id="wrap"> Wrap lines</label>
<button type="button" id="first-error">First error</button>
<button type="button" id="show-keys" aria-haspopup="dialog" title="Keys (?)"><span aria-hidden="true">?</span><span class="hidden">Keys</span></button>
</form>
<dialog id="keys" aria-labelledby="keys-title">
<h2 id="keys-title">Keys</h2>
<dl>
<dt><kbd>/</kbd></dt><dd>search the log</dd>
<dt><kbd>n</kbd></dt><dd>next match</dd>
<dt><kbd>N</kbd></dt><dd>previous match</dd>
<dt><kbd>Esc</kbd></dt><dd>leave the search field; once more ends the search</dd>
<dt><kbd>?</kbd></dt><dd>these keys</dd>
</dl>
<p>Shift and a click on a line number extend the marked lines.</p>
<button type="button" id="hide-keys">Close</button>
</dialog>
<p class="dim logmore" id="earlier-line"\\
%   if piece.start == piece.skipped:
 hidden\\
%   end
><a id="earlier" href="{{address}}?before={{piece.start - piece.skipped}}#log">Earlier lines</a></p>
<div id="log" class="log" data-src="{{address}}/log" data-offset="{{piece.start}}" data-line="{{piece.line}}" data-skipped="{{piece.skipped}}" data-size="{{piece.size}}" data-status="{{job['status']}}" data-end="{{'no' if later else 'yes'}}" data-digits="{{len(str(piece.line + len(lines) - 1))}}" tabindex="0" role="region" aria-label="Log"><div id="rows">\\
%   for number, line in enumerate(lines, piece.line):
<div class="line" id="L{{number}}"><a href="#L{{number}}">{{number}}</a><span>\\
%     if piece.skipped and number == piece.line:
<a class="cut" href="{{address}}/log?offset={{piece.start - piece.skipped}}">{{spell_bytes(piece.skipped)}} of this line left out</a> \\
%     end
{{!exact(line)}}\\
%     if later == number + 1 and not piece.content.endswith(b'\n') and len(lines) == 1:
 <a class="cut" href="{{address}}/log?offset={{piece.start}}">the rest of this line left out</a>\\
%     end
</span></div>
%   end
</div></div>
<p class="logstate"><span class="dim logmore" id="later-line"\\
%   if not later:
 hidden\\
%   end
><a id="later" href="{{address}}?line={{later or ''}}#log">Later lines</a></span> <button type="button" id="follow" hidden>Follow the log</button> <span id="state" role="status" class="dim">\\
%   if not lines:
{{'It has printed nothing yet.' if live else 'It did not have to run.' if job['reused_from'] else 'It printed nothing.'}}\\
%   end
</span></p>
</section>
% end
</div>
<dl class="facts">
<dt>Kind</dt><dd>{{job['kind']}}</dd>
<dt>Command</dt><dd>
% if job['command']:
<code>{{job['command']}}</code>
% else:
<span class="dim">{{'not known yet' if live else 'none'}}</span>
% end
</dd>
% if len(job['heads']) > 1:
<dt>Commits</dt><dd>tested together, in the order in which they are to be merged:
%   for head in job['heads']:
<br><code>{{head['commit'][:10]}}</code> <a href="{{mr_path(job['repo'], head['branch'])}}">{{head['branch']}}</a>
%   end
</dd>
% else:
<dt>Commit</dt><dd><code>{{job['commit']}}</code></dd>
% end
% if job['tested'] and job['tested'] != job['commit']:
<dt>Tested</dt><dd><code>{{job['tested']}}</code>, {{'their merges' if len(job['heads']) > 1 else 'its merge'}} into base
%   if job['kind'] == PRE:
<br><span class="dim">git fetch origin refs/forge/jobs/{{job['id']}}</span>
%   end
</dd>
% elif job['tested'] and job['kind'] == PRE:
<dt>Tested</dt><dd>the commit as it was pushed, without base</dd>
% end
% if job['base']:
<dt>Base</dt><dd><code>{{job['base']}}</code></dd>
% end
% if job['tree']:
<dt>Tree</dt><dd><code>{{job['tree']}}</code></dd>
% end
<dt>Created</dt><dd><time datetime="{{job['created_at']}}">{{job['created_at']}}</time></dd>
% if job['started_at']:
<dt>Started</dt><dd><time datetime="{{job['started_at']}}">{{job['started_at']}}</time></dd>
<dt>Sandbox</dt><dd>{{'bubblewrap' if sandboxed else 'none'}}</dd>
% end
% if job['finished_at']:
<dt>Finished</dt><dd><time datetime="{{job['finished_at']}}">{{job['finished_at']}}</time></dd>
% elif live:
<dt>Finished</dt><dd>–</dd>
% end
% if live or job['duration'] is not None:
<dt>Took</dt><dd>{{spell_duration(job['duration']) if not live else '–'}}</dd>
% end
% if live or job['exit_code'] is not None:
<dt>Exit code</dt><dd>{{job['exit_code'] if not live else '–'}}</dd>
% end
% if job['reused_from']:
<dt>Result of</dt><dd><a href="/jobs/{{job['reused_from']}}">job {{job['reused_from']}}</a>, which ran the same command on the same tree</dd>
% end
% if no_retry:
<dt>No retry</dt><dd>{{visible(no_retry, 1000)}}</dd>
% end
% if job['retry_of']:
<dt>Retry of</dt><dd><a href="/jobs/{{job['retry_of']}}">job {{job['retry_of']}}</a></dd>
% end
</dl>
