% colour = {'passed': '#1a7340', 'failed': '#b3261e', 'running': '#7a5300'}.get(state, '#555b66')
<svg xmlns="http://www.w3.org/2000/svg" width="108" height="20" viewBox="0 0 108 20" role="img" aria-label="{{repo}}: {{state}}">
<title>{{repo}}: {{state}}</title>
<path d="M4 0h42v20h-42a4 4 0 0 1-4-4v-12a4 4 0 0 1 4-4z" fill="#30343d"/>
<path d="M46 0h58a4 4 0 0 1 4 4v12a4 4 0 0 1-4 4h-58z" fill="{{colour}}"/>
<g fill="#fff" font-family="Verdana, 'DejaVu Sans', sans-serif" font-size="11" text-anchor="middle">
<text x="23" y="14">forge</text>
<text x="77" y="14">{{state}}</text>
</g>
</svg>
