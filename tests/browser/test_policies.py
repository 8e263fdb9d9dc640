"""A policy's training and a comparison of policies, as a person sees them: drawn, live, by keyboard, on a phone."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests import factories
from tests.browser.conftest import LAPTOP, assert_accessible, picture
from tests.browser.test_admin import PHONE, assert_fits
from tests.training.factories import make_finished_run, make_preference_set
from tests.training.reports import leave
from tests.training.trackings import ALARM, exploited, leave_checks, leave_samples, make_curve, make_policies

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def folder(settings, tmp_path):
    """Of pictures."""
    settings.RUNS_DIR = tmp_path / "runs"
    settings.PREFERENCE_SETS_DIR = tmp_path / "preference_sets"
    folder = Path(os.environ.get("PLUMBLINE_SHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def visit(page, live_server, folder):
    """Open a page of the runs' admin, as an administrator who is signed in first."""
    factories.make_user(username="admin", is_staff=True, is_superuser=True)
    page.goto(f"{live_server.url}/admin/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill("a long passphrase")
    page.get_by_role("button", name="Log in").click()
    return lambda path: page.goto(f"{live_server.url}/admin/training/trainingrun/{path}")


@pytest.mark.parametrize(("scheme", "screen"), [("light", LAPTOP), ("dark", LAPTOP), ("light", PHONE)])
def test_see_why_a_policy_was_stopped_and_what_it_answered(page, visit, folder, scheme, screen):
    run = make_finished_run(kind="rlhf", name="hungry", config={"guard": "stop", "kl_target": 2.0})
    leave(leave_checks(run, exploited()), "alarm.json", ALARM)
    for step in range(0, 161, 20):
        leave_samples(run, step, num_responses=1)
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(screen)

    visit(f"{run.pk}/change/")
    expect(page.get_by_text("Stopped by the guard at step 120; the policy of step 80 is kept.")).to_be_visible()
    expect(page.get_by_role("img", name="Rewards of held-out prompts against the square root")).to_be_visible()
    page.get_by_text("As a table").first.press("Enter")
    expect(page.get_by_role("row", name="80 1.260")).to_be_visible()
    assert_accessible(page)
    assert_fits(page)
    picture(page, folder / f"policy-{scheme}-{screen['width']}.png", full_page=True)

    page.get_by_label("Held-out prompt", exact=True).select_option(label="Question 2?")
    page.get_by_label("80, best").uncheck()
    page.get_by_role("button", name="Show").press("Enter")
    expect(page.get_by_text("Answer 0 to question 2 at 160.")).to_be_visible()
    expect(page.get_by_text("Answer 0 to question 2 at 80.")).not_to_be_visible()
    page.get_by_role("link", name="Previous prompt").press("Enter")
    expect(page.get_by_text("Answer 0 to question 1 at 160.")).to_be_visible()


def test_checks_come_in_while_the_page_is_open(page, visit, folder):
    checks = exploited()
    run = leave_checks(make_finished_run(kind="rlhf", status="queued", config={"guard": "stop"}), checks[:3])
    visit(f"{run.pk}/change/")
    page.get_by_text("As a table").first.press("Enter")
    expect(page.get_by_role("row", name="40 0.630")).to_be_visible()

    leave_checks(run, checks[:4], tail='{"step": 80')
    expect(page.get_by_role("row", name="60 0.945")).to_be_visible()  # so what was opened has stayed open
    expect(page.get_by_text("The held-out reward is highest at step 60.")).to_be_visible()
    leave(leave_checks(run, checks), "alarm.json", ALARM)
    expect(page.get_by_text("Stopped by the guard at step 120")).to_be_visible()
    assert_accessible(page)


@pytest.mark.parametrize(("scheme", "screen"), [("light", LAPTOP), ("dark", LAPTOP), ("light", PHONE)])
def test_see_policies_side_by_side(page, visit, folder, scheme, screen):
    base, *trained = [
        make_finished_run(kind=kind, name=name, config={"reward_model": "org/reward"})
        for kind, name in (("sft", "base"), ("rejection_sampling", "best-of-16"), ("rlhf", "rloo"))
    ]
    leave(trained[0], "curve.json", make_curve())
    run = make_finished_run(kind="compare_policies", name="which")
    leave(run, "report.json", make_policies(*(str(one.model_dir.resolve()) for one in (base, *trained))))
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(screen)

    visit(f"{run.pk}/change/")
    expect(page.get_by_role("heading", name="Against base")).to_be_visible()
    expect(page.get_by_role("cell", name="60.0% [57.0, 63.0]").first).to_be_visible()
    expect(page.get_by_role("img", name="Gain in held-out reward over base")).to_be_visible()
    assert_accessible(page)
    assert_fits(page)
    picture(page, folder / f"policies-{scheme}-{screen['width']}.png", full_page=True)

    page.get_by_role("link", name="best-of-16").first.press("Enter")
    expect(page.get_by_role("img", name="Best of n against the square root of its KL")).to_be_visible()
    assert_accessible(page)
    assert_fits(page)
    picture(page, folder / f"best-of-n-{scheme}-{screen['width']}.png", full_page=True)


@pytest.mark.parametrize("kind", ["rlhf", "rejection_sampling", "dpo"])
def test_read_what_is_optimised_beside_the_form(page, visit, folder, kind):
    make_preference_set()
    page.set_viewport_size(PHONE)
    visit(f"start/{kind}/")
    page.get_by_text("What is optimised, and how it is guarded").press("Enter")
    expect(page.get_by_role("heading", name="The guard")).to_be_visible()
    assert_accessible(page)
    assert_fits(page)
    picture(page, folder / f"explained-{kind}.png", full_page=True)
