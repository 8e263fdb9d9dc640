import gzip
import json
import re
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from annotate import queries
from annotate.formats import FORMATS
from annotate.models import Comparison, Judgment, Project
from tests import factories

pytestmark = pytest.mark.django_db


def staff_client(*codenames):
    user = factories.make_user(is_staff=True)
    user.user_permissions.set(Permission.objects.filter(content_type__app_label="annotate", codename__in=codenames))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def staff():
    """Somebody with every permission of this app."""
    return staff_client(
        *Permission.objects.filter(content_type__app_label="annotate").values_list("codename", flat=True)
    )


def change(project):
    return reverse("admin:annotate_project_change", args=[project.pk])


def export(project, name="rankings"):
    return reverse("admin:annotate_project_export", args=[project.pk, name])


def project_form(**values):
    defaults = {
        "name": "Cooking",
        "description": "",
        "guidelines": "",
        "kind": "ranking",
        "rating_max": 5,
        "overlap": 1,
        "lease_minutes": 15,
        "strategy": "in_order",
        "random_share": 0.2,
        "mirror_share": 0.1,
        "gold_rate": 0,
        "qualification_size": 0,
        "qualification_accuracy": 0.7,
        "is_open": "on",
        **formset("aspects"),
        **formset("endpoints"),
    }
    return {**defaults, **values}


def formset(prefix, *rows):
    numbers = {f"{prefix}-TOTAL_FORMS": len(rows), f"{prefix}-INITIAL_FORMS": 0}
    return numbers | {f"{prefix}-{n}-{name}": value for n, row in enumerate(rows) for name, value in row.items()}


def cells(response, name):
    """One column of a change list, as text."""
    html = response.content.decode()
    found = re.findall(rf'(?s)<t[dh] class="field-{name}[^"]*">(.*?)</t[dh]>', html)
    return [re.sub(r"<[^>]*>", "", cell).strip() for cell in found]


# Projects


def test_projects_with_their_judgments_so_far(staff):
    cooking = factories.make_project(name="Cooking")
    factories.make_project(name="Law")
    for _ in range(2):
        factories.make_judgment(comparison=factories.make_comparison(project=cooking))
    factories.make_comparison(project=cooking)

    response = staff.get("/admin/annotate/project/")

    names = ("name", "judgments_so_far", "comparisons")
    assert [cells(response, name) for name in names] == [["Cooking", "Law"], ["2", "0"], ["3", "0"]]


@pytest.mark.parametrize("model", ["project", "comparison", "judgment"])
def test_lists_take_as_many_queries_for_three_rows_as_for_one(staff, model, django_assert_num_queries):
    address = f"/admin/annotate/{model}/"
    factories.make_judgment()
    staff.get(address)  # what is looked up once and kept
    with CaptureQueriesContext(connection) as one:
        staff.get(address)
    factories.make_judgment()
    factories.make_judgment()

    with django_assert_num_queries(len(one)):
        staff.get(address)


def test_add_a_project_with_members(staff):
    amina = factories.make_user()

    response = staff.post("/admin/annotate/project/add/", project_form(accounts=[amina.pk], overlap=3))

    project = Project.objects.get()
    assert response.status_code == 302
    assert (project.name, project.overlap, list(project.members.all())) == ("Cooking", 3, [amina])


def test_change_of_overlap_reaches_comparisons_that_exist(staff):
    project = factories.make_project(overlap=2)
    fresh, judged = factories.make_comparison(project=project), factories.make_comparison(project=project)
    for _ in range(2):
        factories.make_judgment(comparison=judged)

    wanted = []
    for overlap in (5, 1):
        staff.post(change(project), project_form(overlap=overlap))
        wanted.append([Comparison.objects.get(pk=comparison.pk).num_wanted for comparison in (fresh, judged)])

    assert wanted == [[5, 5], [1, 2]]  # never below what is judged already
    assert Project.objects.get().overlap == 1


def test_change_of_members(staff):
    amina, ben = factories.make_user(), factories.make_user()
    project = factories.make_project(members=(amina,))
    before = re.findall(r'<option value="(\d+)" selected>', staff.get(change(project)).content.decode())

    staff.post(change(project), project_form(accounts=[ben.pk]))

    assert before == [str(amina.pk)]
    assert list(project.members.all()) == [ben]


def test_project_that_holds_something_cannot_be_deleted(staff):
    empty, used = factories.make_project(), factories.make_comparison().project

    answers = [
        staff.post(reverse("admin:annotate_project_delete", args=[project.pk]), {"post": "yes"}).status_code
        for project in (empty, used)
    ]

    assert answers == [302, 403]
    assert list(Project.objects.all()) == [used]


# Export


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_export_is_the_file_that_the_command_writes(staff, name):
    project = factories.make_project(name="Cooking for two")
    for k in (2, 4):
        factories.make_judgment(comparison=factories.make_comparison(project=project, k=k))
    factories.make_judgment()

    response = staff.get(export(project, name))

    content = response.getvalue().decode()
    assert response.streaming
    assert content == "".join(FORMATS[name](queries.judgment_rows(project)))
    assert len([json.loads(line) for line in content.splitlines()]) == {"rankings": 2, "trl-pairwise": 7}[name]
    headers = ("Content-Disposition", "Content-Type", "X-Content-Type-Options")
    assert {header: response[header] for header in headers} == {
        "Content-Disposition": f'attachment; filename="cooking-for-two-{name}.jsonl"',
        "Content-Type": "application/jsonl",
        "X-Content-Type-Options": "nosniff",
    }


def test_export_is_linked_from_the_project(staff):
    project = factories.make_project()

    html = staff.get(change(project)).content.decode()

    assert re.findall(r'<li><a href="([^"]*)">Export ([^<]*)</a></li>', html) == [
        (export(project, name), name) for name in FORMATS
    ]


def test_export_is_not_found_by_those_who_may_not_see_it(staff):
    judgment = factories.make_judgment(
        comparison=factories.make_comparison(project=factories.make_project(is_open=False))
    )
    project = judgment.project
    without_judgments = staff_client("view_project", "change_project")
    without_projects = staff_client("view_judgment")

    answers = [client.get(export(project)).status_code for client in (staff, without_judgments, without_projects)]

    assert answers == [200, 404, 404]
    assert "Export" not in without_judgments.get(change(project)).content.decode()
    assert staff.get(export(project, "pickle")).status_code == 404
    assert staff.get(export(Project(pk=0))).status_code == 404


def test_export_is_for_staff_and_by_get(staff):
    project = factories.make_project()
    annotator = Client()
    annotator.force_login(factories.make_user())

    assert [client.get(export(project)).status_code for client in (Client(), annotator)] == [302, 302]
    assert staff.post(export(project)).status_code == 405


# Comparisons and judgments


def test_comparison_shows_the_source_to_staff(staff):
    prompt = factories.make_prompt(messages=[{"role": "user", "content": "<b>Eggs?</b>"}])
    comparison = factories.make_comparison(prompt=prompt, contents=("Boil.", "Fry."), models=("small", ""))
    first, second = factories.response_ids(comparison)

    html = staff.get(reverse("admin:annotate_comparison_change", args=[comparison.pk])).content.decode()

    shown = re.findall(r'(?s)<div class="readonly">(.*?)</div>', html)
    assert shown[1:3] == [
        "[user]<br>&lt;b&gt;Eggs?&lt;/b&gt;",
        f"[response {first}, by small]<br>Boil.<br><br>[response {second}, model not named]<br>Fry.",
    ]


def test_judgment_shows_the_ranking_in_words(staff):
    comparison = factories.make_comparison(contents=("Boil.", "Fry.", "Poach."), models=("s", "m", "l"))
    judgment = factories.make_judgment(comparison=comparison, order=[[2], [0, 1]])
    first, second, third = factories.response_ids(comparison)

    verdicts = cells(staff.get("/admin/annotate/judgment/"), "verdict")
    html = staff.get(reverse("admin:annotate_judgment_change", args=[judgment.pk])).content.decode()

    assert verdicts == [f"{third} &gt; {first} = {second}"]
    assert (
        f"[1. response {third}, by l]<br>Poach.<br><br>"
        f"[2. response {first}, by s]<br>Boil.<br><br>[2. response {second}, by m]<br>Fry."
    ) in html


def test_judgment_shows_its_strength(staff):
    judgment = factories.make_judgment(strength=2)
    better, worse = factories.response_ids(judgment.comparison)

    assert cells(staff.get("/admin/annotate/judgment/"), "verdict") == [f"{better} &gt; {worse} (much better)"]


@pytest.mark.parametrize("model", ["comparison", "judgment"])
def test_comparisons_and_judgments_are_read_only(staff, model):
    judgment = factories.make_judgment()
    obj = {"comparison": judgment.comparison, "judgment": judgment}[model]
    before = [list(Comparison.objects.values()), list(Judgment.objects.values())]

    answers = [
        staff.get(f"/admin/annotate/{model}/add/").status_code,
        staff.post(f"/admin/annotate/{model}/add/", {}).status_code,
        staff.post(reverse(f"admin:annotate_{model}_change", args=[obj.pk]), {"num_wanted": 9}).status_code,
        staff.post(reverse(f"admin:annotate_{model}_delete", args=[obj.pk]), {"post": "yes"}).status_code,
        staff.post(
            f"/admin/annotate/{model}/", {"action": "delete_selected", "_selected_action": [obj.pk]}
        ).status_code,
    ]

    assert answers == [403, 403, 403, 403, 200]
    assert [list(Comparison.objects.values()), list(Judgment.objects.values())] == before


@pytest.mark.parametrize("model", ["project", "comparison", "judgment"])
def test_staff_see_their_own_projects_only(model):
    """Without the permission to view every project, a staff member sees open ones and those they belong to."""
    hidden = factories.make_project(name="Secret study", is_open=False)
    judgment = factories.make_judgment(comparison=factories.make_comparison(project=hidden))
    client = staff_client("change_project", "view_comparison", "view_judgment")
    obj = {"project": hidden, "comparison": judgment.comparison, "judgment": judgment}[model]

    listed = client.get(f"/admin/annotate/{model}/")
    opened = client.get(reverse(f"admin:annotate_{model}_change", args=[obj.pk]))

    assert (listed.status_code, "Secret study" in listed.content.decode()) == (200, False)
    assert opened.status_code == 302  # the admin sends back to its index what it cannot find


def test_admin_pages_have_a_strict_policy(staff):
    judgment = factories.make_judgment()
    pages = [
        "/admin/",
        "/admin/annotate/project/",
        change(judgment.project),
        "/admin/annotate/judgment/",
        reverse("admin:annotate_judgment_change", args=[judgment.pk]),
    ]

    answers = [staff.get(page) for page in pages]

    assert [answer.status_code for answer in answers] == [200] * len(pages)
    assert [answer for answer in answers if "unsafe-" in answer["Content-Security-Policy"]] == []
    assert [
        re.findall(r"<script(?![^>]*src=)[^>]*>| style=| onclick=", answer.content.decode()) for answer in answers
    ] == [[]] * len(pages)


# What a project is set to


def test_project_is_edited_with_all_that_belongs_to_it(staff):
    boss, amina, ben = factories.make_user(), factories.make_user(), factories.make_user()
    endpoint = {
        "name": "small",
        "kind": "openai",
        "base_url": "http://127.0.0.1:8001/v1",
        "model": "small-1",
        "key_variable": "SMALL_KEY",
        "max_tokens": 100,
        "temperature": 0.5,
        "is_active": "on",
    }
    values = {
        **formset("aspects", {"name": "tone", "text": "Friendly.", "position": 1, "is_asked": "on"}),
        **formset("endpoints", endpoint),
        **{"managers": [boss.pk], "reviewers": [amina.pk, boss.pk], "accounts": [ben.pk, amina.pk]},
    }

    response = staff.post("/admin/annotate/project/add/", project_form(kind="best", strategy="random", **values))

    project = Project.objects.get()
    assert (response.status_code, project.kind, project.strategy) == (302, "best", "random")
    assert list(project.aspects.values_list("name", "text", "position", "is_asked")) == [("tone", "Friendly.", 1, True)]
    assert list(project.endpoints.values(*endpoint)) == [{**endpoint, "is_active": True}]
    assert dict(project.memberships.values_list("user", "role")) == {
        boss.pk: "manager",
        amina.pk: "reviewer",
        ben.pk: "annotator",
    }


def test_change_of_roles(staff):
    amina, ben, cleo = factories.make_user(), factories.make_user(), factories.make_user()
    project = factories.make_project(members=(amina, ben))
    kept = project.memberships.get(user=amina).pk

    staff.post(change(project), project_form(managers=[amina.pk], accounts=[cleo.pk]))

    html = staff.get(change(project)).content.decode()
    assert list(project.memberships.order_by("pk").values_list("user", "role")) == [
        (amina.pk, "manager"),
        (cleo.pk, "annotator"),
    ]
    assert project.memberships.get(user=amina).pk == kept
    assert re.findall(r'<option value="(\d+)" selected>', html) == [str(cleo.pk), str(amina.pk)]


def test_kind_stays_once_somebody_has_judged(staff):
    project = factories.make_judgment().project

    html = staff.post(change(project), project_form(name=project.name, kind="rating")).content.decode()

    assert "There are judgments of the other kind already. Make a new project for this." in html
    assert Project.objects.get().kind == "ranking"


# Import


def importing(project):
    return reverse("admin:annotate_project_import", args=[project.pk])


def upload(content, name="rows.jsonl"):
    return {"file": SimpleUploadedFile(name, content, content_type="application/octet-stream")}


def numbers(response):
    return re.findall(r'<th scope="row">(.*?)</th><td>(\d+)</td>', response.content.decode())


def uploaded():
    return list(Path(settings.FILE_UPLOAD_TEMP_DIR).iterdir())


def test_import_stores_a_file_and_reports(staff):
    project = factories.make_project(name="Cooking")
    rows = [
        {"prompt": "Eggs?", "responses": ["Boil.", "Fry."], "ranking": [[0], [1]]},
        {"prompt": "Tea?", "responses": ["Hot.", "Cold."]},
    ]
    content = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())

    page = staff.get(importing(project))
    response = staff.post(importing(project), upload(content, "rows.jsonl.gz"))

    assert f'<a href="{importing(project)}">Import</a>' in staff.get(change(project)).content.decode()
    assert (page.status_code, response.status_code) == (200, 200)
    assert "Read 2 rows." in response.content.decode()
    assert numbers(response) == [
        ("New prompts", "2"),
        ("New responses", "4"),
        ("New comparisons", "2"),
        ("New judgments", "1"),
        ("Rows that added nothing", "0"),
    ]
    assert (project.comparisons.count(), uploaded()) == (2, [])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"prompt": "Eggs?", "responses": ["Boil."]}', "line 1, responses: must be 2 to 24 responses, not 1"),
        (b"\x1f\x8b\x08 broken", "rows.jsonl: is damaged after line 0"),
        (b"", "The submitted file is empty."),
    ],
)
def test_import_says_what_is_wrong_and_stores_nothing(staff, content, words):
    project = factories.make_project()

    html = staff.post(importing(project), upload(content)).content.decode()

    assert words in html
    assert str(settings.FILE_UPLOAD_TEMP_DIR) not in html
    assert (Comparison.objects.count(), uploaded()) == (0, [])


def test_import_refuses_a_file_that_is_too_long(staff, settings):
    settings.IMPORT_MAX_BYTES = 1000
    assert staff.post(importing(factories.make_project()), upload(b"x" * 2000)).status_code == 400
    assert (Comparison.objects.count(), uploaded()) == (0, [])


def test_import_is_for_staff_who_may_change_the_project(staff):
    project = factories.make_project(is_open=False)
    annotator = Client()
    annotator.force_login(factories.make_user())
    viewer, changer = staff_client("view_project"), staff_client("change_project")

    answers = [client.post(importing(project), upload(b"{}")).status_code for client in (viewer, changer)]

    assert answers == [404, 404]  # the second may change projects, but sees this one as little as anybody
    assert [client.get(importing(project)).status_code for client in (Client(), annotator)] == [302, 302]
    assert staff.get(importing(Project(pk=0))).status_code == 404
    assert staff.put(importing(project)).status_code == 405
    assert "Import" not in viewer.get(change(project)).content.decode()
