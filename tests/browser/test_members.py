"""The registry of rewards as people use it: with a keyboard, in the dark, on a phone, without JavaScript."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests import factories
from tests.browser.conftest import LAPTOP, assert_accessible, opened, picture
from tests.browser.test_admin import PHONE, assert_fits
from tests.training.factories import make_finished_run
from training import member_services, services
from training.models import Member, TrainingRun

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def folder(settings, tmp_path) -> Path:
    """Where pictures go; the registry holds a few rewards, and a project some judgments."""
    settings.RUNS_DIR, settings.MEMBERS_DIR = tmp_path / "runs", tmp_path / "members"
    settings.RUN_TRAINER = "tests.training.little_trainer"
    project = factories.make_project(name="Cooking", overlap=3, guidelines="Is it safe to eat, and does it say why?")
    for _ in range(3):
        comparison = factories.make_comparison(project=project)
        for _ in range(3):
            factories.make_judgment(comparison=comparison)
    length = member_services.create_member(kind="length", name="not too long", values={"target": 120})
    retired = member_services.create_member(kind="repetition", name="old", values={}, project=project)
    member_services.retire_member(member=retired)
    made = make_finished_run(name="helmsman", project=project, result={"accuracy": 0.712, "interval": [0.68, 0.74]})
    config = {"reward_model": str(length.path), "split": "test"}
    result = {"accuracy": 0.583, "interval": [0.553, 0.613], "num_pairs": 812}
    make_finished_run(kind="evaluate", name="length-test", config=config, result=result)
    members = {"members": f"{length.path}, {made.model_dir.resolve()}"}
    make_finished_run(kind="combine", name="both", config=members, project=project, result={"accuracy": 0.731})
    folder = Path(os.environ.get("PLUMBLINE_SHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sign_in(page, live_server) -> None:
    factories.make_user(username="admin", is_staff=True, is_superuser=True)
    page.goto(f"{live_server.url}/admin/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill("a long passphrase")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("link", name="Reward members", exact=True).first.press("Enter")


def fill_in_a_judge(page) -> None:
    page.get_by_role("link", name="Register a member").press("Enter")
    page.get_by_role("link", name="Judge", exact=False).first.press("Enter")
    page.get_by_label("Name").fill("kind")
    page.get_by_label("Model").fill("org/judge")


@pytest.mark.parametrize(("scheme", "screen"), [("light", LAPTOP), ("dark", LAPTOP), ("light", PHONE)])
def test_try_register_and_retire_a_judge(page, live_server, folder, scheme, screen):
    kept = f"{scheme}-{screen['width']}.png"
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(screen)
    sign_in(page, live_server)
    expect(page.get_by_role("row", name="helmsman")).to_contain_text("71.2% [68.0, 74.0]")
    assert_accessible(page)
    assert_fits(page)
    picture(page, folder / f"registry-{kept}", full_page=True)

    fill_in_a_judge(page)
    page.get_by_role("button", name="Begin the rubric with what its annotators are told").press("Enter")
    expect(page.get_by_label("Rubric")).to_have_value("Is it safe to eat, and does it say why?")
    page.get_by_text("More settings").press("Enter")
    assert_accessible(page)
    assert_fits(page)
    picture(page, folder / f"member-form-{kept}", full_page=True)

    page.get_by_role("button", name="Preview on three comparisons").press("Enter")
    expect(page.get_by_text("waits for a training worker")).to_be_visible()
    services.execute_run(run_id=TrainingRun.objects.get(kind="preview_judge").pk)
    expect(page.get_by_text("The judge puts A first, as annotators most often do").first).to_be_visible()
    page.locator("summary", has_text="Response A").first.press("Enter")
    expect(page.get_by_text("Rate this:").first).to_be_visible()
    expect(page.get_by_label("Rubric")).to_have_value("Is it safe to eat, and does it say why?")
    assert_accessible(page)
    assert_fits(page)
    picture(page, folder / f"preview-{kept}", full_page=True)

    page.get_by_role("button", name="Register").press("Enter")
    expect(page.get_by_text("Member kind is registered.")).to_be_visible()
    assert_accessible(page)
    assert_fits(page)
    picture(page, folder / f"member-{kept}", full_page=True)
    page.get_by_role("button", name="Retire").press("Enter")
    expect(page.get_by_role("button", name="Bring back")).to_be_visible()
    assert not Member.objects.get(name="kind").is_active


def test_choose_rewards_and_combine_them(page, live_server, folder):
    sign_in(page, live_server)
    page.get_by_label("State").select_option("all")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.get_by_role("row", name="old")).to_contain_text("retired")
    page.get_by_label("Choose helmsman").press("Space")
    page.get_by_label("Choose not too long").press("Space")
    page.get_by_role("button", name="Combine the chosen").press("Enter")
    expect(page.get_by_label("Members")).to_have_value("helmsman, not too long")
    assert_accessible(page)


def test_try_a_judge_without_javascript(browser, live_server, folder):
    with opened(browser, java_script_enabled=False, viewport=PHONE) as page:
        sign_in(page, live_server)
        fill_in_a_judge(page)
        page.get_by_role("button", name="Preview on three comparisons").press("Enter")
        expect(page.get_by_text("waits for a training worker")).to_be_visible()
        services.execute_run(run_id=TrainingRun.objects.get(kind="preview_judge").pk)
        page.get_by_role("link", name="Look again").press("Enter")
        expect(page.get_by_text("The judge puts A first, as annotators most often do").first).to_be_visible()
        expect(page.get_by_label("Model")).to_have_value("org/judge")
