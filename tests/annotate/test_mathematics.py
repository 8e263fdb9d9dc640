import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotate import mathematics
from annotate.mathematics import ATTRIBUTES, CLASSES, MAX_TEX, TAGS, to_mathml
from annotate.rendering import render_markdown
from tests.annotate import hostile
from tests.annotate.test_rendering import Seen

X = "<math><mrow><mi>x</mi></mrow></math>"


@pytest.mark.parametrize(
    ("tex", "inner"),
    [
        (r"\frac12", "<mfrac><mn>1</mn><mn>2</mn></mfrac>"),
        (r"x_i^2", "<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup>"),
        (r"a < b", "<mi>a</mi><mo>&lt;</mo><mi>b</mi>"),
        (r"\text{if } x", "<mtext>if\u00a0</mtext><mi>x</mi>"),
        (r"\boxed{42}", '<mrow class="boxed"><mrow><mn>42</mn></mrow></mrow>'),
        (r"\cancel{x}", '<mrow class="struck"><mrow><mi>x</mi></mrow></mrow>'),
        (r"\mathbf{Ab1}", "<mrow><mi>\U0001d400</mi><mi>\U0001d41b</mi><mn>\U0001d7cf</mn></mrow>"),
        (r"\mathbb{RC}", "<mrow><mi>\u211d</mi><mi>\u2102</mi></mrow>"),
        (r"\mathfrak{ZA}", "<mrow><mi>\u2128</mi><mi>\U0001d504</mi></mrow>"),
        (r"\boldsymbol{\alpha}", "<mrow><mi>\U0001d736</mi></mrow>"),
        (
            r"\begin{aligned}a&=b\end{aligned}",
            '<mtable displaystyle="true"><mtr><mtd class="right"><mi>a</mi></mtd>'
            '<mtd class="left"><mi></mi><mo>=</mo><mi>b</mi></mtd></mtr></mtable>',
        ),
        (r"\color{red}x", "<mstyle><mi>x</mi></mstyle>"),
        (r"\text{&lt;b&#x3c;}", "<mtext>&amp;lt;b&lt;</mtext>"),
    ],
)
def test_to_mathml(tex, inner):
    assert to_mathml(tex) == f"<math><mrow>{inner}</mrow></math>"


def test_to_mathml_of_a_formula_by_itself():
    assert to_mathml("x", is_block=True) == '<math display="block"><mrow><mi>x</mi></mrow></math>'


@pytest.mark.parametrize(
    "tex",
    [
        *(
            r"\frac{1}{",
            "}{",
            "x^",
            r"\foo{x}",
            r"\begin{nosuch}a&b\end{nosuch}",
            "a & b",
            r"\href{https://a.example}{x}",
        ),
        *(
            r"\style{color:red}{x}",
            r"\newcommand{\a}{x}\a",
            r"\def\a{x}\a",
            r"\phantom{x}",
            "5% of x",
            r"\rule{9em}{9em}",
        ),
        *("x" * (MAX_TEX + 1), "{" * 500 + "x" + "}" * 500, r"\sqrt" * 100 + "x", "x" * 2_000),
    ],
    ids=lambda tex: tex[:20],
)
def test_to_mathml_refuses(tex):
    assert to_mathml(tex) is None


@pytest.mark.parametrize(
    "text",
    [
        *(
            "$5 and $10",
            "it costs $5.",
            "$5/month or $6",
            "US$5 and A$6",
            "$100k\u2013$200k",
            "$5 for the cake, 3$ for tea",
        ),
        *("$ x $", "$HOME and $PATH", "$HOME$PATH", "$", "$$", "$$$$", "$$ $$", "$$x", "$x", "a $b c\nd$ e"),
        *(r"\(see above, please\)", r"\[sic\]", r"\[1\]", r"\(", r"\[", r"\\(x\\)", r"\$x\$", "`$x$`", "    $x$"),
    ],
)
def test_what_is_not_mathematics(text):
    assert "math" not in render_markdown(text)


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("$x$", f"<p>{X}</p>\n"),
        (r"\(x\)", f"<p>{X}</p>\n"),
        ("the $n$th", "<p>the <math><mrow><mi>n</mi></mrow></math>th</p>\n"),
        (r"$\$5$", "<p><math><mrow><mi>$</mi><mn>5</mn></mrow></math></p>\n"),
        ("a $$x$$ b", '<p>a <math display="block"><mrow><mi>x</mi></mrow></math> b</p>\n'),
        ("$$\nx\n$$", '<p class="mathematics"><math display="block"><mrow><mi>x</mi></mrow></math></p>\n'),
        (
            "a:\n\\[\nx\n=1\\]\nb",
            '<p>a:</p>\n<p class="mathematics"><math display="block">'
            "<mrow><mi>x</mi><mo>=</mo><mn>1</mn></mrow></math></p>\n<p>b</p>\n",
        ),
        (
            "- $$x$$\n- y",
            '<ul dir="auto">\n<li>\n<p class="mathematics"><math display="block"><mrow><mi>x</mi></mrow></math></p>\n'
            "</li>\n<li>y</li>\n</ul>\n",
        ),
        (r"$\foo{<b>}$", "<p><code>$\\foo{&lt;b&gt;}$</code></p>\n"),
        ("$$\n\\foo\n$$", '<p class="mathematics"><code>$$\n\\foo\n$$</code></p>\n'),
        ("*a $b*c$ d*", "<p><em>a <math><mrow><mi>b</mi><mo>*</mo><mi>c</mi></mrow></math> d</em></p>\n"),
    ],
)
def test_mathematics_in_markdown(text, html):
    assert render_markdown(text) == html


def test_the_keyboard_reaches_a_formula_that_may_be_too_wide():
    wide = render_markdown(f"$$\n{'+'.join('x' * 40)}\n$$")

    assert wide.startswith('<p class="mathematics" tabindex="0"><math display="block">')


def test_formulas_beyond_what_one_text_may_hold_stay_text(monkeypatch):
    monkeypatch.setattr(mathematics, "MAX_ALL_TEX", 2)

    assert render_markdown("$x$ $y$ $z$.") == (
        "<p><math><mrow><mi>x</mi></mrow></math> <math><mrow><mi>y</mi></mrow></math> $z$.</p>\n"
    )


def is_listed(tag: str, attributes: dict[str, str | None]) -> bool:
    classes = CLASSES.get(tag, set())
    listed = ATTRIBUTES.get(tag, {})
    return tag in TAGS and all(
        value in (classes if name == "class" else listed.get(name, ())) for name, value in attributes.items()
    )


@given(
    st.lists(st.sampled_from([*hostile.MATHEMATICS, *r"\{}_^&$<>\"'%#~ a1+", r"\text{", r"\begin{array}", r"\left"]))
)
@settings(max_examples=500, deadline=None)
def test_to_mathml_writes_nothing_but_what_is_listed(parts):
    seen = Seen(to_mathml("".join(parts)) or "")

    assert [tag for tag in seen.tags if not is_listed(*tag)] == []


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_to_mathml_takes_any_text(tex):
    to_mathml(tex)
