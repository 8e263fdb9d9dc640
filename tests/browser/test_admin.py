"""The admin of projects and judgments under the content security policy, and a download as a browser does it."""

import json
import os
from pathlib import Path

import pytest
from playwright.sync_api import expect

from annotate.models import Comparison, Project
from tests import factories
from tests.browser.conftest import LAPTOP, assert_accessible, picture
from tests.training.factories import make_finished_run, make_preference_set
from tests.training.reports import figure, gains, leave, make_combination, make_curve, make_report
from training import promotion_services
from training.models import PreferenceSet, TrainingRun

PHONE = {"width": 360, "height": 740}
pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def sign_in(page, live_server):
    def sign_in():
        factories.make_user(username="admin", is_staff=True, is_superuser=True)
        page.goto(f"{live_server.url}/admin/")
        page.get_by_label("Username").fill("admin")
        page.get_by_label("Password").fill("a long passphrase")
        page.get_by_role("button", name="Log in").click()

    return sign_in


def test_edit_a_project(page, sign_in, shoot):
    amina = factories.make_user(username="amina")
    project = factories.make_project(name="Cooking", is_open=False)
    sign_in()
    page.get_by_role("link", name="Projects").first.click()
    shoot("admin-projects")
    page.get_by_role("link", name="Cooking").click()

    page.get_by_label("Overlap").fill("3")
    page.locator("#id_accounts_from").select_option(label="amina")
    page.locator("#id_accounts_add, #id_accounts_add_link").first.click()
    shoot("admin-project")
    page.get_by_role("button", name="Save", exact=True).click()

    expect(page.get_by_text("was changed successfully")).to_be_visible()
    project = Project.objects.get()
    assert (project.overlap, list(project.members.all())) == (3, [amina])


def test_download_judgments(page, sign_in, shoot):
    judgment = factories.make_judgment(comparison=factories.make_comparison(k=3))
    sign_in()
    page.get_by_role("link", name="Projects").first.click()
    page.get_by_role("link", name=judgment.project.name).click()

    with page.expect_download() as download:
        page.get_by_role("link", name="Export trl-pairwise").click()

    rows = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert download.value.suggested_filename == f"{judgment.project.name.replace(' ', '-')}-trl-pairwise.jsonl"
    assert [sorted(row) for row in rows] == [["chosen", "prompt", "rejected"]] * 3


def test_look_at_comparisons_and_judgments(page, sign_in, shoot):
    judgment = factories.make_judgment(strength=1)
    sign_in()

    page.get_by_role("link", name="Judgments").first.click()
    shoot("admin-judgments")
    page.get_by_role("link", name=str(judgment.pk), exact=True).click()
    expect(page.get_by_text("slightly better")).to_be_visible()
    shoot("admin-judgment")
    page.get_by_role("link", name="Comparisons").first.click()
    page.locator("#result_list tbody th a").click()
    expect(page.get_by_text("by model-1")).to_be_visible()
    shoot("admin-comparison")


@pytest.fixture
def reported(settings, tmp_path):
    """Two evaluations on the same preference set, and a learning curve; the folder for their pictures."""
    settings.RUNS_DIR = tmp_path / "runs"
    settings.PREFERENCE_SETS_DIR = tmp_path / "preference_sets"
    preference_set = make_preference_set(name="first")
    project = preference_set.project
    for name, accuracy in (("helmsman", 0.712), ("baseline", 0.691)):
        model = make_finished_run(name=name, preference_set=preference_set, project=project)
        config = {"reward_model": str(model.model_dir.resolve()), "split": "test", "aspect": "overall"}
        told = make_report()
        told["figures"]["accuracy"] = figure(accuracy)
        run = make_finished_run(
            kind="evaluate", name=f"{name}-test", preference_set=preference_set, project=project, config=config
        )
        leave(run, "report.json", told)
    curve = make_finished_run(kind="learning_curve", name="more-judgments", preference_set=preference_set)
    leave(curve, "curve.json", make_curve())
    folder = Path(os.environ.get("PLUMBLINE_SHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def assert_fits(page):
    """Nothing but what scrolls in its own frame is wider than the screen."""
    width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]


@pytest.mark.parametrize(("scheme", "screen"), [("light", LAPTOP), ("dark", LAPTOP), ("light", PHONE)])
def test_see_what_a_reward_model_is_worth(page, sign_in, reported, scheme, screen):
    kept = f"{scheme}-{screen['width']}.png"
    folder = reported
    sign_in()
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(screen)

    page.goto(page.url.replace("/admin/", "/admin/training/trainingrun/"))
    page.get_by_role("link", name="helmsman-test").click()
    expect(page.get_by_role("cell", name="71.2% [68.2, 74.2]").first).to_be_visible()
    expect(page.get_by_role("img", name="Reliability diagram")).to_be_visible()
    page.get_by_text("Annotator 14").click()
    assert_accessible(page)
    assert_fits(page)
    picture(page, folder / f"report-{kept}", full_page=True)

    page.go_back()
    page.get_by_role("link", name="more-judgments").click()
    expect(page.get_by_role("img", name="Accuracy rises from 58.2% at 250 judgments")).to_be_visible()
    assert_accessible(page)
    assert_fits(page)
    picture(page, folder / f"learning-curve-{kept}", full_page=True)

    page.go_back()
    page.get_by_role("link", name="Compare reward models").click()
    page.get_by_label("helmsman-test").check()
    page.get_by_label("baseline-test").check()
    page.get_by_role("button", name="Compare the chosen").click()
    assert_accessible(page)
    assert_fits(page)
    picture(page, folder / f"compare-{kept}", full_page=True)

    page.get_by_role("link", name="Evaluate both on the same pairs").click()
    expect(page.get_by_label("Other reward model")).not_to_have_value("")
    page.get_by_text("More settings").click()
    assert_accessible(page)
    assert_fits(page)
    picture(page, folder / f"start-{kept}", full_page=True)


@pytest.fixture
def combined(reported):
    """A combination beside the reward model in use, with a disagreement about a comparison of its project's."""
    preference_set = PreferenceSet.objects.get()
    project = preference_set.project
    in_use = leave(TrainingRun.objects.get(name="baseline"), "report.json", make_report())
    promotion_services.promote(run=in_use, previous=None, user=factories.make_user(username="ben"))
    pair = factories.make_comparison(
        prompt=factories.make_prompt(project=project, messages=[{"role": "user", "content": "How long for an egg?"}]),
        contents=("Six minutes for a soft one, nine for a hard one. " * 8, "It depends."),
    )
    factories.make_judgment(comparison=pair)
    told = make_combination(against_incumbent={"name": "baseline", **gains(0.03, 0.02)})
    told["disagreements"][0] |= {
        "prompt": "How long for an egg?",
        "responses": [option.response.content for option in pair.options.select_related("response")],
    }
    config = {"incumbent": str(in_use.model_dir.resolve()), "aspect": "overall"}
    run = make_finished_run(
        kind="combine", name="all-together", preference_set=preference_set, project=project, config=config
    )
    leave(run, "report.json", told)
    return reported


@pytest.mark.parametrize(("scheme", "screen"), [("light", LAPTOP), ("dark", LAPTOP), ("light", PHONE)])
def test_combine_rewards_ask_about_disagreements_and_promote(page, sign_in, combined, scheme, screen):
    kept = f"{scheme}-{screen['width']}.png"
    sign_in()
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(screen)
    page.goto(page.url.replace("/admin/", "/admin/training/trainingrun/"))

    page.get_by_role("link", name="all-together").click()
    expect(page.get_by_role("row", name="Fusion network saved").first).to_be_visible()
    expect(page.get_by_text("It is not worse than baseline")).to_be_visible()
    page.locator("summary", has_text="Question 1?").press("Enter")
    assert_accessible(page)
    assert_fits(page)
    picture(page, combined / f"combination-{kept}", full_page=True)

    page.get_by_role("button", name="Send 1 to annotators").press("Enter")
    expect(page.get_by_text("1 sent to annotators: 0 new comparisons, 1 asked once more.")).to_be_visible()
    assert Comparison.objects.filter(num_wanted=2, priority__gt=0).count() == 1

    page.get_by_role("button", name="Promote", exact=True).press("Enter")
    expect(page.get_by_text("This is the one in use.")).to_be_visible()
    assert_accessible(page)
    page.get_by_role("link", name="All reward models that it has had").click()
    expect(page.get_by_role("cell", name="+3.0 points [+1.0, +5.0]")).to_be_visible()
    assert_fits(page)
    picture(page, combined / f"promotions-{kept}", full_page=True)

    page.locator("#result_list tbody th a").first.click()
    expect(page.get_by_text("It is not worse than baseline")).to_be_visible()
    assert_accessible(page)
    assert_fits(page)
    picture(page, combined / f"promotion-{kept}", full_page=True)


def test_overrule_the_gate_with_a_reason(page, sign_in, combined, shoot):
    sign_in()
    page.set_viewport_size(PHONE)
    page.goto(page.url.replace("/admin/", "/admin/training/trainingrun/"))
    page.get_by_role("link", name="helmsman", exact=True).click()
    page.get_by_label("Promote it all the same, because").fill("It answers twice as fast.")
    assert_accessible(page)
    assert_fits(page)
    shoot("overrule-phone")

    page.get_by_role("button", name="Overrule and promote").click()

    expect(page.get_by_text("Because: It answers twice as fast.")).to_be_visible()
    assert_accessible(page)


def test_find_the_settings_of_a_reward_model_under_headings(page, sign_in, reported, shoot):
    sign_in()
    page.set_viewport_size(PHONE)
    page.goto(page.url.replace("/admin/", "/admin/training/trainingrun/start/reward_model/"))

    page.get_by_text("More settings").press("Enter")
    loss = page.get_by_role("group", name="Loss", exact=True)
    expect(loss.get_by_label("Ties")).to_have_value("exact")
    assert_accessible(page)
    assert_fits(page)
    page.get_by_role("group", name="Annotators and noise").scroll_into_view_if_needed()
    shoot("settings-phone")
