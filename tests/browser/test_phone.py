"""Judging with a finger on a small screen."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, CDPSession, Page, expect

from annotate.models import Judgment
from tests import factories
from tests.browser.conftest import assert_accessible, opened
from tests.browser.judging import (
    ANSWERS,
    LONG,
    PHONE,
    assert_fits,
    expect_done,
    expect_ready,
    expect_saved,
    make_list,
    make_pair,
    order,
    ranking,
)

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
SMALLEST_TARGET = 44  # CSS pixels; WCAG 2.2 AA asks for 24


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A phone: small, touched, without a keyboard."""
    with opened(browser, viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2) as page:
        yield page


@pytest.fixture
def project():
    return factories.make_project(name="Cooking questions", guidelines="Length is no merit.", mirror_share=0)


def test_judge_a_pair_by_touch(page, start, shoot, project):
    make_pair(project)
    start()
    shoot("touch-pair")

    page.get_by_role("button", name="B slightly better").tap()

    expect_done(page)
    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    assert (ranking(judgment), judgment.strength) == (order(judgment, "B", "A"), 1)


def test_rank_a_list_by_tapping_places(page, start, shoot, project):
    make_list(project)
    start()

    for letter, place in (("A", "3"), ("B", "1"), ("C", "3"), ("D", "2"), ("D", "Bad")):
        button = page.get_by_role("group", name=f"Where to put {letter}").get_by_role("button", name=place)
        button.tap()
        expect(button).to_have_attribute("aria-pressed", "true")
    shoot("touch-list")
    assert_accessible(page)
    page.get_by_role("button", name="Submit").tap()

    expect_done(page)
    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    assert ranking(judgment) == order(judgment, "B", "AC", "D")
    assert judgment.bad == [judgment.shown_order[3]]


def test_rank_a_list_by_dragging_with_a_finger(page, start, shoot, project):
    make_list(project)
    start()
    finger = page.context.new_cdp_session(page)

    for letter, place in (("C", "1"), ("A", "2"), ("D", "2"), ("B", "4")):
        drag(page, finger, letter, place)
        expect(page.locator(f'.slot[data-place="{place}"] [data-chip={letter}]')).to_be_visible()
    page.locator("[data-board]").scroll_into_view_if_needed()
    shoot("touch-board")
    page.get_by_role("button", name="Submit").tap()

    expect_done(page)
    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    assert ranking(judgment) == order(judgment, "C", "AD", "B")


def drag(page: Page, finger: CDPSession, letter: str, place: str) -> None:
    """Playwright has taps only, so the browser is told of each touch."""
    chip, slot = page.locator(f"[data-chip={letter}]"), page.locator(f'.slot[data-place="{place}"]')
    chip.evaluate("(chip) => chip.closest('[data-board]').scrollIntoView({block: 'start'})")
    start, end = chip.bounding_box(), slot.bounding_box()
    from_x, from_y = start["x"] + 14, start["y"] + start["height"] / 2
    to_x, to_y = end["x"] + end["width"] / 3, end["y"] + end["height"] / 2
    touch(finger, "touchStart", from_x, from_y)
    for step in range(1, 13):
        share = step / 12
        touch(finger, "touchMove", from_x + (to_x - from_x) * share, from_y + (to_y - from_y) * share)
        page.wait_for_timeout(10)
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def touch(finger: CDPSession, kind: str, x: float, y: float) -> None:
    finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})


def test_targets_are_large_enough_for_a_finger(page, start, project):
    make_pair(project)
    make_list(project, (*ANSWERS, LONG))
    start()
    small = {"pair": small_targets(page)}
    page.get_by_role("button", name="Tie").tap()
    expect(page.get_by_role("heading", name="Put the 5 responses in order")).to_be_visible()
    expect_ready(page)
    small["list"] = small_targets(page)

    assert small == {"pair": [], "list": []}
    assert_fits(page)


def small_targets(page: Page) -> list[str]:
    return page.evaluate(
        """(least) => [...document.querySelectorAll("main :is(button, select, summary, textarea, input)")]
          .filter((target) => target.checkVisibility())
          .map((target) => [target.closest("label") ?? target, target])
          .filter(([area]) => area.getBoundingClientRect().height < least)
          .map(([, target]) => target.outerHTML.slice(0, 120))""",
        SMALLEST_TARGET,
    )


def test_long_answers_are_cut_and_shown_whole_by_one_tap(page, start, shoot, project):
    make_list(project, (LONG, "Short.", LONG[:900]))
    start()
    heights = "[...document.querySelectorAll('[data-text]')].map((text) => text.clientHeight)"
    cut = page.evaluate(heights)
    shoot("touch-list-cut")

    page.get_by_role("button", name="Show answers whole").tap()

    whole = page.evaluate(heights)
    assert max(cut) == 320
    assert max(whole) > 2000
    assert min(whole) == min(cut) < 100
