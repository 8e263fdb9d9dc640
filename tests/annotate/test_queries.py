from datetime import timedelta

import pytest
from django.utils import timezone

from annotate import queries, services
from annotate.models import Lease
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
    """For each project: all comparisons, judged by me, open to me."""
    return {
        project.name: (project.num_comparisons, project.num_judged, project.num_open)
        for project in queries.projects_with_progress(user)
    }


# Progress


def test_projects_with_progress_counts_what_is_mine():
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

    assert progress(user) == {"tea": (5, 1, 2), "empty": (0, 0, 0), "mine": (0, 0, 0)}
    assert progress(make_user()) == {"tea": (5, 0, 4), "empty": (0, 0, 0)}


def test_projects_with_progress_counts_places_that_others_left_behind():
    lease = make_lease()
    name = lease.project.name
    assert progress(make_user()) == {name: (1, 0, 0)}
    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert progress(make_user()) == {name: (1, 0, 1)}
    assert progress(lease.annotator.user) == {name: (1, 0, 1)}  # not once as mine and once as left behind

    skipper = make_annotator()
    services.skip_comparison(comparison=lease.comparison, annotator=skipper)
    assert progress(skipper.user) == {name: (1, 0, 0)}


def test_projects_with_progress_asks_as_many_queries_for_three_as_for_one(django_assert_num_queries):
    user = make_user()
    make_comparison()
    with django_assert_num_queries(2):
        assert len(progress(user)) == 1
    make_comparison()
    make_comparison()
    with django_assert_num_queries(2):
        assert len(progress(user)) == 3


# The page


def test_comparison_page_shows_responses_in_the_order_drawn_and_no_model(django_assert_num_queries):
    comparison = make_comparison(contents=("one", "two", "three", "four"), models=("secret",) * 4)
    lease = Lease.objects.get(pk=make_lease(comparison=comparison).pk)
    contents = dict(zip(response_ids(comparison), ("one", "two", "three", "four"), strict=True))

    with django_assert_num_queries(4):  # comparison, prompt and project by name, then all responses
        page = queries.comparison_page(lease, lease.project)

    assert page == queries.ComparisonPage(
        project=comparison.project,
        comparison=comparison,
        messages=comparison.prompt.messages,
        responses=[queries.ShownResponse(pk, contents[pk]) for pk in lease.shown_order],
        key=lease.key,
    )
    assert (page.num_responses, page.is_pairwise) == (4, False)
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
