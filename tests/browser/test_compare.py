"""Annotators at work in a real browser: every kind of question by key, by pointer and by touch; hostile text."""

import re

import pytest
from playwright.sync_api import Page, expect

from annotate.models import OVERALL, Aspect, Flag, Gold, Judgment, Lease, Project, Response, Revision, Skip
from tests import factories
from tests.annotate import hostile
from tests.browser.conftest import Shoot, assert_accessible, sign_in
from tests.browser.judging import (
    ANSWERS,
    CUPS,
    HEALTHY,
    LAPTOP,
    LONG,
    PANCAKES,
    PHONE,
    assert_fits,
    expect_done,
    expect_ready,
    expect_saved,
    make_list,
    make_pair,
    order,
    press,
    ranking,
    wait_until,
)

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def project():
    return factories.make_project(
        name="Cooking questions",
        description="Which answer would you rather cook from?",
        guidelines="Prefer **clear steps**, safe advice and the right number of servings. Length is no merit.",
        mirror_share=0,
    )


# Pairs


def test_judge_a_pair_by_key(page, start, project):
    make_pair(project)
    other = make_pair(factories.make_project(is_open=False))  # never shown
    listed = make_list(project)
    start()

    press(page, "4")

    expect(page.get_by_role("heading", name="Put the 4 responses in order")).to_be_focused()
    expect(page.locator("#announcer")).to_have_text("Put the 4 responses in order")
    expect(page.locator("[data-saving]")).to_have_text("Saved")
    expect(page).to_have_url(re.compile(f"/comparisons/{listed.pk}/$"))
    judgment = Judgment.objects.get()
    assert (ranking(judgment), judgment.strength, judgment.source) == (order(judgment, "B", "A"), 1, "browser")
    assert (judgment.placement, judgment.aspect) == ("placed", OVERALL)
    assert 0.4 < judgment.seconds <= judgment.total_seconds < 60
    assert not Lease.objects.filter(comparison=other).exists()


@pytest.mark.slow
def test_judge_twenty_pairs_by_keyboard_alone(page, start, project):
    comparisons = [make_pair(project) for _ in range(20)]
    start()
    page.evaluate("window.isSamePage = true")
    keys = "12345012345054321023"
    answers = {
        "1": ("A", "B", 2, False),
        "2": ("A", "B", 1, False),
        "3": ("AB", None, None, False),
        "4": ("B", "A", 1, False),
        "5": ("B", "A", 2, False),
        "0": ("AB", None, None, True),
    }

    for key in keys:
        expect_ready(page)
        press(page, key)

    expect_done(page)
    expect_saved(page, 20)
    assert page.evaluate("window.isSamePage")  # it was never loaded again
    judgments = list(Judgment.objects.order_by("pk"))
    assert [judgment.comparison for judgment in judgments] == comparisons
    for key, judgment in zip(keys, judgments, strict=True):
        first, second, strength, is_all_bad = answers[key]
        expected = order(judgment, *filter(None, (first, second)))
        assert (ranking(judgment), judgment.strength, judgment.is_all_bad) == (expected, strength, is_all_bad)
    assert (Lease.objects.count(), Skip.objects.count()) == (0, 0)


def test_judge_pairs_by_pointer(page, start, project):
    comparisons = [make_pair(project) for _ in range(3)]
    start()

    for button in ("A much better", "Both bad", "Tie"):
        expect_ready(page)
        page.get_by_role("button", name=button).click()

    expect(page.get_by_role("heading", name="All done for now")).to_be_focused()
    expect_saved(page, 3)
    found = Judgment.objects.order_by("pk").values_list("comparison", "strength", "is_all_bad")
    assert list(found) == [
        (comparisons[0].pk, 2, False),
        (comparisons[1].pk, None, True),
        (comparisons[2].pk, None, False),
    ]


def test_double_press_judges_once(page, start, project):
    make_pair(project)
    make_pair(project)
    start()

    page.get_by_role("button", name="Tie").dblclick()
    page.get_by_role("button", name="Tie").click()
    press(page, "1")

    expect(page.get_by_text("1 judged by you")).to_be_visible()
    expect_ready(page)
    expect_saved(page, 1)


def test_digits_count_by_their_place_on_a_french_keyboard(page, start, project):
    make_pair(project)
    start()

    page.evaluate(
        "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '(', code: 'Digit5', bubbles: true}))"
    )

    expect_done(page)
    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    assert (ranking(judgment), judgment.strength) == (order(judgment, "B", "A"), 2)


def test_aspects_of_a_pair_by_key(page, start, shoot, project):
    for position, name in enumerate(("helpfulness", "harmlessness")):
        Aspect.objects.create(project=project, name=name, text=f"What is {name}?", position=position)
    make_pair(project)
    start()

    press(page, "4")
    expect(page.get_by_role("button", name="B slightly better")).to_have_attribute("aria-pressed", "true")
    press(page, "Enter")
    expect(page.get_by_role("alert")).to_have_text("To answer: helpfulness, harmlessness.")
    press(page, "3", "1")
    shoot("pair-aspects")
    press(page, "a", "5", "Enter")  # from the last aspect round to the whole

    expect_done(page)
    expect_saved(page, 1)
    judgments = {judgment.aspect: judgment for judgment in Judgment.objects.all()}
    found = {aspect: (ranking(judgment), judgment.strength) for aspect, judgment in judgments.items()}
    judgment = judgments[OVERALL]
    assert found == {
        OVERALL: (order(judgment, "B", "A"), 2),
        "helpfulness": (order(judgment, "AB"), None),
        "harmlessness": (order(judgment, "A", "B"), 2),
    }


# Lists


def test_judge_a_list_by_digits_alone(page, start, shoot, project):
    """Without a card in focus, each digit places the next response that has no place."""
    make_list(project)
    start()

    press(page, "2")
    expect(page.locator(".is-current")).to_have_attribute("data-card", "B")
    press(page, "4", "u")
    expect(page.locator("#announcer")).to_have_text("Response B: not placed. 3 to go.")
    expect(page.locator(".is-current")).to_have_attribute("data-card", "B")
    press(page, "1", "1")
    expect(page.locator("#announcer")).to_have_text("Response C: place 1. 1 to go.")
    press(page, "Enter")
    expect(page.get_by_role("alert")).to_have_text("3 of 4 placed. To place: D.")
    press(page, "9")  # there is no such place
    press(page, "b")
    expect(page.get_by_text("All are placed.", exact=True)).to_be_visible()
    shoot("list-placed")
    press(page, "Enter")

    expect_done(page)
    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    assert ranking(judgment) == order(judgment, "BC", "A", "D")
    assert (judgment.bad, judgment.is_all_bad) == ([judgment.shown_order[3]], False)


def test_judge_a_list_by_moving_from_card_to_card(page, start, project):
    """A card in focus keeps it when it is placed, and can be placed again."""
    make_list(project)
    start()

    press(page, "j", "3", "4", "ArrowRight", "1", "j", "2")
    page.get_by_label("Place of C").focus()
    press(page, "3")  # the browser's own way to choose in a list
    expect(page.locator("#announcer")).to_have_text("Response C: place 3. 1 to go.")
    page.locator("[data-card=C]").focus()
    press(page, "u")
    expect(page.locator("[data-card=C]")).to_be_focused()
    expect(page.get_by_label("Place of C")).to_have_value("2")
    press(page, "j", "1", "k", "k", "Enter")

    expect_done(page)
    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    assert ranking(judgment) == order(judgment, "BD", "C", "A")


def test_twelve_responses_have_keys_for_twelve_places(page, start, project):
    make_list(project, tuple(f"Answer number {number}." for number in range(12)))
    start()

    press(page, "Shift+Digit2", "Shift+Digit1", "Shift+Digit0", "9", "8", "7", "6", "5", "4", "3", "2", "1", "Enter")

    expect_done(page)
    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    assert ranking(judgment) == order(judgment, *reversed("ABCDEFGHIJKL"))


def test_judge_a_list_by_dragging(page, start, shoot, project):
    make_list(project)
    start()

    for letter, place in (("C", "1"), ("A", "3"), ("B", "3"), ("D", "1"), ("D", "bad")):
        drag(page, letter, place)
        expect(page.locator(f"[data-card={letter}] select")).to_have_value(place)
    shoot("list-dragged")
    page.get_by_role("button", name="Submit").click()

    expect_done(page)
    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    assert ranking(judgment) == order(judgment, "C", "AB", "D")
    assert judgment.bad == [judgment.shown_order[3]]


def drag(page: Page, letter: str, place: str) -> None:
    chip, slot = page.locator(f"[data-chip={letter}]"), page.locator(f'.slot[data-place="{place}"]')
    chip.scroll_into_view_if_needed()
    start, end = chip.bounding_box(), slot.bounding_box()
    page.mouse.move(start["x"] + 12, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(start["x"] + 16, start["y"] + start["height"] / 2 + 4, steps=3)
    page.mouse.move(end["x"] + end["width"] / 3, end["y"] + end["height"] / 2, steps=12)
    page.mouse.up()


def test_the_order_shown_is_no_answer_unless_it_is_confirmed(page, start, project):
    make_list(project)
    start()

    press(page, "Enter")
    expect(page.get_by_role("alert")).to_have_text("0 of 4 placed. To place: A, B, C, D.")
    press(page, "3")
    expect(page.get_by_role("button", name="The order shown is right")).to_be_hidden()
    press(page, "c")
    expect(page.locator("#announcer")).to_have_text("Some are placed already: undo that first.")
    press(page, "u", "c")

    expect_done(page)
    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    assert (ranking(judgment), judgment.placement) == (order(judgment, *"ABCD"), "confirmed")


def test_selects_and_chips_agree(page, start, project):
    make_list(project)
    start()

    page.get_by_label("Place of C").select_option("2")
    expect(page.locator('.slot[data-place="2"]')).to_contain_text("C")
    press(page, "Escape", "u")

    expect(page.locator('.slot[data-place=""] [data-chip=C]')).to_be_visible()
    expect(page.get_by_label("Place of C")).to_have_value("")


def test_aspects_of_a_list_by_key(page, start, project):
    Aspect.objects.create(project=project, name="harmlessness", text="Nobody is hurt.")
    make_list(project, ANSWERS[:3])
    start()

    press(page, *"123", *"221", "Enter")

    expect_done(page)
    expect_saved(page, 1)
    found = {judgment.aspect: judgment for judgment in Judgment.objects.all()}
    overall = found[OVERALL]
    assert {aspect: ranking(judgment) for aspect, judgment in found.items()} == {
        OVERALL: order(overall, *"ABC"),
        "harmlessness": order(overall, "C", "AB"),
    }


# Best of K, ratings


def test_choose_the_best_by_digit_letter_or_none(page, start, shoot, project):
    project.kind = Project.Kind.BEST
    project.save()
    for _ in range(3):
        make_list(project, ANSWERS[:3])
    start()
    shoot("best")

    for key in ("2", "Shift+C", "0"):
        expect_ready(page)
        press(page, key)

    expect_done(page)
    expect_saved(page, 3)
    first, second, third = Judgment.objects.order_by("pk")
    assert ranking(first) == order(first, "B", "AC")
    assert ranking(second) == order(second, "C", "AB")
    assert (ranking(third), third.is_all_bad) == (order(third, "ABC"), True)


def test_rate_by_digits_and_undo(page, start, shoot, project):
    project.kind = Project.Kind.RATING
    project.save()
    make_list(project, ANSWERS[:3])
    start()

    press(page, "5", "1", "u", "3")
    expect(page.locator("#announcer")).to_have_text("Response B: rated 3. 1 to go.")
    press(page, "Enter")
    expect(page.get_by_role("alert")).to_have_text("2 of 3 rated. To rate: C.")
    press(page, "7", "5")
    shoot("rating")
    press(page, "Enter")

    expect_done(page)
    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    assert ranking(judgment) == order(judgment, "AC", "B")
    assert [judgment.ratings[str(pk)] for pk in judgment.shown_order] == [5, 3, 5]


# Dialogs, keys, display


def test_skip_with_a_reason_by_key(page, start, shoot, project):
    make_pair(project)
    start()

    press(page, "s")
    expect(page.get_by_role("dialog")).to_be_visible()
    shoot("skip-dialog")
    assert_accessible(page)
    page.get_by_role("dialog").get_by_role("textbox").focus()
    page.keyboard.type("2 or 3 eggs?")  # digits in a text choose nothing
    press(page, "Shift+Tab", "1")

    expect_done(page)
    wait_until(page, "document.querySelector('#announcer').textContent.startsWith('Skipped.')")
    skip = Skip.objects.get()
    assert (skip.reason, skip.note) == ("expertise", "2 or 3 eggs?")
    assert not Judgment.objects.exists()


def test_flag_with_a_reason_by_key_and_judge_on(page, start, shoot, project):
    make_pair(project)
    start()

    press(page, "f", "3")
    expect(page.locator("#announcer")).to_have_text("Flagged. You can go on judging.")
    expect(page.get_by_role("dialog")).to_be_hidden()
    press(page, "3")

    expect_done(page)
    expect_saved(page, 1)
    assert Flag.objects.get().reason == "identity"


def test_help_shows_every_key_and_takes_none(page, start, shoot, project):
    make_pair(project)
    start()

    press(page, "?")
    expect(page.get_by_role("dialog")).to_be_visible()
    shoot("help")
    shown = page.locator("[data-keys] kbd").all_text_contents()
    press(page, "1")  # belongs to the dialog, judges nothing
    press(page, "Escape", "g")

    expect(page.get_by_text("Length is no merit.")).to_be_visible()
    assert shown == [*"123450", "J", "→", "K", "←", "U", "Z", "S", "F", "G", "D", "X", "Y", "H", "R", "E", "?"]
    assert not Judgment.objects.exists()


def test_keys_can_be_switched_off(page, start, project):
    make_pair(project)
    start()
    page.get_by_role("button", name="Keys").click()
    page.get_by_label("Use these keys").uncheck()
    page.get_by_role("button", name="Close").click()

    press(page, "1")
    page.reload()
    expect_ready(page)
    press(page, "1")

    expect(page.get_by_role("button", name="Tie", exact=True)).to_be_visible()  # without its key
    assert not Judgment.objects.exists()


def test_long_answers_are_cut_evenly_and_scroll_together(page, start, shoot, project):
    make_pair(project, (LONG, LONG[: len(LONG) // 2]))
    start()
    heights = "[...document.querySelectorAll('[data-text]')].map((text) => text.clientHeight)"
    first, second = page.locator("[data-text]").all()

    cut = page.evaluate(heights)
    first.hover()
    first.evaluate("(text) => text.scrollTo(0, (text.scrollHeight - text.clientHeight) / 2)")
    wait_until(
        page,
        "(text) => Math.abs(text.scrollTop / (text.scrollHeight - text.clientHeight) - 0.5) < 0.02",
        second.element_handle(),
    )
    shoot("pair-long")
    press(page, "y")
    first.evaluate("(text) => text.scrollTo(0, 0)")
    page.wait_for_timeout(100)
    apart = second.evaluate("(text) => text.scrollTop")
    press(page, "x")
    whole = page.evaluate(heights)
    page.reload()
    expect_ready(page)

    assert cut[0] == cut[1] < 600
    assert apart > 0
    assert min(whole) > 1000
    assert page.evaluate(heights) == whole  # as it was left


def test_difference_of_two_answers(page, start, shoot, project):
    make_pair(project, ("Whisk the eggs slowly.", "Whisk the eggs fast."))
    start()

    press(page, "d")

    expect(page.locator("[data-diff-view] ins")).to_have_count(1)
    assert sorted(page.locator("[data-diff-view] :is(ins, del)").all_text_contents()) == ["fast", "slowly"]
    shoot("diff")
    assert_accessible(page)
    press(page, "d")
    expect(page.locator("[data-diff-view]")).to_be_hidden()


def test_mark_a_passage_by_pointer(page, start, shoot, project):
    make_pair(project, ("Eggs fly south in winter.", "Eggs fly south in winter."))
    start()
    first = page.locator("[data-text]").first
    box = first.locator("p").bounding_box()
    page.mouse.dblclick(box["x"] + 12, box["y"] + box["height"] / 2)  # selects its first word

    page.get_by_role("button", name="Mark this passage").click()
    shoot("mark-dialog")
    assert_accessible(page)
    page.get_by_role("dialog").get_by_label("Or in your own words").fill("They do not")
    press(page, "Enter")
    shoot("marked")
    press(page, "1")

    expect_done(page)
    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    (highlight,) = judgment.highlights
    assert (highlight["start"], highlight["end"], highlight["text"].strip(), highlight["reason"]) == (
        0,
        len(highlight["text"]),
        "Eggs",
        "They do not",
    )
    assert highlight["response"] == judgment.shown_order[0]


def test_mark_sentences_by_keyboard_alone(page, start, project):
    make_pair(
        project, ("One is here. Two is **there**. Three is gone.", "One is here. Two is **there**. Three is gone.")
    )
    start()

    press(page, "j", "j", "h", "ArrowDown", "Shift+ArrowDown", "Enter")
    expect(page.get_by_role("dialog").locator("blockquote")).to_have_text("Two is there. Three is gone.")
    press(page, "2")
    expect(page.locator("#announcer")).to_have_text("Marked in B.")
    press(page, "h", "Enter", "1")
    press(page, "r")
    page.get_by_role("button", name="Remove the mark “One is here.”").click()
    page.locator("[data-heading]").focus()
    press(page, "2")

    expect_done(page)
    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    text = "Two is there. Three is gone."
    response = judgment.shown_order[1]
    assert judgment.highlights == [
        {"response": response, "start": 13, "end": 13 + len(text), "text": text, "reason": "Unclear"}
    ]


def test_say_why_and_write_a_better_answer(page, start, shoot, project):
    make_pair(project)
    start()

    press(page, "r")
    page.keyboard.type("2 steps are missing in 1.")
    press(page, "Escape", "e")
    page.keyboard.type("Mix, rest, fry.")
    shoot("extras")
    assert_accessible(page)
    press(page, "Escape", "2")

    expect_done(page)
    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    edited = Response.objects.get(author__isnull=False)
    assert judgment.rationale == "2 steps are missing in 1."
    assert (judgment.edited_response, edited.content) == (edited, "Mix, rest, fry.")
    assert ranking_with(judgment, edited) == [[edited.pk], *order(judgment, "A", "B")]


def ranking_with(judgment: Judgment, edited: Response) -> list[list[int]]:
    return [sorted(group, key=[edited.pk, *judgment.shown_order].index) for group in judgment.ranking]


def test_what_is_focused_is_never_behind_the_bar(page, start, project):
    make_list(project, (LONG, *ANSWERS))
    page.set_viewport_size({"width": 1100, "height": 560})
    start()

    hidden = []
    for _ in range(40):
        press(page, "Tab")
        hidden += page.evaluate(
            """() => {
              const at = document.activeElement, bar = document.querySelector(".bar");
              const isHidden = !bar.contains(at) && at.getBoundingClientRect().top >= bar.getBoundingClientRect().top;
              return isHidden && at !== document.body && !at.closest("footer") ? [at.outerHTML.slice(0, 80)] : [];
            }"""
        )

    assert hidden == []


def test_a_right_to_left_answer_reads_from_the_right(page, start, project):
    make_pair(project, ("البيض مع الدقيق والحليب.", "Eggs with flour and milk."))
    start()

    directions = page.evaluate(
        "[...document.querySelectorAll('[data-text]')].map((text) => getComputedStyle(text).direction)"
    )

    assert sorted(directions) == ["ltr", "rtl"]


def test_feedback_on_a_known_answer_stays_beside_the_next_comparison(page, start, shoot, project):
    project.gold_feedback, project.gold_rate = True, 1
    project.save()
    known = make_pair(project)
    known.is_gold = True
    known.save()
    ids = factories.response_ids(known)
    Gold.objects.create(
        comparison=known, project=project, ranking=[[pk] for pk in ids], explanation="Clear steps are **better**."
    )
    make_pair(project)
    start()

    press(page, "3")

    expect(page.locator("[data-notices]")).to_contain_text("Clear steps are better.")
    expect_ready(page)
    shoot("feedback")
    assert_accessible(page)
    page.get_by_role("button", name="Close this notice").click()
    expect(page.locator("[data-notices]")).to_be_empty()


# Going back


def test_undo_on_an_untouched_page_revises_the_last_judgment(page, start, shoot, project):
    first, second = make_pair(project), make_pair(project)
    start()
    press(page, "1")
    expect(page.get_by_text("1 judged by you")).to_be_visible()
    expect_ready(page)

    press(page, "u")
    expect(page.locator("#comparison[data-revising]")).to_be_visible()
    expect(page).to_have_url(re.compile(f"/comparisons/{first.pk}/$"))
    expect(page.get_by_role("button", name="A much better")).to_have_attribute("aria-pressed", "true")
    expect_ready(page)
    shoot("revise")
    assert_accessible(page)
    press(page, "4")

    expect(page).to_have_url(re.compile(f"/comparisons/{second.pk}/$"))
    expect(page.get_by_text("1 judged by you")).to_be_visible()
    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    assert (ranking(judgment), judgment.strength, judgment.num_revisions) == (order(judgment, "B", "A"), 1, 1)
    assert Revision.objects.get().values["strength"] == 2


def test_go_back_twice_and_on_again_without_a_change(page, start, project):
    comparisons = [make_pair(project) for _ in range(3)]
    start()
    for key in "12":
        press(page, key)
        expect_ready(page)
    expect_saved(page, 2)

    visited = []
    for key in "zzn":
        before = page.url
        press(page, key)
        page.wait_for_url(lambda url, before=before: url != before)
        expect_ready(page)
        visited.append(int(re.search(r"(\d+)/$", page.url)[1]))

    assert visited == [comparisons[1].pk, comparisons[0].pk, comparisons[2].pk]
    assert [judgment.num_revisions for judgment in Judgment.objects.all()] == [0, 0]


def test_the_browsers_back_button_revises_too(page, start, project):
    make_pair(project)
    make_pair(project)
    start()
    press(page, "1")
    expect(page.get_by_text("1 judged by you")).to_be_visible()
    expect_saved(page, 1)

    page.go_back()

    expect(page.locator("#comparison[data-revising]")).to_be_visible()


# Without the script, with hostile text, on every screen


def test_judge_without_javascript(browser, live_server, project, annotator):
    make_pair(project)
    make_list(project)
    page = browser.new_context(java_script_enabled=False).new_page()
    sign_in(page, live_server.url)
    page.get_by_role("button", name="Start").click()

    page.get_by_role("button", name="B much better").click()
    for letter, place in zip("ABC", "212", strict=True):
        page.get_by_label(f"Place of {letter}").select_option(place)
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("Give a place to D.")).to_be_visible()
    page.get_by_label("Place of D").select_option("4")
    page.get_by_role("button", name="Submit").click()

    expect_done(page)
    pair, listed = Judgment.objects.order_by("pk")
    assert (ranking(pair), pair.strength) == (order(pair, "B", "A"), 2)
    assert ranking(listed) == order(listed, "B", "AC", "D")
    page.context.close()


def test_hostile_text_neither_acts_nor_reaches_out(page, start, project):
    attacks = [*hostile.HTML, *hostile.MARKDOWN]
    texts = ["\n\n".join(attacks[part::3]).replace("\ud800", "").replace("\0", "") for part in range(3)]
    prompt = factories.make_prompt(project=project, messages=[{"role": "user", "content": texts[0]}])
    comparison = factories.make_comparison(prompt=prompt, contents=tuple(texts))
    start()

    page.wait_for_timeout(300)

    harmful = ".text :is(script, form, input, button, img, [id], [hx-get])"
    assert page.locator(harmful).count() == 0
    boxes = page.evaluate(
        """[...document.querySelectorAll('.response')].map((card) => {
            const outer = card.getBoundingClientRect(), inner = card.querySelector('.text').getBoundingClientRect();
            return inner.left >= outer.left && inner.right <= outer.right;
        })"""
    )
    assert boxes == [True, True, True]
    press(page, *"312", "Enter")
    expect_done(page)
    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    assert (ranking(judgment), judgment.comparison) == (order(judgment, *"BCA"), comparison)


def make_every_kind(project: Project) -> None:
    """Four projects with the same guidelines and one comparison each: a pair, a list, best of three, ratings."""
    make_pair(project)
    make_list(project)
    for kind in (Project.Kind.BEST, Project.Kind.RATING):
        other = factories.make_project(name=f"Cooking: {kind}", kind=kind, guidelines=project.guidelines)
        make_list(other, (PANCAKES, HEALTHY, CUPS))


@pytest.mark.parametrize("screen", ["laptop-light", "laptop-dark", "phone-light", "phone-dark"])
def test_pages_fit_every_screen_and_axe_finds_nothing(page, start, shoot, project, screen):
    size, theme = screen.split("-")
    make_every_kind(project)
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size(PHONE if size == "phone" else LAPTOP)
    start("Cooking questions")

    look_at(page, shoot, f"pair-{screen}")
    press(page, "3")
    expect(page.get_by_role("heading", name="Put the 4 responses in order")).to_be_visible()
    expect_ready(page)
    look_at(page, shoot, f"list-{screen}")
    press(page, *"1234", "Enter")
    expect_done(page)
    look_at(page, shoot, f"done-{screen}")
    for kind in (Project.Kind.BEST, Project.Kind.RATING):
        page.get_by_role("link", name="Projects", exact=True).click()
        page.get_by_role("button", name=f"Start Cooking: {kind}").click()
        expect_ready(page)
        look_at(page, shoot, f"{kind}-{screen}")
    page.get_by_role("link", name="Projects", exact=True).click()
    look_at(page, shoot, f"projects-{screen}")
    page.get_by_role("button", name="Log out").click()
    look_at(page, shoot, f"login-{screen}")


def look_at(page: Page, shoot: Shoot, name: str) -> None:
    shoot(name)
    assert_fits(page)
    assert_accessible(page)
