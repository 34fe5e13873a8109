<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{get('title', 'forge')}}</title>
<link rel="icon" href="/static/{{get('icon', 'forge')}}.svg" type="image/svg+xml">
<link rel="stylesheet" href="/static/forge.css">
% if get('feed'):
<link rel="alternate" type="application/atom+xml" title="Merges, failures, deployments" href="{{feed}}">
% end
% busy = get('busy', False)
% if busy:
<noscript><meta http-equiv="refresh" content="{{30 if 'type="password"' in base else 3}}"></noscript>
% end
% for script in get('scripts', ('live.js',)):
<script type="module" src="/static/{{script}}"></script>
% end
</head>
<body data-busy="{{'yes' if busy else 'no'}}">
<a class="skip" href="#main">Skip to the content</a>
<header>
<nav aria-label="Main">
<a class="brand" href="/">forge</a>
% for address, name in (('/', 'Repositories'), ('/jobs', 'Jobs'), ('/search', 'Search')):
<a href="{{address}}"{{!' aria-current="page"' if here == address else ''}}>{{name}}</a>
% end
</nav>
% if logged_in:
<form method="post" action="/logout"><button class="quiet">Log out</button></form>
% else:
<a href="/login?to={{here_quoted}}">Log in</a>
% end
</header>
<main id="main">
{{!base}}
</main>
<footer>forge {{version}}</footer>
</body>
</html>
