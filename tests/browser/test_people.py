"""From an invitation to the first judgment, in two browsers; managers' pages, as pictures and for everybody."""

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from annotate import gold
from annotate.models import Aspect, Gold, Judgment, Membership
from tests import factories
from tests.browser.conftest import LAPTOP, Watch, assert_accessible, picture

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

PASSWORD = "nine purple lanterns"
PHONE = {"width": 360, "height": 740}


@pytest.fixture
def project():
    return factories.make_project(name="Cooking", description="Which answer helps a cook more?", is_open=False)


@pytest.fixture
def sign_in(page, live_server, project):
    """Sign in as the project's manager."""

    def sign_in() -> None:
        boss = factories.make_user(username="boss")
        Membership.objects.create(project=project, user=boss, role="manager")
        page.goto(live_server.url)
        page.get_by_label("Name").fill("boss")
        page.get_by_label("Password").fill("a long passphrase")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Projects")).to_be_visible()

    return sign_in


@pytest.fixture
def newcomer(browser):
    """A second browser, of somebody without an account."""
    context = browser.new_context(viewport=LAPTOP, locale="en-GB")
    context.set_default_timeout(30_000)
    page = context.new_page()
    watch = Watch(page)
    yield page
    context.close()
    assert watch.complaints == []


def look(page: Page, shoot, name: str) -> None:
    """Accessible and without sideways scrolling in light, dark and on a phone; a picture of each."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert_accessible(page)
        shoot(f"{name}-{scheme}")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert_accessible(page)
    shoot(f"{name}-phone")
    page.set_viewport_size(LAPTOP)


def test_from_invitation_to_first_judgment(page, newcomer, sign_in, project, shoot):
    factories.make_comparison(project=project, contents=("Boil it for seven minutes.", "I do not know."))
    sign_in()

    page.get_by_role("link", name="People").click()
    page.get_by_label("Note").fill("for Amina")
    page.get_by_role("button", name="Make a link").click()
    link = page.get_by_label("Link of the invitation").input_value()
    look(page, shoot, "people-invited")

    newcomer.goto(link)
    assert_accessible(newcomer)
    picture(newcomer, shoot("people").with_name("people-join.png"))
    newcomer.get_by_label("Username").fill("amina")
    newcomer.get_by_label("Password", exact=True).fill(PASSWORD)
    newcomer.get_by_label("Password confirmation").fill(PASSWORD)
    newcomer.get_by_role("button", name="Make the account and join").click()
    expect(newcomer.get_by_text("You have joined Cooking.")).to_be_visible()

    newcomer.get_by_role("button", name="Start Cooking").click()
    expect(newcomer.locator("#comparison[data-ready]")).to_be_visible()
    newcomer.keyboard.press("1")
    expect(newcomer.get_by_role("heading", name="All done for now")).to_be_visible()

    judgment = Judgment.objects.get()
    assert (judgment.annotator.user, judgment.project) == (User.objects.get(username="amina"), project)
    page.get_by_role("link", name="People").click()
    expect(page.get_by_role("row", name="amina")).to_contain_text("1")
    newcomer.goto(link)
    expect(newcomer.get_by_text("You are a member already, as annotator.")).to_be_visible()


def test_link_can_be_copied(page, sign_in, project, live_server):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    sign_in()
    page.goto(f"{live_server.url}/projects/{project.pk}/people/")
    page.get_by_role("button", name="Make a link").click()

    page.get_by_role("button", name="Copy").click()

    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == page.get_by_label("Link of the invitation").input_value()


def test_page_of_people(page, sign_in, project, live_server, shoot):
    project.qualification_size = 1
    project.save()
    for name, role in (
        ("amina", "reviewer"),
        ("ben", "annotator"),
        ("a-very-long-name-that-somebody-chose", "annotator"),
    ):
        user = factories.make_user(username=name)
        Membership.objects.create(project=project, user=user, role=role)
        factories.make_judgment(
            comparison=factories.make_comparison(project=project), annotator=factories.make_annotator(user=user)
        )
    sign_in()
    page.goto(f"{live_server.url}/projects/{project.pk}/people/")
    look(page, shoot, "people")

    page.get_by_label("Role of ben").select_option(label="manager")
    page.get_by_role("button", name="Change ben").click()
    expect(page.get_by_label("Role of ben")).to_have_value("manager")
    page.get_by_role("button", name="Remove amina").click()
    expect(page.get_by_role("row", name="amina")).to_contain_text("no member")


def test_page_of_an_invitation_that_is_over(page, sign_in, project, live_server, shoot):
    sign_in()
    page.goto(f"{live_server.url}/projects/{project.pk}/people/")
    page.get_by_role("button", name="Make a link").click()
    link = page.get_by_label("Link of the invitation").input_value()
    page.get_by_role("button", name="Take back").click()
    expect(page.get_by_text("Invitations that are over")).to_be_visible()

    page.context.clear_cookies()
    page.goto(link)

    expect(page.get_by_role("heading", name="The invitation is over")).to_be_visible()
    look(page, shoot, "people-over")
    page.complaints[:] = [told for told in page.complaints if "410 (Gone)" not in told]


def test_pages_of_known_answers(page, sign_in, project, live_server, shoot):
    prompt = factories.make_prompt(
        project=project, messages=[{"role": "user", "content": "How long do I boil an egg?"}]
    )
    comparison = factories.make_comparison(
        prompt=prompt, contents=("**Seven** minutes.", "An hour.", "It depends:\n\n- soft: five\n- hard: ten")
    )
    other = factories.make_comparison(project=project)
    gold.make_gold(comparison=other, ranking=[[pk] for pk in factories.response_ids(other)], use=Gold.Use.EXAMPLE)
    sign_in()
    page.goto(f"{live_server.url}/projects/{project.pk}/gold/")

    page.get_by_label("Number of a comparison").fill(str(comparison.pk))
    page.get_by_role("button", name="Give it a known answer").click()
    for number, place in ((1, "1"), (2, "3"), (3, "2")):
        page.get_by_label(f"Place of answer {number}").select_option(place)
    page.get_by_label("Explanation").fill("An hour is too long.")
    look(page, shoot, "gold-add")
    page.get_by_role("button", name="Save the known answer").click()

    expect(page.get_by_text(f"Comparison {comparison.pk} has a known answer now.")).to_be_visible()
    look(page, shoot, "gold")
    first, second, third = factories.response_ids(comparison)
    assert Gold.objects.get(comparison=comparison).ranking == [[first], [third], [second]]
    page.get_by_role("link", name=str(comparison.pk), exact=True).click()
    look(page, shoot, "gold-change")


def test_page_of_settings(page, sign_in, project, live_server, shoot):
    Aspect.objects.create(project=project, name="harmlessness", text="Does it do no harm?")
    sign_in()
    page.goto(f"{live_server.url}/projects/{project.pk}/settings/")
    look(page, shoot, "settings")

    page.get_by_label("Overlap").fill("3")
    page.get_by_role("button", name="Save the settings").click()

    expect(page.get_by_text("The settings are saved.")).to_be_visible()
    project.refresh_from_db()
    assert project.overlap == 3


def test_page_of_tokens(page, sign_in, live_server, shoot):
    sign_in()
    page.get_by_role("link", name="boss").click()
    page.get_by_label("Name").fill("nightly import")
    page.get_by_role("button", name="Make a token").click()
    look(page, shoot, "tokens")
    token = page.get_by_label("Token", exact=True).input_value()

    answer = page.request.get(f"{live_server.url}/api/projects", headers={"Authorization": f"Bearer {token}"})

    assert [project["role"] for project in answer.json()] == ["manager"]


def test_import_in_the_admin(page, live_server, project, shoot, tmp_path):
    factories.make_user(username="admin", is_staff=True, is_superuser=True)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Eggs?", "responses": ["Boil.", "Fry."]}\n')
    page.goto(f"{live_server.url}/admin/annotate/project/{project.pk}/change/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill("a long passphrase")
    page.get_by_role("button", name="Log in").click()
    shoot("admin-project-fieldsets")

    page.get_by_role("link", name="Import").click()
    page.get_by_label("File").set_input_files(path)
    page.get_by_role("button", name="Import the file").click()

    expect(page.get_by_text("Read 1 row.")).to_be_visible()
    shoot("admin-import")
    assert project.comparisons.count() == 1
