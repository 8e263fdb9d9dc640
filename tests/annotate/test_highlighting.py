import re
from html import unescape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pygments.lexers import get_lexer_by_name

from annotate import highlighting
from annotate.highlighting import CLASSES, LANGUAGES, MAX_CODE, highlight
from annotate.rendering import render_markdown
from config.home import BASE_DIR
from tests.annotate import hostile

TAG = re.compile(r'<span class="(\w+)">|</span>')


def test_highlight():
    assert highlight('def f(x): # <b>\n    return "1"\n', "python") == (
        '<span class="k">def </span><span class="nf">f</span>(x): <span class="c"># &lt;b&gt;\n'
        '    </span><span class="k">return </span><span class="s">&quot;1&quot;\n</span>'
    )


@pytest.mark.parametrize("language", ["", "nosuch", "text", "../python", "c#"])
def test_highlight_guesses_no_language(language):
    assert highlight("def f(): pass", language) == "def f(): pass"


def test_highlight_takes_a_language_in_capitals():
    assert highlight("1", "Python") == '<span class="m">1</span>'


def test_highlight_leaves_long_code_plain():
    assert highlight("1" * MAX_CODE, "python") == f'<span class="m">{"1" * MAX_CODE}</span>'
    assert highlight("1" * (MAX_CODE + 1), "python") == "1" * (MAX_CODE + 1)


def test_a_text_has_colours_for_so_much_code_only(monkeypatch):
    monkeypatch.setattr(highlighting, "MAX_ALL_CODE", 5)
    fence = "```python\n{}\n```\n"

    html = render_markdown(fence.format("11") + fence.format("22"))

    assert TAG.findall(html) == ["m", ""]


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_there_is_a_lexer_for_each_language(language):
    assert get_lexer_by_name(language)


@given(st.sampled_from(sorted(LANGUAGES)), st.lists(st.sampled_from([*(code for _, code in hostile.CODE), *"\n\"'<&"])))
@settings(max_examples=300, deadline=None)
def test_highlight_keeps_every_character_and_adds_only_its_classes(language, parts):
    code = "".join(parts)

    html = highlight(code, language)

    assert unescape(TAG.sub("", html)) == code
    assert {name for name in TAG.findall(html) if name} <= CLASSES
    assert "<" not in TAG.sub("", html)


# The colours


def colours(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", css))


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.2."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def themes(name: str) -> list[dict[str, str]]:
    light, dark = (BASE_DIR / "static/annotate" / name).read_text().split("prefers-color-scheme: dark")
    return [colours(light), colours(dark)]


def test_contrast_of_black_on_white():
    assert contrast("#000000", "#ffffff") == 21


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_code_is_readable_in_both_themes(theme):
    background = themes("site.css")[theme]["raised"]

    faint = {
        name: contrast(colour, background)
        for name, colour in themes("highlight.css")[theme].items()
        if contrast(colour, background) < 4.5
    }

    assert faint == {}


def test_each_class_has_its_colour():
    css = (BASE_DIR / "static/annotate/highlight.css").read_text()
    light, dark = themes("highlight.css")

    assert set(re.findall(r"\.text pre \.(\w+)", css)) == CLASSES
    assert set(light) == set(dark) == set(re.findall(r"var\(--([\w-]+)\)", css))
