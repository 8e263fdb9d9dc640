"""Annotators at work in a real browser: keys, dragging, the network failing, hostile text."""

import re

import pytest
from playwright.sync_api import Page, expect

from annotate.models import Judgment, Lease, Skip
from tests import factories
from tests.annotate import hostile
from tests.browser.conftest import assert_accessible

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

PANCAKES = """Here is a simple way to make **pancakes** for two:

1. Whisk 150 g flour, 1 tsp baking powder and a pinch of salt.
2. Add 1 egg and 200 ml milk; stir until *just* smooth.
3. Fry ladlefuls in a little butter, 2 minutes each side.

Serve warm with berries. Leftovers keep for a day in the fridge."""
HEALTHY = "Oats, berries, spinach, quinoa and chia seeds are all healthy choices. Mix them as you like!"
CUPS = "For 2:\n\n- 1 cup flour\n- 1 cup milk\n- 1 egg\n\nMix and fry on medium heat; flip once bubbles show."
WRONG = "Mix 900 g flour with 50 ml milk and fry for an hour.\n\n```python\nfry(minutes=60)\n```"
SUBMIT = re.compile(r"/comparisons/\d+/$")
PHONE = {"width": 390, "height": 844}


@pytest.fixture
def project():
    return factories.make_project(
        name="Cooking questions",
        description="Which answer would you rather cook from?",
        guidelines="Prefer **clear steps**, safe advice and the right number of servings. Length is no merit.",
    )


@pytest.fixture
def annotator():
    return factories.make_annotator(user=factories.make_user(username="amina"))


@pytest.fixture
def start(page: Page, live_server, annotator):
    """Sign in and start the only project."""

    def start():
        page.goto(live_server.url)
        page.get_by_label("Name").fill("amina")
        page.get_by_label("Password").fill("a long passphrase")
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("button", name="Start").click()
        expect_ready(page)

    return start


def make_pair(project):
    messages = [
        {"role": "user", "content": "How do I make pancakes?"},
        {"role": "assistant", "content": "For how many people?"},
        {"role": "user", "content": "For two, please. I have *no scales*."},
    ]
    prompt = factories.make_prompt(project=project, messages=messages)
    return factories.make_comparison(prompt=prompt, contents=(PANCAKES, HEALTHY))


def make_list(project, contents=(PANCAKES, HEALTHY, CUPS, WRONG)):
    prompt = factories.make_prompt(project=project)
    return factories.make_comparison(prompt=prompt, contents=contents)


def expect_ready(page: Page) -> None:
    """A comparison takes no answer in its first moments: nobody can have read it."""
    expect(page.locator("#comparison[data-ready]")).to_be_visible()


def order(*letters: str) -> list[list[int]]:
    """The only judgment's ranking is expected to be this, by the letters on the page: `order("B", "AC")`."""
    shown = Judgment.objects.get().shown_order
    return [sorted(shown["ABCDEF".index(letter)] for letter in group) for group in letters]


def ranking() -> list[list[int]]:
    return [sorted(group) for group in Judgment.objects.get().ranking]


def test_judge_a_pair_by_key(page, start, shoot, project):
    make_pair(project)
    second = make_pair(factories.make_project(is_open=False))  # never shown
    listed = make_list(project)
    start()
    shoot("pair")

    page.keyboard.press("4")

    expect(page.get_by_role("heading", name="Put the 4 responses in order")).to_be_focused()
    expect(page.get_by_role("status")).to_have_text("Saved. Put the 4 responses in order")
    expect(page).to_have_url(re.compile(f"/comparisons/{listed.pk}/$"))
    judgment = Judgment.objects.get()
    assert (ranking(), judgment.strength, judgment.source) == (order("B", "A"), 1, "browser")
    assert 0.4 < judgment.seconds < 60
    assert not Lease.objects.filter(comparison=second).exists()


def test_judge_pairs_without_reloading_the_page(page, start, project):
    comparisons = [make_pair(project), *(factories.make_comparison(project=project) for _ in range(2))]
    start()
    page.evaluate("window.isSamePage = true")

    for button in ("A strongly better", "Both bad", "Tie"):
        expect_ready(page)
        page.get_by_role("button", name=button).click()
        expect(page.get_by_role("status")).to_have_text(re.compile("Saved"))
        page.evaluate("document.getElementById('announcer').textContent = ''")

    expect(page.get_by_role("heading", name="All done for now")).to_be_focused()
    assert page.evaluate("window.isSamePage")
    found = Judgment.objects.order_by("pk").values_list("comparison", "strength", "is_all_bad")
    assert list(found) == [
        (comparisons[0].pk, 2, False),
        (comparisons[1].pk, None, True),
        (comparisons[2].pk, None, False),
    ]


def test_judge_a_list_by_digits_alone(page, start, shoot, project):
    """Without a card in focus, each digit places the next response that has no place."""
    make_list(project)
    start()

    page.keyboard.press("2")
    expect(page.locator(".is-current")).to_have_attribute("data-card", "B")
    page.keyboard.press("4")
    page.keyboard.press("u")
    expect(page.get_by_role("status")).to_have_text("Response B: not placed. 3 to place.")
    expect(page.locator(".is-current")).to_have_attribute("data-card", "B")
    page.keyboard.press("1")
    page.keyboard.press("1")
    expect(page.get_by_role("status")).to_have_text("Response C: place 1. 1 to place.")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("3 of 4 placed. To place: D.")
    page.keyboard.press("9")  # there is no such place
    page.keyboard.press("4")
    page.keyboard.press("n")
    shoot("list")
    page.keyboard.press("Enter")

    expect(page.get_by_role("heading", name="All done for now")).to_be_visible()
    assert (ranking(), Judgment.objects.get().is_all_bad) == (order("BC", "A", "D"), True)


def test_judge_a_list_by_moving_from_card_to_card(page, start, project):
    """A card in focus keeps it when it is placed, and can be placed again."""
    make_list(project)
    start()

    for key in ("j", "3", "4", "ArrowRight", "1", "j", "2", "Tab"):
        page.keyboard.press(key)
    expect(page.get_by_label("Place of C")).to_be_focused()
    page.keyboard.press("3")  # the browser's own way to choose in a list
    expect(page.get_by_role("status")).to_have_text("Response C: place 3. 1 to place.")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("u")
    expect(page.locator("[data-card=C]")).to_be_focused()
    expect(page.get_by_label("Place of C")).to_have_value("2")
    for key in ("j", "1", "k", "k", "Enter"):
        page.keyboard.press(key)

    expect(page.get_by_role("heading", name="All done for now")).to_be_visible()
    assert ranking() == order("BD", "C", "A")


def test_judge_a_list_by_dragging(page, start, shoot, project):
    make_list(project)
    start()

    for letter, place in (("C", 1), ("A", 3), ("B", 3), ("D", 1), ("D", 2)):
        drag(page, letter, place)
        expect(page.get_by_label(f"Place of {letter}")).to_have_value(str(place))
    shoot("list-dragged")
    page.get_by_role("button", name="Submit order").click()

    expect(page.get_by_role("heading", name="All done for now")).to_be_visible()
    assert (ranking(), Judgment.objects.get().is_all_bad) == (order("C", "D", "AB"), False)


def drag(page: Page, letter: str, place: int) -> None:
    chip, slot = page.locator(f"[data-chip={letter}]"), page.locator(f'.slot[data-place="{place}"]')
    chip.scroll_into_view_if_needed()
    start, end = chip.bounding_box(), slot.bounding_box()
    page.mouse.move(start["x"] + 12, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(start["x"] + 16, start["y"] + start["height"] / 2 + 4, steps=3)
    page.mouse.move(end["x"] + end["width"] / 3, end["y"] + end["height"] / 2, steps=12)
    page.mouse.up()


def test_judge_without_javascript(browser, live_server, project, annotator):
    make_pair(project)
    make_list(project)
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(live_server.url)
    page.get_by_label("Name").fill("amina")
    page.get_by_label("Password").fill("a long passphrase")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Start").click()

    page.get_by_role("button", name="B strongly better").click()
    for letter, place in zip("ABC", "212", strict=True):
        page.get_by_label(f"Place of {letter}").select_option(place)
    page.get_by_role("button", name="Submit order").click()
    expect(page.get_by_text("Give a place to D.")).to_be_visible()
    page.get_by_label("Place of D").select_option("4")
    page.get_by_role("button", name="Submit order").click()

    expect(page.get_by_role("heading", name="All done for now")).to_be_visible()
    pair, listed = Judgment.objects.order_by("pk")
    assert (pair.ranking, pair.strength) == ([[pk] for pk in reversed(pair.shown_order)], 2)
    first, second, third, fourth = listed.shown_order
    assert listed.ranking == [[second], [first, third], [fourth]]
    page.context.close()


def test_selects_and_chips_agree(page, start, project):
    make_list(project)
    start()

    page.get_by_label("Place of C").select_option("2")
    expect(page.locator('.slot[data-place="2"]')).to_contain_text("C")
    page.keyboard.press("Escape")
    page.locator("[data-heading]").click()
    page.keyboard.press("u")

    expect(page.locator('.slot[data-place=""] [data-chip=C]')).to_be_visible()
    expect(page.get_by_label("Place of C")).to_have_value("")


def test_what_was_placed_survives_a_reload_and_an_error(page, start, project):
    make_list(project)
    start()
    page.keyboard.press("3")
    page.keyboard.press("1")

    page.reload()
    expect(page.get_by_text("2 of 4 placed. To place: C, D.")).to_be_visible()
    expect_ready(page)
    page.get_by_role("button", name="Submit order").click()

    expect(page.get_by_text("Give a place to C, D.")).to_be_visible()
    expect(page.locator("[data-errors]")).to_be_focused()
    expect(page.get_by_text("2 of 4 placed. To place: C, D.")).to_be_visible()
    assert not Judgment.objects.exists()


def test_skip_by_key_and_help(page, start, shoot, project):
    make_pair(project)
    start()

    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("1")  # belongs to the dialog, judges nothing
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    expect(page.get_by_text("Length is no merit.")).to_be_visible()
    page.keyboard.press("s")

    expect(page.get_by_role("status")).to_have_text("Skipped. All done for now")
    assert (Skip.objects.count(), Judgment.objects.count()) == (1, 0)


def test_keys_can_be_switched_off(page, start, project):
    make_pair(project)
    start()
    page.get_by_role("button", name="Keys").click()
    page.get_by_label("Use these keys").uncheck()
    page.get_by_role("button", name="Close").click()

    page.keyboard.press("1")
    page.reload()
    expect_ready(page)
    page.keyboard.press("1")

    expect(page.get_by_role("button", name="Tie", exact=True)).to_be_visible()  # without its key
    assert not Judgment.objects.exists()


def test_double_click_judges_once(page, start, project):
    make_pair(project)
    factories.make_comparison(project=project)
    start()

    page.get_by_role("button", name="Tie").dblclick()
    page.get_by_role("button", name="Tie").click()

    expect(page.get_by_text("1 judged by you")).to_be_visible()
    expect_ready(page)
    assert Judgment.objects.count() == 1


def test_failing_network_keeps_the_answer(page, start, project, annotator):
    make_list(project)
    start()
    for digit in "2143":
        page.keyboard.press(digit)
    page.route(SUBMIT, lambda route: route.abort())
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text(
        "The server cannot be reached. Nothing is lost: what you entered is still here. Try again."
    )
    page.unroute(SUBMIT)
    page.route(SUBMIT, lambda route: route.fulfill(status=500))
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("The server met an error.")
    page.unroute(SUBMIT)

    page.keyboard.press("Enter")

    expect(page.get_by_role("heading", name="All done for now")).to_be_visible()
    assert ranking() == order("B", "A", "D", "C")
    expected = ("htmx:afterRequest", "htmx:sendError", "Failed to load resource", "Response Status Error Code 500")
    assert [
        complaint for complaint in page.complaints if not complaint.removeprefix("console: ").startswith(expected)
    ] == []
    page.complaints.clear()


def test_signed_out_in_another_tab(page, start, project, live_server):
    comparison = make_list(project)
    start()
    for digit in "2143":
        page.keyboard.press(digit)
    page.context.clear_cookies(name="sessionid")
    page.keyboard.press("Enter")

    page.get_by_label("Name").fill("amina")
    page.get_by_label("Password").fill("a long passphrase")
    page.get_by_role("button", name="Sign in").click()

    expect(page).to_have_url(f"{live_server.url}/comparisons/{comparison.pk}/")
    expect(page.get_by_text("All are placed.", exact=True)).to_be_visible()


def test_back_shows_that_it_was_judged(page, start, project):
    make_pair(project)
    factories.make_comparison(project=project)
    start()
    page.keyboard.press("1")
    expect(page.get_by_text("1 judged by you")).to_be_visible()

    page.go_back()

    expect(page.get_by_role("heading", name="Already judged")).to_be_visible()


def test_hostile_text_neither_acts_nor_reaches_out(page, start, project):
    attacks = [*hostile.HTML, *hostile.MARKDOWN]
    texts = ["\n\n".join(attacks[part::3]).replace("\ud800", "").replace("\0", "") for part in range(3)]
    prompt = factories.make_prompt(project=project, messages=[{"role": "user", "content": texts[0]}])
    comparison = factories.make_comparison(prompt=prompt, contents=tuple(texts))
    start()

    page.wait_for_timeout(300)

    assert (
        page.evaluate("document.querySelectorAll('.text :is(script, form, input, button, img, [id], [hx-get])').length")
        == 0
    )
    boxes = page.evaluate(
        """[...document.querySelectorAll('.response')].map((card) => {
            const outer = card.getBoundingClientRect(), inner = card.querySelector('.text').getBoundingClientRect();
            return inner.left >= outer.left && inner.right <= outer.right;
        })"""
    )
    assert boxes == [True, True, True]
    for digit in "312":
        page.keyboard.press(digit)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="All done for now")).to_be_visible()
    assert ranking() == order("B", "C", "A")
    assert Judgment.objects.get().comparison == comparison


@pytest.mark.parametrize("screen", ["laptop-light", "laptop-dark", "phone-light", "phone-dark"])
def test_pages_fit_every_screen(page, start, shoot, project, screen):
    size, theme = screen.split("-")
    make_pair(project)
    make_list(project)
    page.emulate_media(color_scheme=theme)
    if size == "phone":
        page.set_viewport_size(PHONE)
    start()
    assert_fits(page)
    shoot(f"pair-{screen}")

    page.get_by_role("button", name="Tie").click()
    page.get_by_role("heading", name="Put the 4 responses in order").wait_for()
    expect_ready(page)
    assert_fits(page)
    shoot(f"list-{screen}")
    page.get_by_role("link", name="Projects").click()
    assert_fits(page)
    shoot(f"projects-{screen}")
    page.get_by_role("button", name="Log out").click()
    assert_fits(page)
    shoot(f"login-{screen}")


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


@pytest.mark.parametrize("screen", ["laptop-light", "phone-dark"])
def test_axe_finds_nothing(page, start, project, screen):
    size, theme = screen.split("-")
    make_pair(project)
    make_list(project)
    page.emulate_media(color_scheme=theme)
    if size == "phone":
        page.set_viewport_size(PHONE)
    start()
    assert_accessible(page)
    page.get_by_role("button", name="Tie").click()
    page.get_by_role("heading", name="Put the 4 responses in order").wait_for()
    expect_ready(page)
    assert_accessible(page)
