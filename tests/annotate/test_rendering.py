import re
from functools import partial
from html.parser import HTMLParser

import pytest
from django.utils.safestring import SafeString
from hypothesis import given, settings
from hypothesis import strategies as st

from annotate import rendering
from annotate.rendering import (
    ATTRIBUTES,
    CLASSES,
    MAX_MARKDOWN_CHARS,
    SIDED_TAGS,
    TAGS,
    has_invisible_characters,
    render_markdown,
)
from config.home import BASE_DIR
from tests.annotate import hostile
from tests.work import num_calls

LINK = {"target": "_blank", "rel": "noopener noreferrer nofollow"}
CODE = [f"```{language}\n{code}\n```" for language, code in hostile.CODE]
FORMULAS = [
    frame % tex for frame in ("$%s$", "$$%s$$", "\\(%s\\)", "\\[%s\\]", "\\[\n%s\n\\]") for tex in hostile.MATHEMATICS
]
ALL_HOSTILE = [*hostile.HTML, *hostile.MARKDOWN, *CODE, *FORMULAS]


class Seen(HTMLParser):
    """What a browser would make of HTML: its tags with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment came through: {data}")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(f"a declaration came through: {decl}")


def is_harmless(tag: str, attributes: dict[str, str | None]) -> bool:
    if tag == "a":
        href = attributes.pop("href", "https:") or ""
        return attributes == LINK and href.startswith(("http:", "https:", "mailto:"))
    if attributes.pop("dir", None) != ("auto" if tag in SIDED_TAGS else None):
        return False
    if tag == "ol":
        return attributes.pop("start", "1").isdecimal() and not attributes
    if attributes.pop("class", None) not in {None, *CLASSES.get(tag, ())}:
        return False
    listed = ATTRIBUTES.get(tag, {})
    return tag in TAGS and all(value in listed.get(name, ()) for name, value in attributes.items())


def test_render_markdown_shows_what_answers_are_made_of():
    text = (
        "# Soup\n\nHeat **slowly**, *then* ~~boil~~ simmer.\nStir.\n\n- water\n- salt\n\n3. Serve\n\n"
        "> hot\n\nAt $x^2$:\n\\[ y=1 \\]\n\n`salt()`\n\n```python\nsalt(1 < 2)\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n---\n\n<https://a.example>"
    )

    html = render_markdown(text)

    assert html == (
        "<h4>Soup</h4>\n<p>Heat <strong>slowly</strong>, <em>then</em> <s>boil</s> simmer.<br>\nStir.</p>\n"
        '<ul dir="auto">\n<li>water</li>\n<li>salt</li>\n</ul>\n'
        '<ol start="3" dir="auto">\n<li>Serve</li>\n</ol>\n'
        '<blockquote dir="auto">\n<p>hot</p>\n</blockquote>\n'
        "<p>At <math><mrow><msup><mi>x</mi><mn>2</mn></msup></mrow></math>:</p>\n"
        '<p class="mathematics"><math display="block"><mrow><mi>y</mi><mo>=</mo><mn>1</mn></mrow></math></p>\n'
        "<p><code>salt()</code></p>\n"
        "<figure><figcaption>python</figcaption><pre><code>"
        'salt(<span class="m">1 </span>&lt; <span class="m">2</span>)\n</code></pre>\n</figure>\n'
        '<table tabindex="0" dir="auto">\n<thead>\n<tr>\n<th>a</th>\n<th>b</th>\n</tr>\n</thead>\n'
        "<tbody>\n<tr>\n<td>1</td>\n<td>2</td>\n</tr>\n</tbody>\n</table>\n"
        "<hr>\n"
        '<p><a href="https://a.example" target="_blank" rel="noopener noreferrer nofollow">https://a.example</a></p>\n'
    )
    assert isinstance(html, SafeString)


def test_render_markdown_of_nothing():
    assert render_markdown("") == ""


@pytest.mark.parametrize("text", hostile.HTML)
def test_render_markdown_shows_html_as_the_text_it_is(text):
    seen = Seen(render_markdown(text))

    assert seen.text.strip() == text
    assert [tag for tag, _ in seen.tags] == ["p"]


@pytest.mark.parametrize(("text", "html"), hostile.MARKDOWN.items())
def test_render_markdown_disarms(text, html):
    assert render_markdown(text).strip() == html


@pytest.mark.parametrize(
    "frame", ["{}", "# {}", "- {}", "> {}", "| a |\n|---|\n| {} |", "[{}](https://a.example)", "**{}**"]
)
def test_render_markdown_is_harmless_wherever_the_text_stands(frame):
    seen = [tag for text in ALL_HOSTILE for tag in Seen(render_markdown(frame.replace("{}", text))).tags]

    assert [tag for tag in seen if not is_harmless(*tag)] == []


@given(st.lists(st.sampled_from([*ALL_HOSTILE, "\n", "\n\n", " ", "*", "`", "[", "](", "<", ">", '"', "&", "|", "#"])))
@settings(max_examples=300, deadline=None)
def test_render_markdown_is_harmless_in_any_mixture(parts):
    html = render_markdown("".join(parts))

    assert [tag for tag in Seen(html).tags if not is_harmless(*tag)] == []
    assert rendering._sanitiser.clean(html) == html  # a browser that reads it again finds nothing new


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_render_markdown_takes_any_text(text):
    render_markdown(text)


@pytest.mark.parametrize("text", hostile.SLOW, ids=lambda text: repr(text[:8]))
def test_work_grows_no_faster_than_the_text(text):
    once, twice = (num_calls(partial(rendering._to_html, text[:length])) for length in (4_000, 8_000))

    assert twice <= 2.1 * once
    assert twice <= 300 * len(text[:8_000])
    render_markdown(text)  # made to take minutes of a careless parser


def test_render_markdown_shows_long_and_deep_texts_as_they_are():
    long = "*x* " * (MAX_MARKDOWN_CHARS // 4 + 1)
    deep = "> " * 40 + "x & y"

    assert render_markdown(long) == f"<pre>{long}</pre>"
    assert render_markdown(deep) == f"<pre>{'&gt; ' * 40}x &amp; y</pre>"


@pytest.mark.parametrize(
    ("html", "left"),
    [
        ('<span class="k button">x</span>', '<span class="k">x</span>'),
        ('<p class="mathematics panel">x</p>', '<p class="mathematics">x</p>'),
        ('<pre class="k">x</pre>', "<pre>x</pre>"),
        ('<math display="block" href="javascript:x"><mi>x</mi></math>', '<math display="block"><mi>x</mi></math>'),
        ('<math><mi mathvariant="bold" style="x" id="comparison">x</mi></math>', "<math><mi>x</mi></math>"),
        ('<math><mspace width="1000em"></mspace></math>', "<math><mspace></mspace></math>"),
        ("<math><semantics><mi>x</mi></semantics></math>", "<math><mi>x</mi></math>"),
        ('<math><annotation-xml encoding="text/html"><p>x</p></annotation-xml></math>', "<math></math>"),
        ('<math><maction actiontype="statusline"><mi>x</mi></maction></math>', "<math><mi>x</mi></math>"),
    ],
)
def test_the_second_wall_holds_by_itself(html, left):
    """What the sanitiser does to HTML that our own rules would never write."""
    assert rendering._sanitiser.clean(html) == left


def test_render_markdown_shows_every_word_of_a_formula_or_its_source():
    unseen = [text for text in FORMULAS if "unseen" in text and Seen(render_markdown(text)).text.count("unseen") == 0]

    assert unseen == []


def test_rendered_texts_are_remembered_within_bounds():
    remembered = rendering._Remembered(max_chars=100)

    for number in range(30):
        remembered.put(f"{number:05}", "html!")
    remembered.put("too long", "x" * 100)

    assert list(remembered.html_of) == [f"{number:05}" for number in range(20, 30)]
    assert remembered.num_chars == 100
    assert (remembered.get("00029"), remembered.get("00019")) == ("html!", None)


def test_render_markdown_gives_the_same_again():
    assert render_markdown("*once*") == render_markdown("*once*") == "<p><em>once</em></p>\n"


@pytest.mark.parametrize("text", ["a\u200bb", "\u202egnp.exe", "\ufefftext", "x\U000e0041"])
def test_has_invisible_characters(text):
    assert has_invisible_characters(text)


@pytest.mark.parametrize("text", ["plain", "\u0645\u06cc\u200c\u062e", "👩\u200d🍳", "שלום\u200f!", "a\u00a0b"])
def test_ordinary_scripts_have_no_invisible_characters(text):
    assert not has_invisible_characters(text)


def test_nothing_else_marks_text_as_safe():
    """One function decides what is safe HTML; a template that says `|safe` would be a second one."""
    python = [path for app in ("annotate", "training", "config") for path in (BASE_DIR / app).rglob("*.py")]
    templates = list((BASE_DIR / "templates").rglob("*.html"))
    escapes = re.compile(r"mark_safe|SafeString\(|__html__|\|\s*safe\b|\|\s*safeseq\b|autoescape off|is_safe *= *True")

    found = {path.relative_to(BASE_DIR).as_posix() for path in python + templates if escapes.search(path.read_text())}

    assert found == {"annotate/rendering.py"}
