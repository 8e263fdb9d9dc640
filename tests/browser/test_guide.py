"""The pages around judging: projects, guidelines with worked examples, one's own last judgments, known answers."""

import pytest
from playwright.sync_api import Page, expect

from annotate.models import Annotator, Aspect, Gold, Membership
from tests import factories
from tests.annotate.test_views_judging import make_gold
from tests.browser.conftest import LAPTOP, assert_accessible, sign_in

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

PHONE = {"width": 360, "height": 740}


@pytest.fixture
def project(annotator):
    project = factories.make_project(
        name="Cooking", guidelines="Be kind.", gold_feedback=True, qualification_size=1, qualification_accuracy=0.0
    )
    project.guidelines = "Be **kind**.\n\n1. Read both.\n2. Choose."
    project.save()
    Aspect.objects.create(project=project, name="clarity", text="Is it *clear*?")
    Membership.objects.create(project=project, user=annotator.user, role="manager")
    make_gold(project, use=Gold.Use.EXAMPLE, explanation="Frying is *quicker*.")
    make_gold(project, contents=("Stir.", "Wait."), use=Gold.Use.QUALIFICATION, explanation="It burns.")
    return project


@pytest.mark.parametrize("screen", ["laptop-light", "laptop-dark", "phone-light", "phone-dark"])
def test_pages_around_judging_fit_every_screen(page, live_server, shoot, project, screen):
    size, theme = screen.split("-")
    annotator, done = Annotator.objects.get(), factories.make_project(name="Done")
    for k in (2, 5, 3):
        factories.make_judgment(comparison=factories.make_comparison(project=done, k=k), annotator=annotator)
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size(PHONE if size == "phone" else LAPTOP)
    page.goto(live_server.url)
    sign_in(page, live_server.url)

    expect(page.get_by_role("heading", name="Projects")).to_be_visible()
    look_at(page, shoot, f"projects-qualification-{screen}")
    page.get_by_role("list", name="Cooking").get_by_role("link", name="Guidelines").click()
    expect(page.get_by_text("The answer: B > A")).to_be_visible()
    look_at(page, shoot, f"guidelines-{screen}")
    page.get_by_role("link", name="version 1").click()
    expect(page.get_by_text("This is an earlier version.")).to_be_visible()
    page.goto(f"{live_server.url}/projects/{done.pk}/mine/")
    expect(page.locator("[data-revise]")).to_have_count(3)
    look_at(page, shoot, f"mine-{screen}")


def test_a_known_answer_is_told_beside_the_next_comparison(page, live_server, annotator, shoot, project):
    factories.make_comparison(project=project)
    page.goto(live_server.url)
    sign_in(page, live_server.url)
    page.get_by_role("button", name="Start Cooking").click()
    expect(page.get_by_text("The first comparison has a known answer.")).to_be_visible()
    expect(page.locator("#comparison[data-ready]")).to_be_visible()

    page.keyboard.press("3")
    page.keyboard.press("3")
    page.keyboard.press("Enter")

    expect(page.locator("[data-notices] [data-feedback]")).to_contain_text("You answered: A = B.")
    expect(page.locator("#comparison")).to_have_attribute("data-kind", "pairwise")
    look_at(page, shoot, "feedback")


def look_at(page: Page, shoot, name: str) -> None:
    shoot(name)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert_accessible(page)
