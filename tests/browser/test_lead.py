"""The lead's pages as pictures, for everybody, with what they draw."""

import random

import pytest
from playwright.sync_api import Page, expect

from annotate import figures
from annotate.models import Aspect, Flag, Judgment, Membership, Skip
from tests import factories
from tests.browser.conftest import LAPTOP, assert_accessible, picture

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

PHONE = {"width": 360, "height": 740}
SOURCES = ("helmsman-large", "helmsman-small", "baseline")


@pytest.fixture
def project():
    """Forty comparisons of three models' answers, judged by five: four good ones, one the wrong way round."""
    project = factories.make_project(name="Cooking", overlap=5, is_open=False)
    Aspect.objects.create(project=project, name="harmlessness")
    draw = random.Random(0)
    people = [
        factories.make_annotator(user=factories.make_user(username=name))
        for name in ("amina", "ben", "carla", "dmitri", "eve")
    ]
    for number in range(40):
        two = (0, 1) if number % 3 == 0 else (1, 2) if number % 3 == 1 else (0, 2)
        comparison = factories.make_comparison(
            project=project,
            contents=(f"A long answer to question {number}.", f"An answer to question {number}."),
            models=tuple(SOURCES[place] for place in (two if number % 2 else two[::-1])),
        )
        for annotator in people[: 5 if number < 30 else 3]:
            is_right = (draw.random() < 0.85) != (annotator == people[-1])
            place = int((number % 2 == 0) == is_right)
            judgment = factories.make_judgment(
                comparison=comparison,
                annotator=annotator,
                order=[[place], [1 - place]],
                seconds=draw.uniform(8, 60),
            )
            Judgment.objects.create(
                comparison=comparison,
                project=project,
                annotator=annotator,
                aspect="harmlessness",
                ranking=judgment.ranking,
                source=Judgment.Source.BROWSER,
            )
    comparison = project.comparisons.first()
    Flag.objects.create(
        comparison=comparison, project=project, annotator=people[0], reason="private", note="It names a person."
    )
    comparison.responses.update(giveaway="As an AI made by Example")
    Skip.objects.create(comparison=project.comparisons.last(), annotator=people[3], reason="language")
    return project


@pytest.fixture
def visit(page, live_server, project):
    """Sign in as the project's manager, and open one of its pages."""
    boss = factories.make_user(username="boss")
    Membership.objects.create(project=project, user=boss, role="manager")
    page.goto(live_server.url)
    page.get_by_label("Name").fill("boss")
    page.get_by_label("Password").fill("a long passphrase")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Projects")).to_be_visible()

    def visit(address: str) -> None:
        page.goto(f"{live_server.url}/projects/{project.pk}/lead/{address}")

    return visit


def look(page: Page, shoot, name: str, *, num_charts: int = 0) -> None:
    """Accessible and without sideways scrolling in light, dark and on a phone; a picture of each whole page."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert_accessible(page)
        picture(page, shoot(f"{name}-{scheme}"), full_page=True)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert_accessible(page)
    picture(page, shoot(f"{name}-phone"), full_page=True)
    page.set_viewport_size(LAPTOP)
    assert [page.evaluate(IS_DRAWN, number) for number in range(num_charts)] == [True] * num_charts


IS_DRAWN = """number => {
  const canvas = document.querySelectorAll("canvas[data-chart]")[number];
  return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0);
}"""


def test_overview(page, visit, shoot):
    visit("")
    expect(page.get_by_text("180 of 200 wanted judgments are made.")).to_be_visible()
    look(page, shoot, "lead", num_charts=1)


def test_agreement(page, visit, shoot):
    visit("agreement/")
    expect(page.get_by_role("heading", name="harmlessness")).to_be_visible()
    look(page, shoot, "lead-agreement", num_charts=2)


def test_annotators(page, visit, shoot):
    visit("annotators/")
    expect(page.get_by_text("eve answers the wrong way round")).to_be_visible()
    look(page, shoot, "lead-annotators")


def test_models(page, visit, shoot):
    visit("models/")
    expect(page.get_by_role("heading", name="Who beat whom")).to_be_visible()
    look(page, shoot, "lead-models", num_charts=1)


def test_flags_are_resolved(page, visit, shoot):
    visit("flags/")
    look(page, shoot, "lead-flags")
    page.get_by_role("button", name="Resolve").click()
    expect(page.get_by_text("No flag is open.")).to_be_visible()


def test_new_figures_are_announced_and_shown(page, visit, shoot, project, monkeypatch):
    figures.refresh_figures(project=project)
    monkeypatch.setattr(figures, "SMALL", 0)
    monkeypatch.setattr("annotate.tasks.refresh_figures.delay", lambda _project: None)
    factories.make_judgment(comparison=project.comparisons.last())
    visit("")
    expect(page.get_by_text("There are newer judgments.")).to_be_visible()
    expect(page.get_by_text("180 of 200 wanted judgments are made.")).to_be_visible()

    figures.refresh_figures(project=project)

    expect(page.get_by_text("There are new figures.")).to_be_visible()
    look(page, shoot, "lead-new")
    page.get_by_role("link", name="Show them").click()
    expect(page.get_by_text("181 of 200 wanted judgments are made.")).to_be_visible()
