"""The admin of projects and judgments under the content security policy, and a download as a browser does it."""

import json

import pytest
from playwright.sync_api import expect

from annotate.models import Project
from tests import factories

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
