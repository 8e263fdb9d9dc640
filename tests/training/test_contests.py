"""Two policies before annotators: samples, sending, the verdict and its pages."""

import json
from datetime import timedelta
from itertools import chain
from typing import Any
from urllib.parse import urlencode

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from annotate import guidance
from annotate import services as annotate_services
from annotate.answers import Answer, Edit
from annotate.identity import messages_digest
from annotate.models import Annotator, Comparison, Judgment, Project, Response
from tests.factories import make_annotator, make_comparison, make_judgment, make_project, make_prompt, make_user
from tests.training.factories import make_finished_run, make_staff
from tests.training.test_admin import inline, make_viewer, run_url
from training import contest_queries, contest_samples, contest_services, contest_splits
from training import services as training_services
from training.contest_services import CannotSend
from training.export import split_of
from training.models import BEFORE, BEST, WRITTEN, Contest, ContestPair, TrainingRun

pytestmark = pytest.mark.django_db
NUM_PROMPTS = 12


def prompt(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What goes with {number}?"}]


def write_lines(run: TrainingRun, name: str, rows: list[dict[str, Any]]) -> None:
    (run.run_dir / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_policy(*, project: Project | None = None, num_prompts: int = NUM_PROMPTS, **values: Any) -> TrainingRun:
    """A run of rejection sampling with two answers to each prompt before and after; rewards rise with the number."""
    values = {"kind": "rejection_sampling", "name": "best-of-16", "project": project or make_project(), **values}
    run = make_finished_run(**values)
    for when, reward in (("before", 0.0), ("after", 1.0)):
        rows = [
            {
                "prompt": prompt(number),
                "response": f"Answer {copy} {when} to {number}.",
                "reward": reward,
                "held_out_reward": -reward if number % 2 else reward,
            }
            for number in range(num_prompts)
            for copy in (1, 2)
        ]
        write_lines(run, f"samples_{when}.jsonl", rows)
    return run


def make_comparison_of_policies(project: Project) -> TrainingRun:
    run = make_finished_run(kind="compare_policies", name="side-by-side", project=project)
    trained = make_finished_run(kind="rlhf", name="by-rlhf", project=project)
    paths = {"base": "hub/base", "rlhf": str(trained.model_dir.resolve())}
    report = {"policies": [{"name": name, "path": path} for name, path in paths.items()]}
    (run.run_dir / "report.json").write_text(json.dumps(report))
    rows = [
        {
            "prompt": prompt(number),
            "responses": {name: [f"{name} to {number}", "again"] for name in ("base", "rlhf")},
        }
        for number in range(NUM_PROMPTS)
    ]
    write_lines(run, "responses.jsonl", rows)
    write_lines(run, "scores.jsonl", [{"held_out": [[0.1, 0.2], [0.3, 0.4]], "rewards": []}] * NUM_PROMPTS)
    return run


def send(run: TrainingRun, **values: Any) -> contest_services.Sent:
    told = {"challenger": "after", "opponent": BEFORE, "aim": "effect", "points": 10.0}
    return contest_services.send(run=run, **{"project": run.project, **told, **values})


def judge(contest: Contest, outcomes: str, *, annotator: Annotator | None = None) -> None:
    """One letter for each of the contest's first pairs that nobody has judged: w, l or t, as the challenger does."""
    annotator = annotator or make_annotator()
    left = contest.pairs.exclude(comparison__in=Judgment.objects.values("comparison"))
    for outcome, pair in zip(outcomes, left, strict=False):
        place = list(pair.comparison.options.values_list("response", flat=True)).index(pair.challenger_id)
        order = {"w": [[place], [1 - place]], "l": [[1 - place], [place]], "t": [[0, 1]]}[outcome]
        make_judgment(comparison=pair.comparison, annotator=annotator, order=order)


@pytest.fixture
def staff(client: Client) -> Client:
    client.force_login(make_staff(username="staff"))
    return client


# Samples


def test_first_answers_to_the_same_prompts_are_paired():
    run = make_policy(num_prompts=3)
    found = contest_samples.pairs(run, run.project, "after", BEFORE)
    assert found.num_identical == 0
    told = {
        pair.prompt[0]["content"]: (
            pair.challenger.text,
            pair.opponent.text,
            pair.challenger.source,
            pair.opponent.source,
        )
        for pair in found.pairs
    }
    assert told == {
        f"What goes with {number}?": (
            f"Answer 1 after to {number}.",
            f"Answer 1 before to {number}.",
            f"run {run.pk}",
            f"run {run.pk}, before",
        )
        for number in range(3)
    }
    assert found.pairs[0].scores["reward"] == [1.0, 0.0]
    again = contest_samples.pairs(run, run.project, "after", BEFORE)
    assert again == found


def test_pairs_come_in_an_order_drawn_by_chance():
    run = make_policy(num_prompts=40)
    order = [pair.prompt[0]["content"] for pair in contest_samples.pairs(run, run.project, "after", BEFORE).pairs]
    assert sorted(order) != order
    assert sorted(order) == sorted(prompt(number)[0]["content"] for number in range(40))


def test_what_cannot_be_judged_is_no_pair():
    run = make_policy(num_prompts=1)
    before = [(0, "same"), (1, "half \ud800"), (2, "nul \0"), (3, 7), (4, "only before")]
    after = [(0, "same"), (1, "whole"), (2, "whole"), (3, "whole"), (5, "only after")]
    for name, rows in (("samples_before.jsonl", before), ("samples_after.jsonl", after)):
        write_lines(run, name, [{"prompt": prompt(number), "response": text} for number, text in rows])
    assert contest_samples.pairs(run, run.project, "after", BEFORE) == contest_samples.Pairs([], 1)


def test_people_are_opponents_by_what_they_wrote_and_by_what_they_like_best():
    project = make_project()
    run = make_policy(project=project, num_prompts=3)
    first = make_prompt(project=project, messages=prompt(0))
    liked = make_comparison(prompt=first, contents=("good", "bad"), models=("m1", "m2"))
    make_judgment(comparison=liked, order=[[0], [1]])
    make_judgment(comparison=liked, order=[[1], [0]])
    make_judgment(comparison=liked, order=[[0], [1]])
    Response.objects.create(prompt=first, content="by hand", author=make_annotator())
    elsewhere = make_prompt(messages=prompt(1))
    Response.objects.create(prompt=elsewhere, content="by hand elsewhere", author=make_annotator())
    for opponent, text, source in ((BEST, "good", "m1"), (WRITTEN, "by hand", "")):
        (pair,) = contest_samples.pairs(run, project, "after", opponent).pairs
        assert (pair.prompt, pair.opponent) == (prompt(0), contest_samples.Answer(text, source))
        assert pair.scores == {}


def test_liked_best_is_not_who_was_judged_least():
    project = make_project()
    first = make_prompt(project=project, messages=prompt(0))
    often = make_comparison(prompt=first, contents=("often", "seldom"), models=("m1", "m2"))
    once = make_comparison(prompt=first, contents=("once", "never"), models=("m3", "m4"))
    for order in [[[0], [1]]] * 9 + [[[1], [0]]]:
        make_judgment(comparison=often, order=order)
    make_judgment(comparison=once, order=[[0], [1]])
    run = make_policy(project=project, num_prompts=1)
    (pair,) = contest_samples.pairs(run, project, "after", BEST).pairs
    assert pair.opponent.text == "often"


def test_who_writes_a_better_answer_does_not_vote_for_it():
    project = make_project()
    first = make_prompt(project=project, messages=prompt(0))
    comparison = make_comparison(prompt=first, contents=("good", "bad"), models=("m1", "m2"))
    edit = Edit(response_id=comparison.responses.get(content="good").pk, text="better")
    make_judgment(comparison=comparison, order=[[0], [1]], edit=edit)
    run = make_policy(project=project, num_prompts=1)
    (pair,) = contest_samples.pairs(run, project, "after", BEST).pairs
    assert pair.opponent.text == "good"


def test_the_runs_own_answers_are_no_opponents_of_it():
    run = make_policy(num_prompts=2)
    contest = send(run).contest
    judge(contest, "ww")
    assert contest_samples.pairs(run, run.project, "after", BEST).pairs == []


def test_who_can_be_sent():
    project = make_project()
    run = make_policy(project=project)
    assert contest_samples.challengers(run) == ["after"]
    assert contest_samples.opponents(run) == [BEFORE, WRITTEN, BEST]
    compared = make_comparison_of_policies(project)
    assert contest_samples.challengers(compared) == ["base", "rlhf"]
    assert contest_samples.opponents(compared) == ["base", "rlhf", WRITTEN, BEST]
    (pair, *_) = contest_samples.pairs(compared, project, "rlhf", "base").pairs
    trained = TrainingRun.objects.get(name="by-rlhf")
    assert pair.challenger.source == f"run {trained.pk}, in run {compared.pk}"
    assert pair.opponent.source == f"base, in run {compared.pk}"
    contest = send(compared, challenger="rlhf", opponent="base").contest
    assert str(contest) == f"run {trained.pk} against base"
    assert str(Contest.objects.for_user(make_staff()).get()) == f"by-rlhf (run {trained.pk}) against base"
    assert pair.scores == {"held_out_reward": [0.3, 0.1]}
    for other in (
        make_finished_run(kind="reward_model"),
        make_finished_run(kind="sft"),
        make_policy(status="failed", project=project),
    ):
        assert contest_samples.challengers(other) == []


@pytest.mark.parametrize("name", ["best", "written", "before"])
def test_policies_of_any_name_can_be_sent(name):
    run = make_finished_run(kind="compare_policies", project=make_project())
    rows = [{"prompt": prompt(0), "responses": {"base": ["of base"], name: [f"of {name}"]}}]
    write_lines(run, "responses.jsonl", rows)
    assert contest_samples.opponents(run) == ["base", name, WRITTEN, BEST]
    (pair,) = contest_samples.pairs(run, run.project, "base", name).pairs
    assert (pair.challenger.text, pair.opponent.text) == ("of base", f"of {name}")
    assert str(send(run, challenger="base", opponent=name).contest) == f"base against {name}"


# Sending


def test_sending_makes_blind_comparisons_once():
    run = make_policy()
    sent = send(run)
    contest = sent.contest
    assert (contest.num_wanted, contest.num_prompts, contest.num_identical) == (421, NUM_PROMPTS, 0)
    assert sent.asked.num_open == NUM_PROMPTS
    assert Comparison.objects.filter(project=run.project, num_responses=2, num_taken=0).count() == NUM_PROMPTS
    sources = set(Response.objects.values_list("model", flat=True))
    assert sources == {f"run {run.pk}", f"run {run.pk}, before"}

    assert send(run).contest == contest
    assert (Contest.objects.count(), ContestPair.objects.count()) == (1, NUM_PROMPTS)
    assert Comparison.objects.count() == NUM_PROMPTS
    assert set(Comparison.objects.values_list("num_wanted", flat=True)) == {1}


def test_nothing_on_the_page_tells_whose_an_answer_is(client: Client):
    project = make_project()
    contest = send(make_policy(project=project, num_prompts=40)).contest
    is_first = [pair.challenger_id < pair.opponent_id for pair in contest.pairs.all()]
    assert 10 < sum(is_first) < 30
    annotator = make_annotator()
    client.force_login(annotator.user)
    page = client.post(reverse("annotate:next", args=[project.pk]), follow=True).content.decode()
    assert "Answer 1 after" in page
    assert "Answer 1 before" in page
    assert not any(telling in page for telling in ("best-of-16", f"run {contest.run_id}", "before</"))


def shown_to_annotators(client: Client, project: Project) -> str:
    client.force_login(make_annotator().user)
    return client.post(reverse("annotate:next", args=[project.pk]), follow=True).content.decode()


@pytest.mark.parametrize("opponent", [WRITTEN, BEST])
def test_nothing_on_the_page_tells_what_people_wrote_or_liked(client: Client, opponent):
    project = make_project()
    author = make_annotator(user=make_user(username="amina"))
    asked = make_prompt(project=project, messages=prompt(0))
    liked = make_comparison(prompt=asked, contents=("good", "bad"), models=("m-one", "m-two"))
    make_judgment(comparison=liked, order=[[0], [1]])
    Response.objects.create(prompt=asked, content="good by hand", author=author)
    run = make_policy(project=project, num_prompts=1)
    send(run, opponent=opponent)
    page = shown_to_annotators(client, project)
    assert ("good by hand" if opponent == WRITTEN else "good") in page
    assert "Answer 1 after to 0." in page
    assert [
        telling for telling in ("best-of-16", f"run {run.pk}", "m-one", "amina", "people/") if telling in page
    ] == []


def test_nothing_on_the_page_tells_which_policies_are_compared(client: Client):
    project = make_project()
    run = make_comparison_of_policies(project)
    rows = [{"prompt": prompt(0), "responses": {"base": ["Salt."], "rlhf": ["Pepper."]}}]
    write_lines(run, "responses.jsonl", rows)
    send(run, challenger="rlhf", opponent="base")
    page = shown_to_annotators(client, project)
    assert "Salt." in page
    assert "Pepper." in page
    assert [telling for telling in ("rlhf", "base", f"run {run.pk}", "side-by-side") if telling in page] == []


def test_one_vote_is_asked_of_each_pair_whatever_the_project_asks_of_others():
    project = make_project(overlap=3)
    contest = send(make_policy(project=project, num_prompts=2)).contest
    judge(contest, "w")
    assert list(Comparison.objects.values_list("num_wanted", flat=True)) == [1, 1]
    annotate_services.set_overlap(project=project, overlap=2)
    told = contest_queries.verdict(contest)
    assert told.num_open == 1


def test_pairs_come_first_and_in_the_order_of_the_contest():
    project = make_project(strategy="informative", random_share=0.0)
    make_comparison(project=project, priority=5.0)
    contest = send(make_policy(project=project)).contest
    lease = annotate_services.lease_next(project=project, annotator=make_annotator())
    assert lease.comparison_id == contest.pairs.first().comparison_id


def test_no_more_are_sent_than_are_wanted_and_more_when_more_are_wanted():
    run = make_policy(num_prompts=60)
    contest = send(run, points=40.0).contest
    assert contest.num_wanted == contest.pairs.count() == contest_services.num_votes("effect", 40.0) < 60
    first = list(contest.pairs.values_list("comparison", flat=True))
    more = send(run, points=20.0).contest
    assert (more, more.pairs.count()) == (contest, 60)
    assert list(more.pairs.values_list("comparison", flat=True))[: len(first)] == first


def test_a_prompt_is_asked_with_one_pair_even_if_people_come_to_like_another_answer():
    project = make_project()
    liked = make_comparison(
        prompt=make_prompt(project=project, messages=prompt(0)), contents=("good", "bad"), models=("m1", "m2")
    )
    run = make_policy(project=project, num_prompts=1)
    make_judgment(comparison=liked, order=[[0], [1]])
    contest = send(run, opponent=BEST).contest
    for _ in range(2):
        make_judgment(comparison=liked, order=[[1], [0]])
    assert contest_samples.pairs(run, project, "after", BEST).pairs[0].opponent.text == "bad"
    assert send(run, opponent=BEST).contest == contest
    assert [pair.opponent.content for pair in contest.pairs.all()] == ["good"]


def test_what_is_judged_or_held_is_not_asked_again():
    run = make_policy(num_prompts=3)
    contest = send(run).contest
    judge(contest, "w")
    annotate_services.lease_next(project=run.project, annotator=make_annotator())
    assert send(run).asked.num_open == 1
    assert set(Comparison.objects.values_list("num_wanted", flat=True)) == {1}


def test_nothing_to_judge_is_told():
    run = make_policy(num_prompts=2)
    write_lines(run, "samples_after.jsonl", [{"prompt": prompt(9), "response": "x"}])
    with pytest.raises(CannotSend, match="no prompt in common"):
        send(run)
    same = (run.run_dir / "samples_before.jsonl").read_text()
    (run.run_dir / "samples_after.jsonl").write_text(same)
    with pytest.raises(CannotSend, match="the same to all 2 prompts"):
        send(run)
    assert not Contest.objects.exists()


def test_closing_asks_nobody_any_more_and_sending_again_opens():
    run = make_policy(num_prompts=4)
    contest = send(run).contest
    judge(contest, "w")
    held = annotate_services.lease_next(project=run.project, annotator=make_annotator())
    assert contest_services.close(contest=contest) == 2
    contest.refresh_from_db()
    assert contest.closed_at is not None
    assert annotate_services.lease_next(project=run.project, annotator=make_annotator()) is None
    make_judgment(comparison=held.comparison, annotator=held.annotator)
    assert contest_services.close(contest=contest) == 0

    again = send(run)
    assert (again.contest.closed_at, again.asked.num_further) == (None, 2)
    assert annotate_services.lease_next(project=run.project, annotator=make_annotator()) is not None


@pytest.mark.parametrize("way", ["skip", "expiry", "overlap"])
def test_what_is_closed_stays_closed(way):
    run = make_policy(num_prompts=3)
    contest = send(run).contest
    judge(contest, "w")
    held = annotate_services.lease_next(project=run.project, annotator=make_annotator())
    contest_services.close(contest=contest)
    now = timezone.now()
    if way == "skip":
        annotate_services.skip_comparison(comparison=held.comparison, annotator=held.annotator)
    elif way == "expiry":
        now += timedelta(hours=1)
    else:
        annotate_services.set_overlap(project=run.project, overlap=3)
    assert annotate_services.lease_next(project=run.project, annotator=make_annotator(), now=now) is None
    again = send(run).asked
    assert again.num_further == (1 if way == "overlap" else 2)  # what is held is not asked again


def test_guidance_changes_neither_the_order_nor_the_number_of_votes():
    project = make_project(strategy="informative", random_share=0.0)
    contest = send(make_policy(project=project, num_prompts=4)).contest
    ordered = [pair.comparison for pair in contest.pairs.select_related("comparison")]
    scores = [
        guidance.ScoredPrompt(
            pair.comparison.prompt_id, {pair.challenger_id: [place, -place], pair.opponent_id: [-place, place]}
        )
        for place, pair in enumerate(contest.pairs.all())
    ]
    assert guidance.accept_scores(project=project, scores=scores) == 0
    annotate_services.set_overlap(project=project, overlap=2)
    judge(contest, "w")
    asked = annotate_services.lease_next(project=project, annotator=make_annotator())
    assert asked.comparison == ordered[1]


def test_closing_leaves_what_another_open_contest_has():
    run = make_comparison_of_policies(make_project())
    one = send(run, challenger="rlhf", opponent="base").contest
    other = send(run, challenger="base", opponent="rlhf").contest
    assert Comparison.objects.count() == NUM_PROMPTS
    assert contest_services.close(contest=one) == 0
    assert contest_queries.verdict(other).num_open == NUM_PROMPTS
    assert contest_services.close(contest=other) == NUM_PROMPTS


def test_nobody_is_asked_about_an_answer_of_their_own():
    project = make_project()
    author, other = make_annotator(), make_annotator()
    first = make_prompt(project=project, messages=prompt(0))
    Response.objects.create(prompt=first, content="by hand", author=author)
    send(make_policy(project=project, num_prompts=1), opponent=WRITTEN)
    assert annotate_services.lease_next(project=project, annotator=author) is None
    assert annotate_services.lease_next(project=project, annotator=other) is not None


# The verdict


def test_votes_are_first_judgments_and_ties_are_left_out():
    run = make_policy(num_prompts=5)
    contest = send(run).contest
    judge(contest, "wlt")
    pair = contest.pairs.first()
    make_judgment(comparison=pair.comparison, order=[[1], [0]])  # a second one on the same pair does not count
    make_judgment(comparison=pair.comparison, aspect="harmlessness", order=[[1], [0]])
    told = contest_queries.verdict(contest)
    assert dict(told.facts) == {
        "Votes that count": "2",
        "Ties": "1",
        "Annotators": "1",
        "Pairs sent": "5 of 5",
        "Waiting for a vote": "2",
    }
    assert (told.words, told.is_enough, told.num_open) == ("Nothing shows yet.", False, 2)
    assert told.win_rates[0].text.startswith("50.0% [")
    assert told.basis == "3 of 5 pairs are judged, 1 of them as ties. In brackets: 95% intervals."


def test_what_is_decided_stays_decided_when_votes_are_revised():
    contest = send(make_policy(num_prompts=12), points=40.0).contest
    judge(contest, "w" * 12)
    before = contest_queries.verdict(contest)
    for judgment in Judgment.objects.all():
        for ranking in (judgment.ranking[::-1], [sorted(chain(*judgment.ranking))]):
            annotate_services.revise_judgment(judgment=judgment, answer=Answer(ranking=ranking))
    assert before.words == f"People like run {contest.run_id} better. That is decided since vote 12."
    assert contest_queries.verdict(contest) == before


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        ("w" * 12, "People like run {} better. That is decided since vote 12."),
        ("l" * 12, "People like run {} less. That is decided since vote 12."),
        ("wl" * 6, "run {} does not win 90% or more. That is decided since vote 8."),
    ],
)
def test_verdict_in_words(outcomes, words):
    contest = send(make_policy(num_prompts=13), points=40.0).contest
    judge(contest, outcomes)
    told = contest_queries.verdict(contest)
    assert (told.words, told.is_enough) == (words.format(contest.run_id), True)
    assert told.next_step.startswith("Enough")


def test_verdict_says_how_many_votes_more():
    contest = send(make_policy(), points=10.0).contest
    assert contest_queries.verdict(contest).next_step == "Go on: about 226 votes more. Only 12 pairs wait for one."
    judge(contest, "www")
    contest_services.close(contest=contest)
    contest.refresh_from_db()
    assert contest_queries.verdict(contest).next_step == "Closed: nobody is asked any more."


def test_precision_is_enough_when_the_interval_is_narrow():
    contest = send(make_policy(num_prompts=30), aim="precision", points=40.0).contest
    judge(contest, "wl")
    told = contest_queries.verdict(contest)
    assert told.words.startswith("Nothing shows yet. The win rate is known no closer than to ")
    judge(contest, "wl" * 12)
    told = contest_queries.verdict(contest)
    assert told.is_enough
    assert "The win rate is known to " in told.words


def test_verdict_stands_beside_what_rewards_foresaw():
    maker = make_finished_run(name="proxy", result={"model": "m", "accuracy": 0.8, "interval": [0.75, 0.85]})
    run = make_policy(
        config={"reward_model": str(maker.model_dir.resolve())}, result={"model": "m", "held_out_accuracy": 0.7}
    )
    contest = send(run).contest
    judge(contest, "w" * 9 + "lll")
    told = contest_queries.verdict(contest)
    assert [(row.label, row.text.split("\u00a0")[0]) for row in told.win_rates][1:] == [
        ("The optimised reward", "100.0% [75.8,"),
        ("The held-out reward", "50.0% [25.4,"),
    ]
    assert [row.label for row in told.agreement] == [
        "The optimised reward on these pairs",
        "The optimised reward when it was made",
        "The held-out reward on these pairs",
        "The held-out reward when it was made",
    ]
    assert told.agreement[0].text.startswith("75.0% [")
    assert told.agreement[1].text == "80.0% [75.0,\u00a085.0]"
    assert told.agreement[3].text == "70.0%"


def test_pairs_on_which_people_say_the_opposite_are_shown():
    contest = send(make_policy(num_prompts=3)).contest
    judge(contest, "wlt")
    lost = contest.pairs.all()[1]
    question = lost.comparison.prompt.messages[0]["content"]
    assert contest_queries.verdict(contest).surprises == [
        contest_queries.Surprise(
            question, question, lost.challenger.content, lost.opponent.content, ("1", "0"), is_won=False
        )
    ]


def test_votes_flow_into_the_next_preference_set():
    run = make_policy(num_prompts=3)
    judge(send(run).contest, "wlt")
    frozen = training_services.freeze(project=run.project, name="next")
    records = [json.loads(line) for line in frozen.path.read_text().splitlines()]
    assert len(records) == 3
    assert {response["model"] for record in records for response in record["responses"]} == {
        f"run {run.pk}",
        f"run {run.pk}, before",
    }
    assert sorted(len(record["ranking"]) for record in records) == [1, 2, 2]


def test_votes_on_test_prompts_are_test_votes_again_unless_another_seed_is_drawn(staff: Client):
    project = make_project(name="cooking")
    tested = [
        number
        for number in range(300)
        if split_of(messages_digest(prompt(number)), seed=0, fractions=training_services.FRACTIONS) == "test"
    ][:20]
    run = make_policy(project=project)
    for when in ("before", "after"):
        rows = [{"prompt": prompt(number), "response": f"{when} {number}"} for number in tested]
        write_lines(run, f"samples_{when}.jsonl", rows)
    contest = send(run).contest
    judge(contest, "w" * 20)
    told = contest_queries.verdict(contest).splits
    anew = training_services.freeze(project=project, name="anew", seed=1).counts
    again = training_services.freeze(project=project, name="again").counts
    assert {split: counts["prompts"] for split, counts in again.items() if counts["prompts"]} == {"test": 20}
    num_trained_on = anew["train"]["prompts"]
    assert num_trained_on > 8
    assert told == contest_splits.Splits(
        "Every preference set frozen from now on holds these votes. With seed 0, 20 of the 20 prompts are to measure "
        f"rewards with, which learn nothing from them, and 0 to train on. With seed 1 {num_trained_on} are to train "
        "on, but so are prompts on which older models were measured.",
        1,
    )
    page = staff.get(url("change", contest.pk)).content.decode()
    assert "Divided as cooking/again is, with seed 0, 20 of the 20 prompts" in page
    freeze = f"{reverse('admin:training_preferenceset_add')}?project={project.pk}&seed=1"
    assert f'href="{freeze.replace("&", "&amp;")}"' in page
    assert staff.get(freeze).context["form"]["seed"].value() == "1"


def test_too_few_prompts_lead_to_a_comparison_on_all(staff: Client):
    run = make_policy(config={"policy": "hub/base"})
    data = {"challenger": "after", "opponent": BEFORE, "project": run.project_id, "aim": "effect", "points": 10}
    query = urlencode({"policies": f"hub/base, {run.model_dir.resolve()}", "num_prompts": 0})
    page = staff.get(url("send", run.pk), data).content.decode()
    start = f"{reverse('admin:training_trainingrun_start', args=['compare_policies'])}?{query}"
    assert f'href="{start.replace("&", "&amp;")}"' in page
    assert staff.get(start).context["form"]["num_prompts"].value() == "0"
    compared = make_comparison_of_policies(run.project)
    compared.config = {"policies": "hub/base, hub/other", "num_prompts": 0}
    compared.save()
    data |= {"challenger": "rlhf", "opponent": "base"}
    page = staff.get(url("send", compared.pk), data).content.decode()
    assert "All test prompts are answered" in page
    assert "compare_policies" not in page


def test_verdict_asks_the_database_no_more_for_more_votes(django_assert_num_queries):
    contest = send(make_policy()).contest
    numbers = []
    for _ in range(2):
        judge(contest, "wwl")
        with CaptureQueriesContext(connection) as queries:
            contest_queries.verdict(contest)
        numbers.append(len(queries))
    assert numbers[0] == numbers[1]


# Pages


def url(name: str, *args: int) -> str:
    return reverse(f"admin:training_contest_{name}", args=args)


def test_page_shows_how_many_votes_it_takes_and_sends(staff: Client):
    run = make_policy(project=make_project(name="cooking"))
    page = staff.get(run_url("change", run)).content.decode()
    assert f'href="{url("send", run.pk)}"' in page
    assert "Nobody has been asked yet whether its answers are better than others." in page

    shown = staff.get(url("send", run.pk))
    assert shown.context["plan"] is None
    data = {name: shown.context["form"][name].value() for name in shown.context["form"].fields}
    assert data == {"challenger": "after", "opponent": None, "project": run.project.pk, "aim": "effect", "points": 10.0}
    data["opponent"] = BEFORE
    planned = staff.get(url("send", run.pk), data).content.decode()
    assert "421 votes; 12 prompts are there." in planned
    assert "With 12 votes a win rate of 60% is found with a probability of 0%." in planned
    assert 'value="Send 12 pairs to annotators"' in planned
    shown = staff.post(url("send", run.pk), {**data, "show": "1"})
    assert shown.context["plan"].num_wanted == 421
    assert not Contest.objects.exists()

    sent = staff.post(url("send", run.pk), data, follow=True)
    contest = Contest.objects.get()
    assert sent.redirect_chain == [(url("change", contest.pk), 302)]
    assert [str(message) for message in sent.context["messages"]] == ["12 comparisons wait for annotators of cooking."]
    assert contest.created_by.username == "staff"
    assert inline(sent.content) == []
    assert f'href="{url("change", contest.pk)}"' in staff.get(run_url("change", run)).content.decode()


def test_policy_without_answers_is_offered_a_comparison(staff: Client):
    base = make_finished_run(kind="sft", name="base", config={"policy": "new:tiny"})
    tuned = make_finished_run(kind="sft", name="tuned", config={"policy": str(base.model_dir.resolve())})
    for run, policies in ((base, [base]), (tuned, [base, tuned])):
        page = staff.get(run_url("change", run))
        query = page.context["contests"].compare_query
        assert query in page.content.decode()
        form = staff.get(f"{reverse('admin:training_trainingrun_start', args=['compare_policies'])}?{query}").context[
            "form"
        ]
        assert form["policies"].value() == ", ".join(str(one.model_dir.resolve()) for one in policies)
    assert staff.get(run_url("change", make_finished_run())).context["contests"] is None


def test_page_tells_the_verdict(staff: Client):
    contest = send(make_policy(num_prompts=14)).contest
    judge(contest, "w" * 12 + "l")
    response = staff.get(url("change", contest.pk))
    page = response.content.decode()
    for words in (
        f"People like best-of-16 (run {contest.run_id}) better. That is decided since vote 12.",
        "Enough: what is left can be closed.",
        "13 of 14 pairs are judged.",
        "Where people say the opposite of the optimised reward",
        "<polyline",
        "Close the 1 left",
        "Freeze the next preference set",
        f'action="{reverse("annotate:next", args=[contest.project_id])}"',
    ):
        assert words in page
    assert inline(response.content) == []
    closed = staff.post(url("close", contest.pk), follow=True).content.decode()
    assert "Closed: 1 comparisons are asked no more." in closed
    assert "Open again, or ask for more" in closed


def test_wrong_wishes_are_told(staff: Client):
    project = make_project()
    run = make_comparison_of_policies(project)
    good = {"challenger": "rlhf", "opponent": "base", "project": project.pk, "aim": "effect", "points": 10}
    for wrong, told in (
        ({"opponent": "rlhf"}, "A policy cannot be sent against itself."),
        ({"points": 1}, "From 2 to 45 points."),
        ({"points": "nan"}, "Enter a number."),
        ({"challenger": "nobody"}, "Select a valid choice."),
        ({"project": make_project(is_open=False).pk + 99}, "Select a valid choice."),
    ):
        assert told in staff.post(url("send", run.pk), {**good, **wrong}).content.decode()
    assert not Contest.objects.exists()
    assert staff.post(url("send", run.pk), good).status_code == 302
    alone = make_policy(num_prompts=0)
    data = {"challenger": "after", "opponent": BEFORE, "project": alone.project.pk, "aim": "effect", "points": 10}
    assert "There is nothing to judge" in staff.post(url("send", alone.pk), data).content.decode()


def test_who_may_send_see_and_close():
    contest = send(make_policy()).contest
    run = contest.run
    viewer = make_viewer("view_trainingrun", "view_contest")
    page = viewer.get(url("change", contest.pk)).content.decode()
    assert "Close the" not in page
    assert url("send", run.pk) not in page
    assert viewer.get(url("send", run.pk)).status_code == 403
    assert viewer.post(url("close", contest.pk)).status_code == 403
    sender = make_viewer("view_contest", "change_project")
    assert sender.get(url("close", contest.pk)).status_code == 405
    assert sender.put(url("send", run.pk)).status_code == 405
    assert sender.post(url("change", contest.pk)).status_code == 405
    hidden = send(make_policy(project=make_project(is_open=False))).contest
    for name, pk in (("change", hidden.pk), ("send", hidden.run.pk)):
        assert sender.get(url(name, pk)).status_code == 404
    assert sender.post(url("close", hidden.pk)).status_code == 404
    assert sender.get(url("send", make_finished_run(project=run.project).pk)).status_code == 404
    assert make_viewer("view_trainingrun").get(url("change", contest.pk)).status_code == 403
    assert sender.post(url("close", contest.pk)).status_code == 302


def test_a_hidden_run_is_a_number():
    run = make_policy(name="secret-recipe", project=make_project(is_open=False))
    contest = send(run, project=make_project()).contest
    judge(contest, "w" * 12)
    viewer = make_viewer("view_contest", "view_trainingrun", "change_project", "view_response")
    pages = [viewer.get(where).content.decode() for where in (url("change", contest.pk), url("changelist"))]
    for page in pages:
        assert f"run {run.pk} against the policy it began as" in page
        assert "secret-recipe" not in page
        assert run_url("change", run) not in page
    assert f"People like run {run.pk} better." in pages[0]
    assert url("send", run.pk) not in pages[0]
    for searched, num in (("secret", 0), ("", 1)):
        found = viewer.get(url("changelist"), {"q": searched})
        assert found.context["cl"].result_count == num
    assert not Response.objects.filter(model__contains="secret").exists()
    run.project.is_open = True
    run.project.save()
    assert "secret-recipe" in viewer.get(url("change", contest.pk)).content.decode()
    assert viewer.get(url("changelist"), {"q": "secret"}).context["cl"].result_count == 1


def test_list_asks_the_database_no_more_for_three_contests(staff: Client):
    numbers = []
    for _ in range(2):
        send(make_policy())
        send(make_policy())
        with CaptureQueriesContext(connection) as queries:
            page = staff.get(reverse("admin:training_contest_changelist")).content.decode()
        numbers.append(len(queries))
        assert f"best-of-16 (run {Contest.objects.first().run_id}) against the policy it began as" in page
    assert numbers[0] == numbers[1]
