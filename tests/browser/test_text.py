"""How texts look that are more than words: mathematics, code, tables, and scripts from all over the world."""

import pytest

from tests import factories
from tests.browser.conftest import LAPTOP, assert_accessible
from tests.browser.judging import PHONE, assert_fits, expect_ready, make_pair

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

MIXED = r"""The roots of $ax^2+bx+c=0$ with \(a \ne 0\):

\[ x_{1,2} = \frac{-b \pm \sqrt{b^2-4ac}}{2a}, \qquad \boxed{x \in \mathbb{R}} \]

$$\begin{aligned} \nabla \cdot \mathbf{E} &= \frac{\rho}{\varepsilon_0} \\ \nabla \cdot \mathbf{B} &= 0 \end{aligned}$$

$$ a_1 + a_2 + a_3 + a_4 + a_5 + a_6 + a_7 + a_8 + a_9 + a_{10} + a_{11} + a_{12} + a_{13} + a_{14} + a_{15}
+ a_{16} + a_{17} = 0 $$

\[ f(x) = \begin{cases} x & \text{if } x < 0 \\ \sum_{i=1}^{n} i^2 & \text{otherwise} \end{cases} \quad
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} \]

It costs $5 and $10, and $\foo{broken}$ stays as it is.

```python
@cached
def area(radius: float) -> float:
    "The area of a circle."
    return 3.14159 * radius ** 2  # not exact
```

```diff
- salt(1)
+ salt(2)
```
"""
WORLD = (
    """| step | what to do in it, told at length | minutes | temperature | tool | why | warning |
|---|---|---|---|---|---|---|
| boil | water, with plenty of salt | 8 | 100 | pot | heat | hotsteamhotsteamhotsteam |

مرحبا، هذه إجابة باللغة العربية مع كلمة English في الوسط.

- עברית בתוך רשימה
- English in the same list

这是一个很长的中文句子。用来看看浏览器在没有空格的情况下如何换行。标点符号又会落在哪里。这样就能确定它不会超出自己的框。

これは日本語の文章です。ไทยก็ไม่มีช่องว่างระหว่างคำ

"""
    + "unbroken" * 40
)


@pytest.fixture
def texts(start):
    project = factories.make_project(name="Texts")
    make_pair(project, (MIXED, WORLD))
    start()


DIRECTIONS = """() => [...document.querySelectorAll(".response .text :is(p, li)")].map((block) => {
  const range = document.createRange();
  range.selectNodeContents(block);
  const words = range.getBoundingClientRect();
  const { left, right } = block.getBoundingClientRect();
  return [block.textContent.slice(0, 5), words.left - left > right - words.right + 20 ? "right" : "left"];
})"""
TOO_WIDE = """() => [...document.querySelectorAll(".response .text > *")]
  .filter((block) => block.getBoundingClientRect().right > block.parentElement.getBoundingClientRect().right + 1)
  .map((block) => block.textContent.slice(0, 40))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_of_all_kinds(page, texts, shoot, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": LAPTOP["width"], "height": 2_400})

    shoot(f"text-{scheme}")

    directions = dict(page.evaluate(DIRECTIONS))
    assert {start: directions[start] for start in ("مرحبا", "עברית", "Engli", "unbro")} == {
        "مرحبا": "right",
        "עברית": "right",
        "Engli": "left",
        "unbro": "left",
    }
    assert page.evaluate(TOO_WIDE) == []
    assert_fits(page)
    assert_accessible(page)


def test_texts_of_all_kinds_on_a_phone(page, texts, shoot):
    page.set_viewport_size(PHONE)
    page.reload()
    expect_ready(page)

    shoot("text-phone")

    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
