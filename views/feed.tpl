<?xml version="1.0" encoding="utf-8"?>
<feed xmlns="http://www.w3.org/2005/Atom">
<title>{{repo}} · forge</title>
<id>{{url}}/r/{{repo}}/feed.atom</id>
<link rel="self" type="application/atom+xml" href="{{url}}/r/{{repo}}/feed.atom"/>
<link rel="alternate" type="text/html" href="{{url}}/r/{{repo}}"/>
<updated>{{entries[0]['at'] if entries else '1970-01-01T00:00:00Z'}}</updated>
<author><name>forge</name></author>
% for entry in entries:
<entry>
<title>{{entry['title']}}</title>
<id>{{entry['id']}}</id>
<link rel="alternate" type="text/html" href="{{entry['url']}}"/>
<updated>{{entry['at']}}</updated>
<summary>{{entry['title']}}, commit {{entry['commit']}}, job {{entry['job']}}{{f": {entry['reason']}" if entry.get('reason') else ''}}</summary>
</entry>
% end
</feed>
