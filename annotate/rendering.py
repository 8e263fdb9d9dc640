"""Hostile text to safe HTML. The only `mark_safe` of the project stands here.

Prompts and responses are stored verbatim and come from anywhere. Two walls, each enough by itself: the Markdown
parser runs with raw HTML off, so tags in the text come out as text; then nh3 keeps a short list of tags and two
harmless attributes. So content can carry no id, name, class, style, form control or htmx attribute, and its
headings rank below the page's own. Text is shown where Markdown would swallow it: link definitions stay text, a
code fence shows its language, a picture its alternative text (it is never loaded).
"""

import re
from collections.abc import Sequence

import nh3
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

MAX_MARKDOWN_CHARS = 100_000  # longer texts are shown as they are: parsing them would take seconds
MAX_NESTING = 30  # the parser drops what is nested deeper, so such texts are shown as they are too

TAGS = frozenset(
    {"p", "br", "hr", "strong", "em", "s", "code", "pre", "blockquote", "a", "ol", "ul", "li", "h4", "h5", "h6"}
    | {"table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption"}
)
URL_SCHEMES = frozenset({"http", "https", "mailto"})

# zero-width, direction-overriding and tag characters; joiners and plain direction marks belong to ordinary scripts
INVISIBLE = re.compile("[\u200b\u2060-\u2064\u202a-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]")


def render_markdown(text: str) -> SafeString:
    """The text's Markdown as HTML that can neither act nor pretend to be part of the page."""
    text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates cannot be sent
    return mark_safe(_sanitiser.clean(_to_html(text)))  # noqa: S308 -- what nh3 let through


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
    token = tokens[index]
    code = f"<pre><code>{escapeHtml(token.content)}</code></pre>\n"
    info = token.info.strip()
    return f"<figure><figcaption>{escapeHtml(info)}</figcaption>{code}</figure>\n" if info else code


def _make_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": MAX_NESTING})
    parser.enable(["table", "strikethrough"]).disable("reference")
    parser.add_render_rule("heading_open", _heading)
    parser.add_render_rule("heading_close", _heading)
    parser.add_render_rule("image", _image)
    parser.add_render_rule("fence", _fence)
    return parser


_parser = _make_parser()
_sanitiser = nh3.Cleaner(
    tags=set(TAGS),
    attributes={"*": set(), "a": {"href"}, "ol": {"start"}},  # an empty "*": nh3 would let title and lang pass
    url_schemes=set(URL_SCHEMES),
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},  # a link must not take the annotator off the page
)
