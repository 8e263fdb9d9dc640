import re

import pytest
from django.test import Client
from django.urls import reverse

from annotate.formats import FORMATS
from annotate.models import Aspect, Comparison, Gold, Guidelines, Membership, Project
from annotate.queries import judgment_rows
from tests.annotate.test_admin import formset, project_form
from tests.factories import make_comparison, make_judgment, make_project, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def project():
    return make_project(name="Cooking")


@pytest.fixture
def client(project):
    boss = make_user(username="boss")
    Membership.objects.create(project=project, user=boss, role="manager")
    client = Client()
    client.force_login(boss)
    return client


@pytest.fixture
def page(project):
    return reverse("annotate:settings", args=[project.pk])


def errors(response):
    return re.findall(r'class="errorlist[^>]*><li>(.*?)</li>', response.content.decode())


def test_managers_change_everything_but_endpoints(client, project, page):
    values = {
        "name": "Baking",
        "description": "Bread.",
        "guidelines": "Prefer crust.",
        "kind": "rating",
        "rating_max": 7,
        "overlap": 3,
        "lease_minutes": 20,
        "strategy": "informative",
        "random_share": 0.3,
        "mirror_share": 0.4,
        "gold_rate": 0.05,
        "gold_feedback": True,
        "qualification_size": 0,
        "qualification_accuracy": 0.8,
        "is_open": False,
    }
    sent = {name: value for name, value in values.items() if value is not False}
    endpoint = {"name": "inner", "base_url": "http://10.0.0.1/", "model": "m", "kind": "openai"}
    comparison = make_comparison(project=project)

    answer = client.post(
        page,
        {
            **sent,
            **formset("aspects", {"name": "harmless", "position": 0, "is_asked": "on"}),
            **formset("endpoints", endpoint),
        },
    )

    assert (answer.status_code, answer.url) == (302, page)
    assert Project.objects.values(*values).get() == values
    assert list(Aspect.objects.values_list("project", "name", "is_asked")) == [(project.pk, "harmless", True)]
    assert list(Guidelines.objects.values_list("version", "text")) == [(1, "Prefer crust.")]
    assert Comparison.objects.get(pk=comparison.pk).num_wanted == 3
    assert not project.endpoints.exists()
    assert "endpoint" not in client.get(page).content.decode()


def test_aspects_are_changed_and_removed(client, project, page):
    kept, removed = (Aspect.objects.create(project=project, name=name) for name in ("tone", "truth"))
    rows = [
        {"id": kept.pk, "name": "voice", "position": 1},
        {"id": removed.pk, "name": "truth", "position": 0, "DELETE": "on"},
    ]
    client.post(page, project_form(**formset("aspects", *rows)) | {"aspects-INITIAL_FORMS": 2})

    assert list(Aspect.objects.values_list("pk", "name", "position", "is_asked")) == [(kept.pk, "voice", 1, False)]


def test_a_refused_form_saves_nothing_and_keeps_the_title(client, project, page):
    answer = client.post(page, project_form(name="", overlap=0, random_share=2))

    assert errors(answer) == [
        "This field is required.",
        "Ensure this value is greater than or equal to 1.",
        "Ensure this value is less than or equal to 1.0.",
    ]
    assert "<h1>Cooking</h1>" in answer.content.decode()
    assert Project.objects.values_list("name", "overlap").get() == ("Cooking", 1)


def test_kind_stays_once_somebody_has_judged(client, project, page):
    make_judgment(comparison=make_comparison(project=project))

    answer = client.post(page, project_form(kind="best"))

    assert errors(answer) == ["There are judgments of the other kind already. Make a new project for this."]
    assert Project.objects.get().kind == "ranking"


def test_scale_stays_once_somebody_has_rated(client, project, page):
    project.kind = "rating"
    project.save()
    client.post(page, project_form(kind="rating", rating_max=7))
    comparison = make_comparison(project=project)
    ratings = dict.fromkeys(comparison.options.values_list("response_id", flat=True), 7)
    make_judgment(comparison=comparison, order=[[0, 1]], ratings=ratings)

    answer = client.post(page, project_form(kind="rating", rating_max=5))

    assert errors(answer) == ["There are ratings on the other scale already. Make a new project for this."]
    assert Project.objects.get().rating_max == 7


def test_qualification_needs_its_comparisons(client, project, page):
    comparison = make_comparison(project=project, is_gold=True)
    Gold.objects.create(comparison=comparison, project=project, ranking=[], use="qualification")

    answers = [client.post(page, project_form(qualification_size=size)) for size in (2, 1)]

    assert errors(answers[0]) == ["Nobody could qualify. Known answers that are there for it: 1. Add some first."]
    assert (answers[1].status_code, Project.objects.get().qualification_size) == (302, 1)


def test_whoever_is_no_manager_finds_nothing(project, page):
    annotator, reviewer, elsewhere = make_user(), make_user(), make_user()
    Membership.objects.create(project=project, user=annotator)
    Membership.objects.create(project=project, user=reviewer, role="reviewer")
    Membership.objects.create(project=make_project(), user=elsewhere, role="manager")
    answers = set()
    for user in (annotator, reviewer, elsewhere):
        client = Client()
        client.force_login(user)
        answers |= {client.get(page).status_code, client.post(page, project_form(name="Mine")).status_code}

    assert (answers, Project.objects.filter(name="Mine").exists()) == ({404}, False)
    assert Client().get(page).url == f"/login/?next={page}"


def test_wrong_method_is_refused(client, page):
    assert client.delete(page).status_code == 405


# Export


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_export_is_the_file_that_the_command_writes(client, project, page, name):
    make_judgment(comparison=make_comparison(project=project, k=3))
    address = reverse("annotate:export", args=[project.pk, name])

    response = client.get(address)

    assert f'href="{address}"' in client.get(page).content.decode()
    assert response.getvalue().decode() == "".join(FORMATS[name](judgment_rows(project)))
    assert response["Content-Disposition"] == f'attachment; filename="cooking-{name}.jsonl"'


def test_export_is_for_managers_and_by_get(client, project):
    address = reverse("annotate:export", args=[project.pk, "rankings"])
    reviewer = make_user()
    Membership.objects.create(project=project, user=reviewer, role="reviewer")
    other = Client()
    other.force_login(reviewer)

    assert (other.get(address).status_code, client.post(address).status_code) == (404, 405)
    assert Client().get(address).url == f"/login/?next={address}"
    assert client.get(reverse("annotate:export", args=[project.pk, "pickle"])).status_code == 404
