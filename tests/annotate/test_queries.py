from datetime import timedelta

import pytest
from django.utils import timezone

from annotate import queries, services
from annotate.models import Endpoint, Gold, Lease, Membership, Standing
from tests.factories import (
    make_annotator,
    make_comparison,
    make_judgment,
    make_lease,
    make_project,
    make_user,
    response_ids,
)

pytestmark = pytest.mark.django_db


def progress(user):
    """For each project: judged by me, and whether something is open to me."""
    return {project.name: (project.num_judged, project.has_open) for project in queries.projects_with_progress(user)}


# Progress


def test_projects_with_progress_say_what_is_mine():
    user = make_user()
    annotator = make_annotator(user=user)
    project = make_project(name="tea", overlap=2)
    judged, skipped, leased, full, half = (make_comparison(project=project) for _ in range(5))
    make_project(name="empty")
    make_project(name="closed", is_open=False)
    make_project(name="mine", is_open=False, members=(user,))

    make_judgment(comparison=judged, annotator=annotator)
    services.skip_comparison(comparison=skipped, annotator=annotator)
    assert make_lease(comparison=leased, annotator=annotator).comparison == leased
    for _ in range(2):
        make_judgment(comparison=full)
    make_judgment(comparison=half)

    assert progress(user) == {"tea": (1, True), "empty": (0, False), "mine": (0, False)}
    assert progress(make_user()) == {"tea": (0, True), "empty": (0, False)}

    services.skip_comparison(comparison=half, annotator=annotator)
    assert progress(user)["tea"] == (1, True)  # what I hold is open to me
    services.skip_comparison(comparison=leased, annotator=annotator)
    assert progress(user)["tea"] == (1, False)


def test_projects_with_progress_find_what_lies_before_the_one_judged_last():
    annotator, project = make_annotator(), make_project(name="tea")
    make_comparison(project=project)
    make_judgment(comparison=make_comparison(project=project), annotator=annotator)

    assert progress(annotator.user) == {"tea": (1, True)}


def test_projects_with_progress_find_places_that_others_left_behind():
    lease = make_lease()
    name = lease.project.name
    assert progress(make_user()) == {name: (0, False)}
    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert progress(make_user()) == {name: (0, True)}

    skipper = make_annotator()
    services.skip_comparison(comparison=lease.comparison, annotator=skipper)
    assert progress(skipper.user) == {name: (0, False)}


def test_projects_with_progress_open_the_queue_after_the_qualification():
    annotator, project = make_annotator(), make_project(name="tea", qualification_size=1)
    make_comparison(project=project)
    assert progress(annotator.user) == {"tea": (0, False)}  # nothing to qualify by
    gold = make_comparison(project=project, is_gold=True, num_wanted=9)
    ranking = [[pk] for pk in response_ids(gold)]
    Gold.objects.create(comparison=gold, project=project, ranking=ranking, use=Gold.Use.QUALIFICATION)
    assert progress(annotator.user) == progress(make_user()) == {"tea": (0, True)}

    make_judgment(comparison=gold, annotator=annotator)
    assert progress(annotator.user) == {"tea": (1, True)}
    Standing.objects.update(qualified_at=None, failed_at=timezone.now())
    assert progress(annotator.user) == {"tea": (1, False)}


def test_projects_with_progress_say_what_else_can_be_done_there():
    user = make_user()
    live, managed, reviewed, plain = (make_project(name=name) for name in ("live", "managed", "reviewed", "plain"))
    Endpoint.objects.create(project=plain, name="one", model="m")
    for name in ("one", "two"):
        Endpoint.objects.create(project=live, name=name, model="m")
    Endpoint.objects.create(project=plain, name="off", model="m", is_active=False)
    Membership.objects.create(project=managed, user=user, role="manager")
    Membership.objects.create(project=reviewed, user=user, role="reviewer")
    Membership.objects.create(project=plain, user=user, role="annotator")

    found = {
        each.name: (each.can_battle, each.is_led, each.is_managed) for each in queries.projects_with_progress(user)
    }

    assert found == {
        "live": (True, False, False),
        "managed": (False, True, True),
        "reviewed": (False, True, False),
        "plain": (False, False, False),
    }


def test_projects_with_progress_asks_as_many_queries_for_three_as_for_one(django_assert_num_queries):
    user = make_user()
    make_comparison()
    with django_assert_num_queries(2):
        assert len(progress(user)) == 1
    make_comparison()
    make_comparison()
    with django_assert_num_queries(2):
        assert len(progress(user)) == 3


def test_projects_with_progress_counts_no_comparisons():
    """Their number may be a million; what is counted grows with it."""
    sql = str(queries.projects_with_progress(make_annotator().user).query)
    assert "COUNT(" not in sql
    assert "LIMIT 1" in sql


# The page


def test_comparison_page_shows_responses_in_the_order_drawn_and_no_model(django_assert_num_queries):
    comparison = make_comparison(contents=("one", "two", "three", "four"), models=("secret",) * 4)
    lease = Lease.objects.get(pk=make_lease(comparison=comparison).pk)
    contents = dict(zip(response_ids(comparison), ("one", "two", "three", "four"), strict=True))

    with django_assert_num_queries(7):  # four by name, then all responses, the aspects, the standing with its draft
        page = queries.comparison_page(lease, lease.project)

    assert page == queries.ComparisonPage(
        project=comparison.project,
        comparison=comparison,
        messages=comparison.prompt.messages,
        responses=[queries.ShownResponse(pk, contents[pk]) for pk in lease.shown_order],
        aspects=[],
        key=lease.key,
        standing=Standing.objects.get(),
        draft={},
    )
    assert (page.num_responses, page.order) == (4, lease.shown_order)
    assert "secret" not in repr(page)


# Rows


def test_judgment_rows_give_the_whole_judgment():
    comparison = make_comparison(contents=("one", "two"), models=("small", ""))
    annotator = make_annotator(user=make_user(username="anna"))
    judgment = make_judgment(comparison=comparison, annotator=annotator, order=[[1], [0]], strength=2, seconds=3.5)
    first, second = response_ids(comparison)

    (row,) = queries.judgment_rows(comparison.project)

    pseudonym = row.pop("annotator")
    assert row == {
        "id": judgment.key.hex[:16],
        "prompt": comparison.prompt.messages,
        "responses": [
            {"role": "assistant", "content": "one", "model": "small"},
            {"role": "assistant", "content": "two", "model": ""},
        ],
        "ranking": [[1], [0]],
        "aspect": "overall",
        "strength": 2,
        "all_bad": False,
        "source": "browser",
        "shown_order": [{first: 0, second: 1}[pk] for pk in judgment.shown_order],
        "seconds": 3.5,
        "meta": {},
    }
    assert pseudonym.startswith("annotator-")
    assert len(pseudonym) == 18
    assert "anna" not in pseudonym


def test_judgment_rows_name_a_person_alike_within_a_project_and_otherwise_elsewhere():
    annotator, project = make_annotator(), make_project()
    for _ in range(2):
        make_judgment(comparison=make_comparison(project=project), annotator=annotator)
    make_judgment(comparison=make_comparison(project=project))
    elsewhere = make_judgment(annotator=annotator)
    names = [row["annotator"] for row in queries.judgment_rows(project)]
    assert names[0] == names[1] != names[2]
    assert [row["annotator"] for row in queries.judgment_rows(elsewhere.project)] != names[:1]


def test_judgment_rows_stop_where_asked():
    project = make_project(overlap=2)
    comparison = make_comparison(project=project)
    first = make_judgment(comparison=comparison)
    second = make_judgment(comparison=comparison, aspect="brevity")
    make_judgment()

    def ids(**values):
        return [row["id"] for row in queries.judgment_rows(project, **values)]

    assert ids() == [first.key.hex[:16], second.key.hex[:16]]
    assert ids(up_to_id=first.pk) == [first.key.hex[:16]]
    assert ids(aspect="brevity") == [second.key.hex[:16]]


def test_judgment_rows_ask_as_many_queries_for_three_as_for_one(django_assert_num_queries):
    project = make_project(overlap=3)
    make_judgment(comparison=make_comparison(project=project))
    with django_assert_num_queries(2):
        assert len(list(queries.judgment_rows(project))) == 1
    make_judgment(comparison=make_comparison(k=5, project=project))
    make_judgment(comparison=make_comparison(project=project))
    with django_assert_num_queries(2):
        assert len(list(queries.judgment_rows(project))) == 3


def test_judgment_rows_come_in_pieces(monkeypatch, django_assert_num_queries):
    monkeypatch.setattr(queries, "ROWS_AT_ONCE", 2)
    project = make_project()
    judgments = [make_judgment(comparison=make_comparison(project=project)) for _ in range(5)]
    with django_assert_num_queries(4):  # the judgments, and the responses of two, two and one
        ids = [row["id"] for row in queries.judgment_rows(project)]
    assert ids == [judgment.key.hex[:16] for judgment in judgments]


def test_judgment_rows_tell_what_else_was_said_by_places_in_the_row():
    comparison = make_comparison(k=3)
    first, _second, third = response_ids(comparison)
    make_judgment(
        comparison=comparison,
        order=[[1], [0, 2]],
        bad=(first, third),
        rationale="Short.",
        placement="placed",
        highlights=[{"response": third, "start": 0, "end": 4, "text": "Boil", "reason": "wrong"}],
        total_seconds=30.0,
    )

    (row,) = queries.judgment_rows(comparison.project)

    assert row["meta"] == {
        "bad": [0, 2],
        "rationale": "Short.",
        "placement": "placed",
        "highlights": [{"response": 2, "start": 0, "end": 4, "text": "Boil", "reason": "wrong"}],
        "total_seconds": 30.0,
    }
