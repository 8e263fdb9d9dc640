import re

from django.template import Context, Template

from tests.annotate.test_rendering import Seen

DIFF = Template('{% load rendering %}{% diff left right "A" "B" %}')


def show(left: str, right: str) -> str:
    return DIFF.render(Context({"left": left, "right": right}))


def texts(html: str) -> list[str]:
    return re.findall(r'<div class="diff-text">(.*?)</div>', html, re.DOTALL)


def test_diff_marks_what_only_one_side_has_by_element_and_in_words():
    html = show("Boil the water\nnow.", "Boil the milk\nnow.")

    before, after = '<span class="visually-hidden">Only here: </span>', '<span class="visually-hidden"> (end)</span>'
    assert texts(html) == [
        f"Boil the <del>{before}water\n{after}</del>now.",
        f"Boil the <ins>{before}milk\n{after}</ins>now.",
    ]
    assert re.findall("<h3>(.)</h3>", html) == ["A", "B"]
    assert "70 % of both is the same." in html


def test_diff_says_how_it_compared():
    assert "These texts are too long to compare." in show("a " * 100_000, "b\n" * 100_000)
    assert "Compared line by line, for the texts are long: 0 %" in show("a " * 6_000, "b " * 6_000)


def test_diff_shows_html_as_the_text_it_is():
    html = show("<img src=x onerror=alert(1)>", "</div><script>alert(1)</script>")

    assert {tag for tag, _ in Seen(re.sub("<!--.*?-->", "", html)).tags} == {
        *("div", "section", "h3", "p", "del", "ins", "span")
    }
