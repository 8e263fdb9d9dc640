import json
import random
import re
from datetime import timedelta

import pytest
import redis
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from annotate import figures, shared, tasks
from annotate.models import Aspect, Flag, Gold, Judgment, Membership, Response, Skip
from tests.factories import make_annotator, make_comparison, make_judgment, make_project, make_user, response_ids

pytestmark = pytest.mark.django_db

PAGES = ("lead", "lead_agreement", "lead_annotators", "lead_models", "lead_flags")


def client_of(user):
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def boss():
    return make_user(username="boss")


@pytest.fixture
def project(boss):
    project = make_project(name="Cooking", overlap=3)
    Membership.objects.create(project=project, user=boss, role="manager")
    return project


@pytest.fixture
def client(boss):
    return client_of(boss)


def url(name, *args):
    return reverse(f"annotate:{name}", args=args)


def text_of(response):
    assert response.status_code == 200
    main = re.sub(r"(?s).*<main.*?>|</main>.*|<(script|details).*?</\1>", "", response.content.decode())
    return " ".join(re.sub(r"<[^>]*>", " ", main).split())


def drawn(response, name):
    """What the script of the page draws."""
    return json.loads(re.search(rf'(?s)<script id="{name}" type="application/json">(.*?)</script>', response.text)[1])


def better_first(number):
    return [[number % 2], [1 - number % 2]]


def judged(project, *, num, right=(0.9, 0.9, 0.9), seed=0):
    """Comparisons on which as many annotators as `right` names tell the better response that often.

    The first response is the better one, then the second, and so on.
    """
    draw = random.Random(seed)
    people = [make_annotator() for _ in right]
    for number in range(num):
        comparison = make_comparison(project=project)
        for annotator, chance in zip(people, right, strict=True):
            order = better_first(number) if draw.random() < chance else better_first(number + 1)
            make_judgment(comparison=comparison, annotator=annotator, order=order)
    return people


@pytest.mark.parametrize("page", PAGES)
def test_pages_of_an_empty_project_open(client, project, page):
    assert client.get(url(page, project.pk)).status_code == 200


@pytest.mark.parametrize("page", [*PAGES, "lead_fresh"])
def test_only_reviewers_and_managers_find_the_pages(project, page):
    found = {}
    for role in ("", "annotator", "reviewer", "manager"):
        user = make_user()
        if role:
            Membership.objects.create(project=project, user=user, role=role)
        found[role] = client_of(user).get(url(page, project.pk)).status_code
    opened = 204 if page == "lead_fresh" else 200
    assert found == {"": 404, "annotator": 404, "reviewer": opened, "manager": opened}


def test_the_list_of_projects_links_leads_to_the_pages(project):
    found = {}
    for role in ("annotator", "reviewer", "manager"):
        user = make_user()
        Membership.objects.create(project=project, user=user, role=role)
        html = client_of(user).get(url("projects")).text
        found[role] = [name for name in ("lead", "review", "people") if url(name, project.pk) in html]
    assert found == {"annotator": [], "reviewer": ["lead", "review"], "manager": ["lead", "review", "people"]}


@pytest.mark.parametrize("page", PAGES)
def test_strangers_are_sent_to_sign_in(project, page):
    address = url(page, project.pk)
    assert Client().get(address).headers["Location"] == f"{reverse('login')}?next={address}"


@pytest.mark.parametrize("page", PAGES)
def test_reviewers_see_no_links_to_pages_that_are_not_theirs(project, page):
    reviewer = make_user()
    Membership.objects.create(project=project, user=reviewer, role="reviewer")
    html = client_of(reviewer).get(url(page, project.pk)).text
    assert url("review", project.pk) in html
    assert [name for name in ("people", "gold", "settings") if url(name, project.pk) in html] == []


def test_overview_says_what_there_is(client, project):
    judged(project, num=12, right=(1, 1, 0))
    make_comparison(project=project)
    text = text_of(client.get(url("lead", project.pk)))
    for sentence in (
        "36 of 39 wanted judgments are made.",
        "A judgment takes 12 seconds (median, idle time taken out)",
        "Two people say the same of a pair 33 % of the time (95 % interval: 33 % to 33 %).",
        "The human ceiling: since people differ, the best possible model agrees with a further person between 50 % and",
        "No comparison has been judged in both of two mirrored orders yet.",
        "No flag is open.",
        "Nothing was skipped.",
    ):
        assert sentence in text


def test_overview_draws_the_days_since_work_began(client, project):
    judged(project, num=2, right=(1,))
    chart = drawn(client.get(url("lead", project.pk)), "chart-days")
    assert (chart["kind"], len(chart["labels"]), sum(point["value"] for point in chart["points"])) == ("bar", 7, 2)


@pytest.mark.parametrize("page", PAGES)
def test_pages_ask_as_many_queries_for_much_as_for_little(client, project, page, django_assert_num_queries):
    address = url(page, project.pk)
    _fill(project, num=2, right=(1, 1, 1))
    with CaptureQueriesContext(connection) as before:
        client.get(address)
    _fill(project, num=6, right=(1, 0, 1, 0, 1))
    with django_assert_num_queries(len(before)):
        client.get(address)


def _fill(project, *, num, right):
    people = judged(project, num=num, right=right)
    comparison = project.comparisons.first()
    for annotator in people:
        Flag.objects.create(comparison=comparison, project=project, annotator=annotator, reason="other")
        Skip.objects.create(comparison=comparison, annotator=annotator, reason="other")
    figures.refresh_figures(project=project)


def test_agreement_of_each_aspect_with_its_measures(client, project):
    aspect = Aspect.objects.create(project=project, name="harmlessness")
    people = judged(project, num=5, right=(1, 0.5))
    for judgment in Judgment.objects.filter(annotator=people[0]):
        for annotator in people:
            Judgment.objects.create(
                comparison=judgment.comparison,
                project=project,
                annotator=annotator,
                aspect=aspect.name,
                ranking=judgment.ranking,
                source="browser",
            )
    response = client.get(url("lead_agreement", project.pk))
    assert re.findall(r"<h2.*?>(.*?)</h2>", response.text) == ["Overall", "harmlessness"]
    assert "Agreement 1.00 1.00 \N{EN DASH} 1.00 how often two people say the same of a pair" in text_of(response)
    assert drawn(response, "chart-2")["points"][0] == {"value": 1, "low": 1, "high": 1}


def test_annotators_are_listed_and_liars_named(client, project):
    *good, liar = judged(project, num=25, right=(0.95, 0.9, 0.95, 0.9, 0.05))
    text = text_of(client.get(url("lead_annotators", project.pk)))
    assert f"{liar} answers the wrong way round: what they prefer, the others reject." in text
    assert [f"{annotator} wrong way round" in text for annotator in [*good, liar]] == [False] * 4 + [True]


def test_refusal_asks_for_known_answers(client, project):
    judged(project, num=30, right=(0.95, 0.95, 0.05, 0.05))
    response = client.get(url("lead_annotators", project.pk))
    assert "Who is reliable cannot be told from the judgments: 2 annotators agree with one side" in text_of(response)
    assert "Give comparisons that they judged a known answer; then it can be told." in text_of(response)


def test_known_answers_settle_who_is_right(client, project):
    people = judged(project, num=30, right=(0.95, 0.95, 0.05, 0.05))
    for number, comparison in enumerate(project.comparisons.all()[:10]):
        ids = response_ids(comparison)
        ranking = [[ids[place] for place in group] for group in better_first(number)]
        Gold.objects.create(comparison=comparison, project=project, ranking=ranking)
        comparison.is_gold = True
        comparison.save()
    text = text_of(client.get(url("lead_annotators", project.pk)))
    assert f"{people[2]}, {people[3]} answer the wrong way round: what they prefer, the others reject." in text


def test_suspicious_work_is_named_with_its_reason(client, project):
    fast, careful = make_annotator(), make_annotator()
    draw = random.Random(0)
    for number in range(30):
        comparison = make_comparison(project=project)
        for annotator, seconds in ((fast, 0.1), (careful, 30)):
            place = draw.randrange(2) if number else 0
            order = [[place], [1 - place]]
            make_judgment(comparison=comparison, annotator=annotator, order=order, seconds=seconds)
    text = text_of(client.get(url("lead_annotators", project.pk)))
    assert f"{fast} : judged faster than anybody can read (100 % of their judgments)" in text
    assert f"{careful} :" not in text


def test_many_annotators_come_in_pages(client, project):
    people = [make_annotator() for _ in range(51)]
    for annotator in people:
        make_judgment(comparison=make_comparison(project=project), annotator=annotator)
    assert "Page 1 of 2" in text_of(client.get(url("lead_annotators", project.pk)))
    second = text_of(client.get(url("lead_annotators", project.pk), {"page": 2}))
    assert [annotator.name in second for annotator in people].count(True) == 1


def test_leaderboard_with_wins_and_meetings(client, project):
    for number in range(20):
        make_judgment(comparison=make_comparison(project=project), order=better_first(number % 4 // 3))
    response = client.get(url("lead_models", project.pk))
    assert drawn(response, "chart-models")["labels"] == ["model-0", "model-1"]
    assert "model-0 model-1 model-0 75 % model-1 25 %" in text_of(response)


def test_answers_that_tell_who_wrote_them_are_counted(client, project):
    make_comparison(project=project, contents=("I am Claude.", "Hello."), models=("claude", "other"))
    Response.objects.filter(content="I am Claude.").update(giveaway="I am Claude")
    assert "claude 1 I am Claude" in text_of(client.get(url("lead_models", project.pk)))


def test_a_flag_is_resolved_once(client, project, boss):
    comparison, annotator = make_comparison(project=project), make_annotator()
    flag = Flag.objects.create(comparison=comparison, project=project, annotator=annotator, reason="harmful")
    assert "harmful or illegal content" in text_of(client.get(url("lead_flags", project.pk)))
    address = url("resolve_flag", project.pk, flag.pk)
    assert client.get(address).status_code == 405
    assert client.post(address).headers["Location"] == url("lead_flags", project.pk)
    flag.refresh_from_db()
    first = flag.resolved_at
    other = make_user()
    Membership.objects.create(project=project, user=other, role="reviewer")
    client_of(other).post(address)
    flag.refresh_from_db()
    assert (flag.resolved_at, flag.resolved_by) == (first, boss)
    assert "No flag is open." in text_of(client.get(url("lead_flags", project.pk)))


def test_flags_of_other_projects_are_not_to_be_resolved(client, project):
    flag = Flag.objects.create(
        comparison=(comparison := make_comparison()),
        project=comparison.project,
        annotator=make_annotator(),
        reason="other",
    )
    assert client.post(url("resolve_flag", project.pk, flag.pk)).status_code == 404
    assert client.post(url("resolve_flag", comparison.project_id, flag.pk)).status_code == 404
    flag.refresh_from_db()
    assert flag.resolved_at is None


def test_skips_are_counted_by_reason(client, project):
    for reason in ("language", "language", "upsetting"):
        Skip.objects.create(comparison=make_comparison(project=project), annotator=make_annotator(), reason=reason)
    text = text_of(client.get(url("lead_flags", project.pk)))
    assert "How often I do not know the language 2 I do not want to read this 1" in text


@pytest.fixture
def large(monkeypatch):
    """Every project is too large to be counted in a request; what workers are asked is noted."""
    monkeypatch.setattr(figures, "SMALL", 0)
    monkeypatch.setattr(shared, "connect", lambda: redis.Redis(port=1))
    asked = []
    monkeypatch.setattr(tasks.refresh_figures, "delay", asked.append)
    return asked


def test_a_large_project_shows_old_figures_and_asks_for_new_ones(client, project, large):
    judged(project, num=1, right=(1,))
    first = client.get(url("lead", project.pk))
    assert "The judgments are being counted for the first time." in text_of(first)
    figures.refresh_figures(project=project)
    assert "counted" not in text_of(client.get(url("lead", project.pk)))
    judged(project, num=1, right=(1,))
    second = text_of(client.get(url("lead", project.pk)))
    assert "There are newer judgments. They are being counted; what you see is from before." in second
    assert "1 of 3 wanted judgments are made." in second
    assert large == [project.pk] * 2


def test_page_with_old_figures_is_told_of_new_ones(client, project):
    judged(project, num=1, right=(1,))
    kept = figures.refresh_figures(project=project)
    address = url("lead_fresh", project.pk)
    assert client.get(address, {"version": kept.computed_at.isoformat()}).status_code == 204
    older = (kept.computed_at - timedelta(seconds=5)).isoformat()
    assert "There are new figures." in client.get(address, {"version": older}).text


@pytest.mark.parametrize("page", PAGES)
def test_hostile_names_are_text(client, project, page):
    hostile = "</script><img src=x onerror=alert(1)>"
    make_judgment(
        comparison=make_comparison(project=project, models=(hostile, "b")),
        annotator=make_annotator(user=make_user(username="mallory")),
    )
    for _ in range(6):
        make_judgment(comparison=make_comparison(project=project, models=(hostile, "b")))
    assert "<img src=x" not in client.get(url(page, project.pk)).text
