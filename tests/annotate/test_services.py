import json
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from annotate import services
from annotate.answers import Answer, Edit
from annotate.errors import BadFile, BadProject, BadRanking, BadRow, NotLeased, NotRevisable, UnknownQuality
from annotate.insert import insert
from annotate.models import (
    Annotator,
    Comparison,
    Draft,
    Flag,
    Judgment,
    Lease,
    Project,
    Prompt,
    Response,
    Revision,
    Skip,
    Standing,
)
from annotate.queries import judgment_rows
from tests.factories import (
    make_annotator,
    make_comparison,
    make_judgment,
    make_lease,
    make_project,
    make_prompt,
    make_user,
    response_ids,
)

pytestmark = pytest.mark.django_db

TOMORROW = timedelta(days=1)


def places(comparison):
    comparison.refresh_from_db()
    return comparison.num_taken, comparison.num_wanted


def submit(lease, **values):
    """What the page sends: by default the responses ranked as they were shown."""
    return services.record_judgment(
        **{
            "comparison": lease.comparison,
            "annotator": lease.annotator,
            "ranking": [[pk] for pk in lease.shown_order],
            "key": lease.key,
            "source": Judgment.Source.BROWSER,
            **values,
        }
    )


def statements(queries):
    """Without what only opens and closes a transaction."""
    return [
        query["sql"] for query in queries if not query["sql"].startswith(("SAVEPOINT", "RELEASE", "BEGIN", "COMMIT"))
    ]


# Annotators


def test_annotator_for_makes_one_person_for_each_user():
    user = make_user(username="anna")
    annotator = services.annotator_for(user=user)
    assert (annotator.kind, annotator.user, annotator.name, annotator.project) == ("person", user, "anna", None)
    assert services.annotator_for(user=user) == annotator


# Leases


def test_lease_next_takes_a_place_before_anything_is_shown():
    comparison, annotator, now = make_comparison(k=4, num_wanted=2), make_annotator(), timezone.now()
    lease = services.lease_next(project=comparison.project, annotator=annotator, now=now)
    assert lease == Lease.objects.get()
    assert (lease.comparison, lease.annotator, lease.project) == (comparison, annotator, comparison.project)
    assert (lease.leased_at, lease.expires_at) == (now, now + timedelta(minutes=15))
    assert sorted(lease.shown_order) == response_ids(comparison)
    assert places(comparison) == (1, 2)


def test_lease_next_gives_a_reload_the_same_lease():
    lease = make_lease()
    assert services.lease_next(project=lease.project, annotator=lease.annotator) == lease
    assert places(lease.comparison) == (1, 1)


def test_lease_next_goes_through_the_comparisons_in_order():
    project, annotator = make_project(overlap=2), make_annotator()
    comparisons = [make_comparison(project=project) for _ in range(3)]
    seen = []
    while lease := services.lease_next(project=project, annotator=annotator):
        seen.append(submit(lease).comparison)
    assert seen == comparisons


def test_lease_next_comes_back_to_what_was_left_behind():
    project, anna, boris = make_project(), make_annotator(), make_annotator()
    first, second = make_comparison(project=project), make_comparison(project=project)
    held = make_lease(comparison=first, annotator=boris)
    submit(make_lease(comparison=second, annotator=anna))
    assert services.lease_next(project=project, annotator=anna) is None
    held.delete()
    Comparison.objects.filter(pk=first.pk).update(num_taken=0)
    assert services.lease_next(project=project, annotator=anna).comparison == first


@pytest.mark.parametrize("why", ["judged", "skipped", "full", "elsewhere"])
def test_lease_next_offers_nothing_that_is(why):
    comparison, annotator = make_comparison(num_wanted=2), make_annotator()
    project = comparison.project
    match why:
        case "judged":
            make_judgment(comparison=comparison, annotator=annotator)
        case "skipped":
            services.skip_comparison(comparison=comparison, annotator=annotator)
        case "full":
            make_judgment(comparison=comparison)
            make_lease(comparison=comparison)
        case "elsewhere":
            project = make_project()
    assert services.lease_next(project=project, annotator=annotator) is None


def test_lease_next_reaps_expired_leases_of_the_project_only():
    late, others = make_lease(comparison=make_comparison(num_wanted=2)), make_lease()
    second = make_lease(comparison=late.comparison)
    assert places(late.comparison) == (2, 2)

    lease = services.lease_next(project=late.project, annotator=make_annotator(), now=timezone.now() + TOMORROW)

    assert lease.comparison == late.comparison
    assert set(Lease.objects.all()) == {lease, others}
    assert {late, second}.isdisjoint(Lease.objects.all())
    assert (places(late.comparison), places(others.comparison)) == ((1, 2), (1, 1))


def test_lease_next_gives_its_annotator_an_expired_lease_anew():
    lease = make_lease()
    tomorrow = timezone.now() + TOMORROW
    renewed = services.lease_next(project=lease.project, annotator=lease.annotator, now=tomorrow)
    assert renewed.pk != lease.pk
    assert (renewed.comparison, renewed.shown_order, renewed.key) == (lease.comparison, lease.shown_order, lease.key)
    assert renewed.expires_at > tomorrow
    assert places(lease.comparison) == (1, 1)


def test_shown_order_differs_between_annotators_and_is_fair():
    comparison = make_comparison(num_wanted=200)
    first = response_ids(comparison)[0]
    project, annotators = comparison.project, [make_annotator() for _ in range(200)]
    left = [
        services.lease_next(project=project, annotator=annotator).shown_order[0] == first for annotator in annotators
    ]
    assert 70 < sum(left) < 130


def test_lease_next_asks_few_queries_whatever_the_number_of_comparisons():
    project = make_project(overlap=2)
    for _ in range(3):
        make_comparison(project=project)
    annotator = make_annotator()
    submit(services.lease_next(project=project, annotator=annotator))
    with CaptureQueriesContext(connection) as queries:
        lease = services.lease_next(project=project, annotator=annotator)
    assert len(statements(queries)) == 7
    with CaptureQueriesContext(connection) as queries:
        submit(lease)
    assert len(statements(queries)) == 7


@pytest.mark.skipif(connection.vendor != "sqlite", reason="reads SQLite's query plan")
@pytest.mark.parametrize(
    ("values", "first", "further"),
    [
        ({}, "comparison_open (project_id=?)", "comparison_open (project_id=? AND id>?)"),
        (
            {"strategy": "random"},
            "comparison_open_random (project_id=?)",
            "comparison_open_random (project_id=? AND shuffle>?)",
        ),
        ({"strategy": "informative", "random_share": 0}, *["comparison_open_priority (project_id=?)"] * 2),
        ({"strategy": "informative", "random_share": 1}, *["comparison_open_random (project_id=?)"] * 2),
    ],
)
def test_lease_next_searches_open_comparisons_by_the_index_of_their_order(values, first, further):
    project, annotator = make_project(**values), make_annotator()
    prompt = make_prompt(project=project)
    rows = [(project.pk, prompt.pk, f"{n:064}", 2, int(n < 400)) for n in range(500)]
    insert(Comparison, ("project", "prompt", "digest", "num_responses", "num_taken"), rows)
    for index in (first, further):
        with CaptureQueriesContext(connection) as queries:
            lease = services.lease_next(project=project, annotator=annotator)
        (search,) = [sql for sql in statements(queries) if "comparison.num_taken <" in sql]
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN QUERY PLAN {search}")
            plan = [detail for *_, detail in cursor.fetchall()]
        assert plan[0] == f"SEARCH comparison USING INDEX {index}"
        assert not [step for step in plan if step.startswith(("SCAN", "USE TEMP B-TREE"))]
        Lease.objects.all().delete()
        Standing.objects.update(last_comparison=lease.comparison_id)


# Judgments


def test_record_judgment_turns_the_lease_into_a_judgment():
    lease = make_lease(comparison=make_comparison(k=3))
    a, b, c = lease.shown_order

    judgment = submit(lease, ranking=[[c], [a, b]], is_all_bad=True, seconds=9.5)

    judgment.refresh_from_db()
    assert (judgment.comparison, judgment.annotator, judgment.project) == (
        lease.comparison,
        lease.annotator,
        lease.project,
    )
    assert (judgment.ranking, judgment.shown_order) == ([[c], [a, b]], lease.shown_order)
    assert (judgment.strength, judgment.is_all_bad, judgment.is_extra) == (None, True, False)
    assert (judgment.aspect, judgment.seconds, judgment.source) == ("overall", 9.5, "browser")
    assert (judgment.key, judgment.import_key, judgment.repeat) == (lease.key, None, 0)
    assert list(Lease.objects.all()) == []
    assert places(lease.comparison) == (1, 1)


def test_record_judgment_stores_a_submit_once_however_often_it_comes():
    lease = make_lease()
    first = submit(lease)
    again = submit(lease, ranking=[[pk] for pk in reversed(lease.shown_order)])  # another verdict, by the back button
    other_key = submit(lease, key=uuid4())
    assert first == again == other_key == Judgment.objects.get()
    assert Judgment.objects.get().ranking == [[pk] for pk in lease.shown_order]
    assert places(lease.comparison) == (1, 1)


def test_record_judgment_takes_a_free_place_where_the_lease_ran_out():
    lease = make_lease(comparison=make_comparison(num_wanted=2))
    newer = services.lease_next(project=lease.project, annotator=make_annotator(), now=timezone.now() + TOMORROW)
    assert newer.comparison == lease.comparison
    assert submit(lease).is_extra is False
    assert places(lease.comparison) == (2, 2)


def test_record_judgment_keeps_a_late_one_as_extra_where_no_place_is_free():
    lease = make_lease()
    newer = services.lease_next(project=lease.project, annotator=make_annotator(), now=timezone.now() + TOMORROW)
    judgment = submit(lease)
    assert (judgment.is_extra, judgment.shown_order) == (True, lease.shown_order)
    assert submit(newer).is_extra is False
    assert places(lease.comparison) == (1, 1)


def test_record_judgment_refuses_somebody_who_never_saw_the_comparison():
    lease, stranger = make_lease(), make_annotator()
    with pytest.raises(NotLeased, match="This comparison was not shown to you"):
        submit(lease, annotator=stranger, key=uuid4())
    with pytest.raises(NotLeased, match="This comparison was not shown to you"):
        submit(lease, annotator=stranger)  # a key seen on somebody's screen
    submit(lease)
    with pytest.raises(NotLeased, match="This page belongs to somebody else"):
        submit(lease, annotator=stranger)
    assert Judgment.objects.count() == 1


@pytest.mark.parametrize(
    ("order", "strength"),
    [
        pytest.param([[0]], None, id="one is missing"),
        pytest.param([[0], [0], [1]], None, id="one stands twice"),
        pytest.param([[0], [1], []], None, id="a group is empty"),
        pytest.param([], None, id="nothing is ranked"),
        pytest.param([[0], [1], [7]], None, id="another comparison's response"),
        pytest.param([[0, 1]], 1, id="a tie is not strong"),
        pytest.param([[0], [1]], 3, id="no such strength"),
    ],
)
def test_record_judgment_refuses_a_bad_ranking_and_keeps_the_lease(order, strength):
    lease = make_lease()
    stray = response_ids(make_comparison())[0]
    ids = {**dict(enumerate(lease.shown_order)), 7: stray}
    with pytest.raises(BadRanking):
        submit(lease, ranking=[[ids[place] for place in group] for group in order], strength=strength)
    assert (Lease.objects.get(), Judgment.objects.count()) == (lease, 0)


def test_record_judgment_refuses_the_strength_of_a_list():
    lease = make_lease(comparison=make_comparison(k=3))
    with pytest.raises(BadRanking, match="Only a pair with a better response has a strength"):
        submit(lease, strength=1)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, None])
def test_record_judgment_leaves_out_a_time_that_cannot_be(seconds):
    assert submit(make_lease(), seconds=seconds).seconds is None


# Skips


def test_skip_comparison_gives_the_place_to_others():
    lease = make_lease()
    for _ in range(2):
        services.skip_comparison(comparison=lease.comparison, annotator=lease.annotator)
    assert Skip.objects.get().annotator == lease.annotator
    assert places(lease.comparison) == (0, 1)
    assert services.lease_next(project=lease.project, annotator=lease.annotator) is None
    assert services.lease_next(project=lease.project, annotator=make_annotator()).comparison == lease.comparison


# Files


# Aspects, edits, and changing one's mind


def test_record_judgment_stores_every_aspect_of_one_submit():
    lease = make_lease()
    first, second = lease.shown_order

    submit(
        lease,
        strength=2,
        aspects={"harmlessness": Answer([[second], [first]], strength=1)},
        rationale="Clearer.",
        placement=Judgment.Placement.PLACED,
        total_seconds=20.0,
    )
    submit(lease, aspects={"harmlessness": Answer([[first], [second]])})

    fields = ("aspect", "ranking", "strength", "rationale", "placement", "total_seconds")
    assert list(Judgment.objects.values_list(*fields)) == [
        ("overall", [[first], [second]], 2, "Clearer.", "placed", 20.0),
        ("harmlessness", [[second], [first]], 1, "Clearer.", "placed", 20.0),
    ]


def test_record_judgment_stores_nothing_where_an_aspect_is_refused():
    lease = make_lease()

    with pytest.raises(BadRanking):
        submit(lease, aspects={"harmlessness": Answer([lease.shown_order[:1]])})

    assert (Judgment.objects.count(), Lease.objects.count()) == (0, 1)


def test_record_judgment_ranks_an_edited_response_first():
    lease = make_lease(comparison=make_comparison(contents=("Seven.", "Eight."), models=("a", "b")))
    first, second = lease.shown_order

    judgment = submit(lease, edit=Edit("Seven minutes.", first))

    edited = judgment.edited_response
    assert judgment.ranking == [[edited.pk], [first], [second]]
    assert (edited.content, edited.model, edited.author, edited.edited_from_id, edited.prompt) == (
        "Seven minutes.",
        "",
        lease.annotator,
        first,
        lease.comparison.prompt,
    )
    (row,) = judgment_rows(lease.comparison.project)
    assert [response["content"] for response in row["responses"]] == ["Seven.", "Eight.", "Seven minutes."]
    assert (row["ranking"][0], row["meta"]) == ([2], {"edited_response": 2})


def test_record_judgment_takes_an_edit_that_changes_nothing_for_none():
    lease = make_lease(comparison=make_comparison(contents=("Seven.", "Eight."), models=("a", "b")))

    judgment = submit(lease, edit=Edit("Seven.", lease.shown_order[0]))

    assert (judgment.edited_response, judgment.ranking) == (None, [[pk] for pk in lease.shown_order])


def test_record_judgment_says_under_which_guidelines_it_was_made():
    project = make_project(guidelines="Be kind.")
    make_comparison(project=project)
    lease = make_lease(comparison=project.comparisons.get())
    project.guidelines = "Be kind and brief."
    project.save()

    judgment = submit(lease)

    assert judgment.guidelines_version == 1
    assert list(project.guidelines_texts.values_list("version", "text")) == [(1, "Be kind."), (2, "Be kind and brief.")]


def test_revise_judgment_keeps_what_was_said_before():
    lease = make_lease()
    first, second = lease.shown_order
    judgment = submit(lease, strength=2, aspects={"tone": Answer([[first], [second]])}, rationale="Clear.")

    services.revise_judgment(
        judgment=judgment, answer=Answer([[second], [first]], strength=1), aspects={"tone": Answer([[first], [second]])}
    )

    assert list(Judgment.objects.values_list("aspect", "ranking", "strength", "num_revisions")) == [
        ("overall", [[second], [first]], 1, 1),
        ("tone", [[first], [second]], None, 0),
    ]
    (revision,) = Revision.objects.all()
    assert (revision.judgment, revision.values["ranking"], revision.values["strength"]) == (
        judgment,
        [[first], [second]],
        2,
    )


def test_revise_judgment_stores_the_same_answer_no_second_time():
    lease = make_lease()
    judgment = submit(lease, strength=2)

    for _ in range(2):
        services.revise_judgment(judgment=judgment, answer=Answer([[pk] for pk in lease.shown_order[::-1]]))

    judgment.refresh_from_db()
    assert (judgment.num_revisions, Revision.objects.count()) == (1, 1)


def test_revise_judgment_adds_an_aspect_that_was_not_asked_then():
    lease = make_lease()
    judgment = submit(lease)

    answer = Answer(judgment.ranking)
    services.revise_judgment(judgment=judgment, answer=answer, aspects={"tone": Answer(judgment.ranking)})

    assert list(Judgment.objects.values_list("aspect", "shown_order", "source", "num_revisions")) == [
        ("overall", lease.shown_order, "browser", 0),
        ("tone", lease.shown_order, "browser", 0),
    ]


def test_revise_judgment_reaches_the_last_twenty():
    project, annotator = make_project(), make_annotator()
    judgments = [make_judgment(comparison=make_comparison(project=project), annotator=annotator) for _ in range(21)]

    services.revise_judgment(judgment=judgments[1], answer=Answer(judgments[1].ranking[::-1]))
    with pytest.raises(NotRevisable, match=r"^Only your last 20 judgments can be changed\.$"):
        services.revise_judgment(judgment=judgments[0], answer=Answer(judgments[0].ranking[::-1]))

    assert list(services.revisable(project, annotator)) == judgments[:0:-1]


# Drafts and flags


def test_a_draft_is_kept_until_the_judgment_comes():
    lease = make_lease()
    here = {"comparison": lease.comparison, "annotator": lease.annotator}

    for rationale in ("Cle", "Clear"):
        assert services.save_draft(**here, values={"rationale": rationale})

    assert list(Draft.objects.values_list("comparison", "annotator", "values")) == [
        (lease.comparison_id, lease.annotator_id, {"rationale": "Clear"})
    ]
    submit(lease)
    assert Draft.objects.count() == 0


def test_a_draft_of_a_comparison_that_was_never_mine_is_refused():
    lease = make_lease()

    assert not services.save_draft(comparison=lease.comparison, annotator=make_annotator(), values={"rationale": "x"})
    assert Draft.objects.count() == 0


def test_flag_comparison_leaves_the_comparison_with_its_annotator():
    lease = make_lease()
    here = {"comparison": lease.comparison, "annotator": lease.annotator, "reason": Flag.Reason.PRIVATE}

    for note in ("A name.", "A name and a number."):
        services.flag_comparison(**here, note=note)

    assert list(Flag.objects.values_list("reason", "note", "resolved_at")) == [
        ("private", "A name and a number.", None)
    ]
    assert Lease.objects.get() == lease


def test_skip_comparison_keeps_its_reason():
    lease = make_lease()

    services.skip_comparison(
        comparison=lease.comparison, annotator=lease.annotator, reason=Skip.Reason.LANGUAGE, note="Finnish?"
    )

    assert list(Skip.objects.values_list("reason", "note")) == [("language", "Finnish?")]


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


GOOD = {"prompt": "Tea?", "responses": ["Yes.", "No."], "ranking": [[0], [1]]}


def test_import_into_makes_the_project_it_needs(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", GOOD)
    project, report = services.import_into(name="tea", path=path, overlap=3, is_closed=True)
    assert (project.name, project.overlap, project.is_open, report.judgments) == ("tea", 3, False, 1)
    again, report = services.import_into(name="tea", path=path, overlap=3, is_closed=True)
    assert (again, report.judgments, report.already_there) == (project, 0, 1)


def test_import_into_stores_nothing_of_a_file_with_a_bad_row(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", GOOD, {**GOOD, "prompt": "Coffee?"}, {**GOOD, "ranking": [[0]]})
    with pytest.raises(BadRow) as refused:
        services.import_into(name="tea", path=path)
    assert str(refused.value) == "line 3, ranking: must place every response; 1 is missing"
    assert (refused.value.line, refused.value.field) == (3, "ranking")
    assert [model.objects.count() for model in (Project, Prompt, Response, Comparison, Judgment)] == [0] * 5


def test_import_file_stores_nothing_where_the_file_changes_under_it(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "a.jsonl", GOOD, {**GOOD, "prompt": 5})
    monkeypatch.setattr(services, "check_file", lambda path: 2)  # as if it had been good a moment ago
    with pytest.raises(BadRow, match="line 2, prompt: must be a list of messages, or text"):
        services.import_file(project=make_project(), path=path)
    assert [model.objects.count() for model in (Prompt, Response, Comparison, Judgment)] == [0] * 4


def test_import_file_tells_its_progress(tmp_path):
    heard = []
    report = services.import_file(
        project=make_project(), path=write_rows(tmp_path / "a.jsonl", GOOD), progress=heard.append
    )
    assert (heard, report.rows) == ([1], 1)


def test_import_into_refuses_a_missing_file_and_makes_no_project(tmp_path):
    with pytest.raises(BadFile, match="No such file"):
        services.import_into(name="tea", path=tmp_path / "missing")
    assert Project.objects.count() == 0


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("tea", {"overlap": 2}, "The project 'tea' is there already and has other settings"),
        ("tea", {"is_closed": True}, "The project 'tea' is there already and has other settings"),
        ("", {}, "This field cannot be blank."),
        ("x" * 101, {}, "Ensure this value has at most 100 characters"),
        ("coffee", {"overlap": 0}, "project_overlap_positive"),
        ("coffee", {"overlap": -1}, "Ensure this value is greater than or equal to 0."),
    ],
)
def test_import_into_refuses_a_project_that_cannot_be(tmp_path, name, settings, message):
    make_project(name="tea")
    with pytest.raises(BadProject, match=message):
        services.import_into(name=name, path=write_rows(tmp_path / "a.jsonl", GOOD), **settings)
    assert list(Project.objects.values_list("name", flat=True)) == ["tea"]


# Simulation and demonstration


def test_seed_demonstration_makes_one_project_once():
    project = services.seed_demonstration()
    assert (project.name, project.is_demonstration, project.overlap, project.is_open) == ("cooking", True, 2, True)
    assert project.guidelines.startswith("Judge each answer as if you were going to cook from it tonight")
    kinds = [comparison.is_pairwise for comparison in project.comparisons.all()]
    assert (project.prompts.count() >= 100, kinds.count(True), kinds.count(False)) == (True, 120, 120)
    project.name = "recipes"
    project.save()
    assert services.seed_demonstration() == Project.objects.get() == project


def test_simulate_judgments_judges_as_the_browser_does():
    project = services.seed_demonstration()
    heard = []

    num_made = services.simulate_judgments(
        project=project, num_judgments=7, noise=0, num_annotators=3, progress=heard.append
    )

    judgments = list(Judgment.objects.select_related("annotator"))
    assert (num_made, heard, len(judgments)) == (7, [1, 2, 3, 4, 5, 6, 7], 7)
    assert {judgment.source for judgment in judgments} == {"simulation"}
    assert {judgment.annotator.kind for judgment in judgments} == {"simulated"}
    assert [judgment.annotator.name[-1] for judgment in judgments] == list("1231231")
    assert {row["source"] for row in judgment_rows(project)} == {"simulation"}
    assert Lease.objects.count() == 0
    assert sum(Comparison.objects.values_list("num_taken", flat=True)) == 7


def test_simulate_judgments_says_the_same_for_the_same_seed():
    def judgments(seed):
        Judgment.objects.all().delete()
        Standing.objects.all().delete()
        Comparison.objects.update(num_taken=0)
        services.simulate_judgments(project=project, num_judgments=12, noise=0.3, seed=seed)
        return list(Judgment.objects.values_list("comparison", "annotator", "ranking", "strength", "is_all_bad"))

    project = services.seed_demonstration()
    first, again, other = judgments(0), judgments(0), judgments(1)
    assert first == again
    assert [row[:2] for row in first] == [row[:2] for row in other]
    assert first != other


def test_simulate_judgments_stops_where_nothing_is_left():
    project = services.seed_demonstration()
    keep = list(project.comparisons.values_list("pk", flat=True)[:2])
    project.comparisons.exclude(pk__in=keep).delete()
    assert services.simulate_judgments(project=project, num_judgments=50, noise=0.1) == 4  # overlap 2
    assert services.simulate_judgments(project=project, num_judgments=50, noise=0.1) == 0


def test_simulate_judgments_refuses_what_it_cannot_judge():
    project = services.seed_demonstration()
    make_comparison(prompt=make_prompt(project=project, messages=[{"role": "user", "content": "What is a monad?"}]))
    with pytest.raises(UnknownQuality, match="'What is a monad\\?' is none of them"):
        services.simulate_judgments(project=project, num_judgments=5, noise=0)
    assert (Judgment.objects.count(), Lease.objects.count(), Annotator.objects.count()) == (0, 0, 0)
