"""Nothing an annotator has judged or written gets lost, and nothing is stored twice, whatever the network does."""

import re
import time

import pytest
from django.utils import timezone
from playwright.sync_api import Page, Route, expect

from annotate.models import Draft, Judgment, Lease, Skip
from tests import factories
from tests.browser.conftest import sign_in
from tests.browser.judging import (
    ANSWERS,
    NOTHING_UNSENT,
    SUBMIT,
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
EXPECTED = ("console: Failed to load resource",)


@pytest.fixture
def project():
    return factories.make_project(name="Cooking questions", mirror_share=0)


@pytest.fixture
def forgive(page):
    """A network that fails is reported in the browser's console: that is all it may complain of."""
    yield
    assert [complaint for complaint in page.complaints if not complaint.startswith(EXPECTED)] == []
    page.complaints.clear()


def state(page: Page):
    return page.locator("[data-saving]")


def test_the_next_comparison_is_there_before_the_answer_is_sent(page, start, project):
    comparisons = [make_pair(project) for _ in range(3)]
    start()
    expect_leased(2)
    held = []
    page.route(SUBMIT, lambda route: held.append(route))  # noqa: PLW0108 -- Playwright takes no built-in function

    press(page, "1")

    expect(page).to_have_url(re.compile(f"/comparisons/{comparisons[1].pk}/$"))
    expect(state(page)).to_have_text("Saving…")
    assert not Judgment.objects.exists()
    expect_ready(page)
    press(page, "2")  # judged before the first answer has arrived
    held.pop().continue_()
    expect(page).to_have_url(re.compile(f"/comparisons/{comparisons[2].pk}/$"))
    wait_for(page, held)
    held.pop().continue_()
    expect_saved(page, 2)
    assert [judgment.comparison for judgment in Judgment.objects.order_by("pk")] == comparisons[:2]


def wait_for(page: Page, routes: list[Route]) -> None:
    while not routes:
        page.wait_for_timeout(20)


def expect_leased(number: int) -> None:
    deadline = time.monotonic() + 30
    while Lease.objects.count() != number and time.monotonic() < deadline:
        time.sleep(0.05)
    assert Lease.objects.count() == number


@pytest.mark.usefixtures("forgive")
def test_offline_submits_are_sent_once_when_the_network_is_back(page, start, shoot, project):
    for _ in range(3):
        make_pair(project)
    start()
    expect_leased(2)
    page.context.set_offline(True)

    press(page, "1")
    expect(state(page)).to_have_text("1 answer is kept here and waits to be sent. Retrying…")
    expect_ready(page)
    press(page, "5")
    expect(state(page)).to_have_text("2 answers are kept here and wait to be sent. Retrying…")
    expect(page.get_by_role("alert")).to_contain_text("Your answer is kept on this device")
    shoot("offline")
    assert not Judgment.objects.exists()
    page.context.set_offline(False)

    expect(page.get_by_text("2 judged by you")).to_be_visible()
    expect_saved(page, 2)
    assert list(Judgment.objects.order_by("pk").values_list("strength", flat=True)) == [2, 2]
    expect_ready(page)
    press(page, "3")
    expect_done(page)
    expect_saved(page, 3)


@pytest.mark.usefixtures("forgive")
def test_unsent_answers_survive_a_reload(page, start, project):
    make_pair(project)
    make_pair(project)
    start()
    expect_leased(2)
    page.route(SUBMIT, lambda route: route.abort() if route.request.method == "POST" else route.continue_())
    press(page, "4")
    expect(state(page)).to_contain_text("1 answer is kept here")
    page.on("dialog", lambda dialog: dialog.accept())
    page.unroute(SUBMIT)

    page.reload()

    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    assert (ranking(judgment), judgment.strength) == (order(judgment, "B", "A"), 1)


@pytest.mark.usefixtures("forgive")
def test_unsent_answers_survive_a_closed_tab_and_are_sent_from_the_list_of_projects(page, start, project, live_server):
    make_pair(project)
    start()
    page.route(SUBMIT, lambda route: route.abort() if route.request.method == "POST" else route.continue_())
    press(page, "2")
    expect(state(page)).to_contain_text("1 answer is kept here")
    other = page.context.new_page()
    page.close()

    other.goto(live_server.url)

    expect(other.get_by_text("1 answer that was left unsent is saved now.").first).to_be_visible()
    wait_until(other, NOTHING_UNSENT)
    assert Judgment.objects.get().strength == 1


@pytest.mark.usefixtures("forgive")
def test_an_answer_that_was_stored_although_the_network_failed_is_not_stored_twice(page, start, project):
    make_pair(project)
    make_pair(project)
    start()
    expect_leased(2)
    lost = []

    def lose_the_first_answer(route: Route) -> None:
        if lost:
            return route.continue_()
        lost.append(route.fetch())
        return route.abort()

    page.route(SUBMIT, lose_the_first_answer)
    press(page, "1")

    expect_saved(page, 1)
    assert len(lost) == 1
    expect_ready(page)
    press(page, "3")
    expect_done(page)
    expect_saved(page, 2)


@pytest.mark.usefixtures("forgive")
def test_an_error_of_the_server_is_retried(page, start, project):
    make_list(project, ANSWERS[:3])
    start()
    statuses = [500, 503]
    page.route(SUBMIT, lambda route: route.fulfill(status=statuses.pop()) if statuses else route.continue_())

    press(page, *"213", "Enter")

    expect_done(page)
    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    assert (statuses, ranking(judgment)) == ([], order(judgment, *"BAC"))


@pytest.mark.usefixtures("forgive")
def test_leaving_with_unsent_answers_is_warned_of(page, start, project):
    make_pair(project)
    make_pair(project)
    start()
    expect_leased(2)
    page.route(SUBMIT, lambda route: route.abort())
    press(page, "1")
    expect(state(page)).to_contain_text("1 answer is kept here")
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))

    page.get_by_role("link", name="Projects").click()

    expect(page.get_by_role("heading", name="Projects")).to_be_visible()
    assert asked == ["beforeunload"]


@pytest.mark.usefixtures("forgive")
def test_an_answer_that_the_server_refuses_comes_back_with_its_errors(page, start, project):
    first, second = make_list(project, ANSWERS[:3]), make_list(project, ANSWERS[:3])
    start()
    expect_leased(2)

    def spoil(route: Route) -> None:
        route.continue_(post_data=route.request.post_data.replace("place-1=2", "place-1=77"))

    page.route(SUBMIT, spoil)
    press(page, *"123", "Enter")
    expect(page.locator("[data-errors]")).to_be_focused()
    expect(page).to_have_url(re.compile(f"/comparisons/{first.pk}/$"))
    expect(page.get_by_label("Place of C")).to_have_value("3")
    page.unroute(SUBMIT)
    expect_ready(page)
    press(page, "2", "Enter")

    expect(page).to_have_url(re.compile(f"/comparisons/{second.pk}/$"))
    expect_saved(page, 1)
    expect_ready(page)
    press(page, *"321", "Enter")
    expect_done(page)
    expect_saved(page, 2)
    assert [ranking(judgment) for judgment in Judgment.objects.order_by("pk")] == [
        order(judgment, *letters)
        for judgment, letters in zip(Judgment.objects.order_by("pk"), ("ABC", "CBA"), strict=True)
    ]


@pytest.mark.usefixtures("forgive")
def test_an_answer_to_a_comparison_that_is_gone_is_explained(page, start, project):
    first, second = make_pair(project), make_pair(project)
    start()
    expect_leased(2)
    page.route(re.compile(f"/comparisons/{first.pk}/$"), lambda route: route.fulfill(status=404))

    press(page, "1")

    expect(page.get_by_text("An answer could not be stored: its comparison is gone")).to_be_visible()
    expect(page).to_have_url(re.compile(f"/comparisons/{second.pk}/$"))
    wait_until(page, NOTHING_UNSENT)
    assert not Judgment.objects.exists()


@pytest.mark.usefixtures("forgive")
def test_a_refusal_for_another_sign_in_is_explained_and_the_answer_kept(page, start, project):
    make_pair(project)
    make_pair(project)
    start()
    expect_leased(2)
    page.route(SUBMIT, lambda route: route.fulfill(status=403) if route.request.method == "POST" else route.continue_())
    press(page, "5")
    expect(state(page)).to_have_text(
        "You have signed in or out in another tab. Reload the page to go on; what you judged is kept here."
    )
    page.unroute(SUBMIT)

    page.reload()

    expect_saved(page, 1)
    assert Judgment.objects.get().strength == 2


def test_two_tabs_store_a_judgment_once(page, start, project):
    first, second, third = (make_pair(project) for _ in range(3))
    start()
    expect_leased(2)
    other = page.context.new_page()
    other.goto(page.url)
    expect_ready(other)

    press(page, "1")
    expect(page).to_have_url(re.compile(f"/comparisons/{second.pk}/$"))
    press(other, "5")
    expect(other).not_to_have_url(re.compile(f"/comparisons/{first.pk}/$"))

    expect_saved(page, 1)
    wait_until(other, NOTHING_UNSENT)
    assert Judgment.objects.get().strength == 2
    assert {lease.comparison for lease in Lease.objects.all()} == {second, third}
    other.close()


def test_signed_out_in_another_tab(page, start, project):
    make_list(project)
    second = make_pair(project)
    start()
    expect_leased(2)
    page.context.clear_cookies(name="sessionid")

    press(page, *"2143", "Enter")
    page.get_by_label("Name").fill("amina")
    page.get_by_label("Password").fill("a long passphrase")
    page.get_by_role("button", name="Sign in").click()

    expect(page).to_have_url(re.compile(f"/comparisons/{second.pk}/$"))
    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    assert ranking(judgment) == order(judgment, *"BADC")


def test_skips_go_by_the_outbox_too(page, start, project):
    make_pair(project)
    second = make_pair(project)
    start()
    expect_leased(2)

    press(page, "s", "2")

    expect(page).to_have_url(re.compile(f"/comparisons/{second.pk}/$"))
    wait_until(page, NOTHING_UNSENT)
    assert Skip.objects.get().reason == "language"


# Drafts, leases, time


def test_a_draft_survives_a_reload(page, start, project):
    make_list(project)
    start()
    press(page, "3", "1")

    page.reload()

    expect(page.get_by_text("2 of 4 placed. To place: C, D.")).to_be_visible()


def test_a_draft_is_there_in_another_browser(page, start, project, browser, live_server):
    make_list(project)
    start()
    press(page, "3", "1", "r")
    page.keyboard.type("Too long.")
    expect_draft("rationale", "Too long.")
    address = page.url
    other = browser.new_context().new_page()

    sign_in(other, live_server.url)
    other.goto(address)

    expect(other.get_by_text("2 of 4 placed. To place: C, D.")).to_be_visible()
    expect(other.locator("[data-rationale]")).to_have_value("Too long.")
    other.context.close()


def expect_draft(name: str, value: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        draft = Draft.objects.first()
        if draft and draft.values.get(name) == value:
            return
        time.sleep(0.1)
    raise AssertionError([draft.values for draft in Draft.objects.all()])


def test_the_lease_is_renewed_while_the_page_is_open(page, start, project):
    make_pair(project)
    make_pair(project)
    page.clock.install()
    start()
    expect_leased(2)
    soon = timezone.now() + timezone.timedelta(seconds=30)
    Lease.objects.update(expires_at=soon)

    page.clock.fast_forward("05:01")  # a third of a quarter of an hour

    deadline = time.monotonic() + 30
    while Lease.objects.filter(expires_at__lte=soon).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Lease.objects.filter(expires_at__lte=soon).exists()


@pytest.mark.usefixtures("forgive")
def test_a_comparison_that_went_to_somebody_else_can_still_be_judged(page, start, project):
    comparison = make_pair(project)
    page.clock.install()
    start()
    Lease.objects.update(expires_at=timezone.now() - timezone.timedelta(seconds=1))
    factories.make_judgment(comparison=comparison)
    Lease.objects.all().delete()

    page.clock.fast_forward("05:01")
    expect(page.get_by_text("this comparison went to somebody else")).to_be_visible()
    press(page, "2")

    expect_done(page)
    expect_saved(page, 2)
    assert list(Judgment.objects.order_by("pk").values_list("is_extra", flat=True)) == [False, True]


def test_idle_time_is_taken_out(page, start, project):
    make_pair(project)
    page.clock.install()
    start()
    page.clock.fast_forward(20_000)
    page.mouse.move(300, 300)
    page.clock.fast_forward(240_000)  # thirty seconds of which count
    page.mouse.move(320, 320)
    page.clock.fast_forward(5_000)

    press(page, "1")

    expect_saved(page, 1)
    judgment = Judgment.objects.get()
    assert 55 <= judgment.seconds < 65
    assert 265 <= judgment.total_seconds < 275
