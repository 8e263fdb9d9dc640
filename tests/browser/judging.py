"""What tests of the judging page share: real comparisons, and how an annotator moves through them."""

import itertools
import re
import time
from typing import Any

from playwright.sync_api import Page, expect

from annotate.models import Comparison, Judgment, Project
from tests import factories

PANCAKES = """Here is a simple way to make **pancakes** for two:

1. Whisk 150 g flour, 1 tsp baking powder and a pinch of salt.
2. Add 1 egg and 200 ml milk; stir until *just* smooth.
3. Fry ladlefuls in a little butter, 2 minutes each side.

Serve warm with berries. Leftovers keep for a day in the fridge."""
HEALTHY = "Oats, berries, spinach, quinoa and chia seeds are all healthy choices. Mix them as you like!"
CUPS = "For 2:\n\n- 1 cup flour\n- 1 cup milk\n- 1 egg\n\nMix and fry on medium heat; flip once bubbles show."
WRONG = "Mix 900 g flour with 50 ml milk and fry for an hour.\n\n```python\nfry(minutes=60)\n```"
ANSWERS = (PANCAKES, HEALTHY, CUPS, WRONG)
LONG = "\n\n".join(f"Paragraph {number} of a long answer that nobody reads to its end." for number in range(1, 61))
LETTERS = "ABCDEFGHIJKL"
SUBMIT = re.compile(r"/comparisons/\d+/$")
LAPTOP = {"width": 1366, "height": 768}
PHONE = {"width": 360, "height": 740}
_numbers = itertools.count(1)


def make_pair(project: Project, contents: tuple[str, str] = (PANCAKES, HEALTHY)) -> Comparison:
    messages = [
        {"role": "user", "content": "How do I make pancakes?"},
        {"role": "assistant", "content": "For how many people?"},
        {"role": "user", "content": f"For two, please. I have *no scales*. ({next(_numbers)})"},
    ]
    prompt = factories.make_prompt(project=project, messages=messages)
    return factories.make_comparison(prompt=prompt, contents=contents)


def make_list(project: Project, contents: tuple[str, ...] = ANSWERS) -> Comparison:
    return factories.make_comparison(prompt=factories.make_prompt(project=project), contents=contents)


def expect_ready(page: Page) -> None:
    """A comparison takes no answer in its first moments: nobody can have read it."""
    expect(page.locator("#comparison[data-ready]")).to_be_visible()


def expect_done(page: Page) -> None:
    expect(page.get_by_role("heading", name="All done for now")).to_be_visible()


def expect_saved(page: Page, number: int) -> None:
    """Nothing is on its way any more, and so many comparisons are judged."""
    wait_until(page, NOTHING_UNSENT)
    assert Judgment.objects.filter(aspect="overall").count() == number


def wait_until(page: Page, condition: str, argument: Any = None) -> None:
    """Until the script's expression is true. (Playwright's own way needs `eval`, which the page's policy forbids.)"""
    deadline = time.monotonic() + 30
    while not page.evaluate(condition, argument):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(30)


NOTHING_UNSENT = "!Object.keys(localStorage).some((key) => key.startsWith('plumbline-outbox-'))"


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def order(judgment: Judgment, *groups: str) -> list[list[int]]:
    """The ranking of these letters on the annotator's page: `order(judgment, "B", "AC")`."""
    return [[judgment.shown_order[LETTERS.index(letter)] for letter in group] for group in groups]


def ranking(judgment: Judgment) -> list[list[int]]:
    """With ties in the order shown."""
    return [sorted(group, key=judgment.shown_order.index) for group in judgment.ranking]


def assert_fits(page: Page) -> None:
    """Nothing has to be scrolled sideways, and every text has the contrast that WCAG AA asks for."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(LOW_CONTRAST) == []


LOW_CONTRAST = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const channel = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const background = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!hasText || !element.checkVisibility() || element.closest(".visually-hidden, .skip-link")) continue;
    const style = getComputedStyle(element);
    const opacity = Number(style.opacity);
    const back = background(element);
    const front = parse(style.color).slice(0, 3).map((value, i) => value * opacity + back[i] * (1 - opacity));
    const [light, dark] = [luminance(front), luminance(back)].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    const isLarge = parseFloat(style.fontSize) >= 24;
    if (ratio < (isLarge ? 3 : 4.5)) low.push(`${element.tagName} ${element.textContent.trim()} ${ratio.toFixed(2)}`);
  }
  return low;
}"""
