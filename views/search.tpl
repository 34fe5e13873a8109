% rebase('base', title=f'{query} · search · forge' if query else 'Search · forge', scripts=())
% parts = include('parts')
% badge, moment = parts['badge'], parts['moment']
<h1>Search the logs</h1>
<form class="search" method="get" action="/search" role="search">
<label>Text <input type="search" name="q" value="{{!exact(query)}}" maxlength="200" required></label>
<label>Repo <select name="repo">
<option value="">all</option>
% for name in repos:
<option\\
% if name == repo:
 selected\\
% end
>{{name}}</option>
% end
</select></label>
<button class="go">Search</button>
</form>
% if query:
%   if first_seen:
<p class="lead">{{'First seen' if first_is_certain else 'The oldest found so far is'}} in <a href="/jobs/{{first_seen['job']}}">job {{first_seen['job']}}</a>,
\\
%     moment(first_seen['at'])
.</p>
%   end
%   if not jobs:
<p class="empty">{{'None' if first_is_certain else 'So far none'}} of {{f'{looked:,}'}} {{'log' if looked == 1 else 'logs'}} contains it.</p>
%   end
%   for job in jobs:
<section class="hit">
<h2><a href="/jobs/{{job['id']}}">Job {{job['id']}}</a> \\
%     badge(job['status'])
 <bdi>{{job['repo']}} / {{job['branch']}}</bdi>
<span class="dim">\\
%     moment(job['created_at'])
</span></h2>
<ol data-digits="{{len(str(job['matches'][-1]['line']))}}">
%     for match in job['matches']:
<li><a href="/jobs/{{job['id']}}#L{{match['line']}}" aria-label="Line {{match['line']}}">{{match['line']}}</a> <bdi>\\
%       for text, found in marked(match['text'], query):
%         if found:
<mark>{{text}}</mark>\\
%         else:
{{text}}\\
%         end
%       end
</bdi></li>
%     end
</ol>
%     if job['count'] > len(job['matches']):
<p class="dim">and {{f"{job['count'] - len(job['matches']):,}"}} more lines</p>
%     end
</section>
%   end
%   if older:
<p>Looked through the newest {{f'{looked:,}'}} of {{f'{logs:,}'}} logs; <a href="/search?{{older}}">search further back</a>.</p>
%   elif not first_is_certain:
<p>The search took too long and was ended: the oldest log was looked through in part.</p>
%   end
% end
