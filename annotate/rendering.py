"""Hostile text to safe HTML. The only `mark_safe` of the project stands here.

Prompts and responses are stored verbatim and come from anywhere. Two walls, each enough by itself: the Markdown
parser runs with raw HTML off, so tags in the text come out as text; then nh3 keeps a short list of tags, links, and
attributes with the few values that code and mathematics need. So content can carry no id, name, style, form control or
htmx attribute and no class of the page's own, and its headings rank below the page's. Text is shown where Markdown
would swallow it: link definitions stay text, a code fence shows its language, a picture its alternative text (it is
never loaded).
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import nh3
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from annotate import highlighting, mathematics

MAX_MARKDOWN_CHARS = 100_000  # longer texts are shown as they are: parsing them would take seconds
MAX_NESTING = 30  # the parser drops what is nested deeper, so such texts are shown as they are too
MAX_REMEMBERED = 16_000_000  # characters of texts and their HTML, in each process

WIDE_FORMULA = 60  # characters of TeX; it may have to be scrolled, so the keyboard must reach it, as it must tables

TAGS = mathematics.TAGS | frozenset(
    {"p", "br", "hr", "strong", "em", "s", "code", "pre", "blockquote", "a", "ol", "ul", "li", "h4", "h5", "h6"}
    | {"table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "span"}
)
SIDED_TAGS = frozenset({"ul", "ol", "table", "blockquote"})  # bullets, columns and bars stand on the side of the script
ATTRIBUTES = {**mathematics.ATTRIBUTES, **{tag: {"tabindex": frozenset({"0"})} for tag in ("p", "table")}}
CLASSES = {**mathematics.CLASSES, "span": set(highlighting.CLASSES), "p": {"mathematics"}}
URL_SCHEMES = frozenset({"http", "https", "mailto"})

# zero-width, direction-overriding and tag characters; joiners and plain direction marks belong to ordinary scripts
INVISIBLE = re.compile("[\u200b\u2060-\u2064\u202a-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]")


def render_markdown(text: str) -> SafeString:
    """The text's Markdown as HTML that can neither act nor pretend to be part of the page."""
    html = _remembered.get(text)
    if html is None:
        sendable = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates cannot be sent
        html = _sanitiser.clean(_to_html(sendable))
        _remembered.put(text, html)
    return mark_safe(html)  # noqa: S308 -- what nh3 let through


def has_invisible_characters(text: str) -> bool:
    """Whether the text holds characters that a reader cannot see but a model reads."""
    return INVISIBLE.search(text) is not None


def _to_html(text: str) -> str:
    if len(text) <= MAX_MARKDOWN_CHARS:
        env: dict[str, object] = {}
        tokens = _parser.parse(text, env)
        if max((token.level for token in tokens), default=0) < MAX_NESTING - 1:
            return str(_parser.renderer.render(tokens, _parser.options, env))
    return f"<pre>{escapeHtml(text)}</pre>"


def _heading(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    """A heading three levels down, so that none competes with the page's own."""
    token = tokens[index]
    level = min(int(token.tag[1]) + 3, 6)
    return f"<h{level}>" if token.nesting == 1 else f"</h{level}>\n"


def _image(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    alternative = renderer.renderInlineAsText(tokens[index].children or [], options, env)
    return f"<em>[image: {escapeHtml(alternative)}]</em>"


def _fence(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    """Code under the name of its language, in colours if there are not too many characters of it in the text."""
    token = tokens[index]
    info = token.info.strip()
    env["num_code"] = env.get("num_code", 0) + len(token.content)
    is_coloured = info and env["num_code"] <= highlighting.MAX_ALL_CODE
    code = highlighting.highlight(token.content, info.split()[0]) if is_coloured else escapeHtml(token.content)
    pre = f"<pre><code>{code}</code></pre>\n"
    return f"<figure><figcaption>{escapeHtml(info)}</figcaption>{pre}</figure>\n" if info else pre


def _table(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    return '<table tabindex="0">\n'


def _mathematics(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    """A formula; its source with the delimiters if it cannot be shown."""
    token = tokens[index]
    mathml = mathematics.to_mathml(token.content, is_block=token.markup in ("$$", "\\["))
    source = f"{token.markup}{token.content}{mathematics.CLOSING[token.markup]}"
    html = mathml or f"<code>{escapeHtml(source)}</code>"
    if not token.block:
        return html
    tab_stop = ' tabindex="0"' if len(source) > WIDE_FORMULA else ""
    return f'<p class="mathematics"{tab_stop}>{html}</p>\n'


def _make_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": MAX_NESTING})
    parser.enable(["table", "strikethrough"]).disable("reference")
    parser.add_render_rule("heading_open", _heading)
    parser.add_render_rule("heading_close", _heading)
    parser.add_render_rule("image", _image)
    parser.add_render_rule("fence", _fence)
    parser.add_render_rule("table_open", _table)
    mathematics.teach(parser)
    parser.add_render_rule("mathematics", _mathematics)
    parser.add_render_rule("mathematics_block", _mathematics)
    return parser


class _Remembered:
    """The HTML of the texts that were asked for last: guidelines, and what several annotators see in turn."""

    def __init__(self, max_chars: int) -> None:
        self.max_chars = max_chars
        self.num_chars = 0
        self.html_of: OrderedDict[str, str] = OrderedDict()
        self.lock = Lock()

    def get(self, text: str) -> str | None:
        with self.lock:
            if text in self.html_of:
                self.html_of.move_to_end(text)
            return self.html_of.get(text)

    def put(self, text: str, html: str) -> None:
        size = len(text) + len(html)
        with self.lock:
            if text in self.html_of or size > self.max_chars // 10:  # one text must not push all others out
                return
            self.html_of[text] = html
            self.num_chars += size
            while self.num_chars > self.max_chars:
                self.num_chars -= sum(map(len, self.html_of.popitem(last=False)))


_remembered = _Remembered(MAX_REMEMBERED)
_parser = _make_parser()
_sanitiser = nh3.Cleaner(
    tags=set(TAGS),
    attributes={"*": set(), "a": {"href"}, "ol": {"start"}},  # an empty "*": nh3 would let title and lang pass
    tag_attribute_values={
        tag: {name: set(values) for name, values in attributes.items()} for tag, attributes in ATTRIBUTES.items()
    },
    allowed_classes=CLASSES,
    url_schemes=set(URL_SCHEMES),
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={
        "a": {"target": "_blank"},  # a link must not take the annotator off the page
        **{tag: {"dir": "auto"} for tag in SIDED_TAGS},
    },
)
