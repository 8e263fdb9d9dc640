"""The figures are those of the pure functions on the same judgments, whoever made them and in whatever order."""

import random
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from itertools import combinations

import numpy as np
import pytest
import redis
from django.utils import timezone
from kombu.exceptions import OperationalError

from annotate import figures, review, shared, tasks
from annotate.models import Aspect, Consensus, Figures, Gold, Judgment, Mirror, Revision
from annotate.stats import bias
from annotate.stats.agreement import agreement
from annotate.stats.annotators import dawid_skene
from annotate.stats.bradley_terry import leaderboard
from annotate.stats.ceiling import human_ceiling
from annotate.stats.consensus import consensus
from tests.factories import make_annotator, make_comparison, make_judgment, make_project, response_ids

pytestmark = pytest.mark.django_db

NUM_COMPARISONS, NUM_PEOPLE = 40, 5
CHANCES = (0.95, 0.9, 0.85, 0.9, 0.1)


@pytest.fixture
def simulated():
    """A project, its annotators, and their votes: 0 or 1 for the response that is better, 2 for a tie; (C, A)."""
    draw = random.Random(1)
    project = make_project(overlap=NUM_PEOPLE)
    people = [make_annotator() for _ in range(NUM_PEOPLE)]
    votes = np.zeros((NUM_COMPARISONS, NUM_PEOPLE), dtype=int)
    for number in range(NUM_COMPARISONS):
        comparison = make_comparison(
            project=project,
            contents=("short", f"a longer answer {number}"),
            models=tuple(f"model-{place}" for place in draw.sample(range(3), 2)),
        )
        best = draw.randrange(2)
        for column, (annotator, chance) in enumerate(zip(people, CHANCES, strict=True)):
            said = 2 if draw.random() < 0.1 else best if draw.random() < chance else 1 - best
            order = [[0, 1]] if said == 2 else [[said], [1 - said]]
            make_judgment(comparison=comparison, annotator=annotator, order=order, seconds=10.0 + column)
            votes[number, column] = said
    return project, people, votes


def flat(votes):
    """Comparison, annotator and vote of each judgment."""
    comparison, annotator = np.indices(votes.shape)
    return comparison.ravel(), annotator.ravel(), votes.ravel()


def places_of(votes):
    """The place of either response, 1 for the better one."""
    return np.select([votes[:, None] == 0, votes[:, None] == 1], [[[1.0, 2.0]], [[2.0, 1.0]]], 1.0)


def rng():
    return np.random.default_rng(0)


def test_agreement_is_that_of_the_pure_function(simulated):
    project, _people, votes = simulated
    comparison, annotator, said = flat(votes)
    kept = figures.refresh_figures(project=project).values["aspects"]["overall"]
    assert kept["agreement"] == asdict(agreement(comparison, annotator, places_of(said), rng=rng()))
    assert kept["num_judgments"] == NUM_COMPARISONS * NUM_PEOPLE


def test_ceiling_is_that_of_the_pure_function(simulated):
    project, _people, votes = simulated
    kept = figures.refresh_figures(project=project).values["aspects"]["overall"]["ceiling"]
    found = human_ceiling((votes == 0).sum(axis=1), (votes != 2).sum(axis=1), rng=rng())
    assert found is not None
    assert kept == asdict(found)


def test_reliability_is_that_of_the_model(simulated):
    project, people, votes = simulated
    comparison, annotator, said = flat(votes)
    found = dawid_skene(comparison, annotator, said, num_pairs=NUM_COMPARISONS, num_annotators=NUM_PEOPLE, num_labels=3)
    values = figures.refresh_figures(project=project).values
    kept = {row["id"]: (row["accuracy"], row["better_than_chance"]) for row in values["annotators"]}
    assert kept == {
        annotator.pk: (pytest.approx(accuracy), pytest.approx(better))
        for annotator, accuracy, better in zip(people, found.accuracy, found.better_than_chance, strict=True)
    }
    assert values["reliability"] == {"is_refused": False, "is_told": True, "liars": [people[-1].pk], "by_chance": []}


def test_agreement_with_others_is_the_share_of_other_people_who_say_the_same(simulated):
    project, people, votes = simulated
    kept = {row["id"]: row["with_others"] for row in figures.refresh_figures(project=project).values["annotators"]}
    for column, annotator in enumerate(people):
        others = np.delete(votes, column, axis=1)
        assert kept[annotator.pk] == pytest.approx((others == votes[:, [column]]).mean())


def test_leaderboard_is_that_of_the_pure_function(simulated):
    project, _people, _votes = simulated
    met = []
    for judgment in Judgment.objects.filter(project=project).order_by("pk"):
        ids = response_ids(judgment.comparison)
        models = dict(judgment.comparison.responses.values_list("pk", "model"))
        place = {pk: number for number, group in enumerate(judgment.ranking) for pk in group}
        one, other = (int(models[pk][-1]) for pk in ids)
        won = 2 if place[ids[0]] == place[ids[1]] else int(place[ids[0]] > place[ids[1]])
        met.append((one, other, won, judgment.comparison.prompt_id))
    first, second, outcome, unit = zip(*met, strict=True)
    found = leaderboard(first, second, outcome, 3, unit=unit, generator=rng())
    rows = figures.refresh_figures(project=project).values["leaderboard"]["rows"]
    kept = {row["model"]: (row["strength"], row["low"], row["high"]) for row in rows}
    assert kept == {
        f"model-{number}": tuple(
            map(pytest.approx, (found.strengths[number], found.lower[number], found.upper[number]))
        )
        for number in range(3)
    }
    assert [row["strength"] for row in rows] == sorted((row["strength"] for row in rows), reverse=True)


def test_consensus_of_every_comparison_is_that_of_the_pure_function(simulated):
    project, people, votes = simulated
    comparison, annotator, said = flat(votes)
    values = figures.refresh_figures(project=project).values
    worth = {row["id"]: row["accuracy"] for row in values["annotators"]}
    reliability = np.clip([worth[people[column].pk] for column in annotator], 0.02, 0.98)
    found = consensus(comparison, places_of(said) - 1, reliability, num_comparisons=NUM_COMPARISONS)
    kept = list(Consensus.objects.filter(project=project).order_by("comparison"))
    assert [row.certainty for row in kept] == pytest.approx(found.certainty.tolist())
    for row, places in zip(kept, found.places.tolist(), strict=True):
        ids = response_ids(row.comparison)
        wanted = [sorted(ids)] if places == [0, 0] else [[ids[places.index(0)]], [ids[places.index(1)]]]
        assert (row.ranking, row.num_judgments, row.is_decided) == (wanted, NUM_PEOPLE, False)


def test_biases_are_those_of_the_pure_functions(simulated):
    project, _people, _votes = simulated
    won_at, longer = [], []
    for judgment in Judgment.objects.filter(project=project):
        if len(judgment.ranking) == 2:
            best = judgment.ranking[0][0]
            won_at.append(judgment.shown_order.index(best))
            longer.append(response_ids(judgment.comparison).index(best))
    kept = figures.refresh_figures(project=project).values
    position, length = bias.share(won_at.count(0), len(won_at)), bias.share(longer.count(1), len(longer))
    assert (kept["position"], kept["length"]) == (asdict(position), asdict(length))


def test_mirrored_pairs_are_compared_by_what_won():
    project = make_project(overlap=2)
    for is_same in (True, True, False):
        comparison = make_comparison(project=project)
        for mirror, place in ((Mirror.STRAIGHT, 0), (Mirror.MIRRORED, 0 if is_same else 1)):
            make_judgment(comparison=comparison, order=[[place], [1 - place]])
            Judgment.objects.filter(pk=Judgment.objects.latest("pk").pk).update(
                mirror=mirror, shown_order=response_ids(comparison)[:: 1 if mirror == Mirror.STRAIGHT else -1]
            )
    assert figures.refresh_figures(project=project).values["mirrored"] == asdict(bias.share(2, 3))


def test_lists_have_measures_of_their_own():
    project = make_project(overlap=2)
    orders = ([[0], [1], [2]], [[0], [2], [1]])
    people = [make_annotator(), make_annotator()]
    for _ in range(3):
        comparison = make_comparison(k=3, project=project)
        for annotator, order in zip(people, orders, strict=True):
            make_judgment(comparison=comparison, annotator=annotator, order=order)
    values = figures.refresh_figures(project=project).values
    measures = values["aspects"]["overall"]["agreement"]
    assert (measures["tau_b"]["value"], measures["w"]["value"]) == (pytest.approx(1 / 3), pytest.approx(0.75))
    assert [row["left"] for row in values["annotators"]] == [None, None]


def test_a_single_judgment_has_no_consensus():
    judgment = make_judgment()
    figures.refresh_figures(project=judgment.project)
    assert not Consensus.objects.exists()


def test_known_answers_count_for_the_annotator_and_for_nothing_else():
    project = make_project()
    annotator = make_annotator()
    make_judgment(comparison=make_comparison(project=project), annotator=annotator)
    for order in ([[0], [1]], [[0], [1]], [[1], [0]]):
        comparison = make_comparison(project=project)
        make_judgment(comparison=comparison, annotator=annotator, order=order)
        Gold.objects.create(comparison=comparison, project=project, ranking=[[pk] for pk in response_ids(comparison)])
        comparison.is_gold = True
        comparison.save(update_fields=["is_gold"])
    values = figures.refresh_figures(project=project).values
    (row,) = values["annotators"]
    assert (values["num_judgments"], row["num_judgments"], row["gold"]) == (1, 1, asdict(bias.share(2, 3)))


def test_aspects_are_counted_each_for_itself():
    project = make_project(overlap=2)
    Aspect.objects.create(project=project, name="harmlessness")
    for _ in range(6):
        comparison = make_comparison(project=project)
        ids = response_ids(comparison)
        for place in (0, 1):
            judgment = make_judgment(comparison=comparison)
            Judgment.objects.create(
                comparison=comparison,
                project=project,
                annotator=judgment.annotator,
                aspect="harmlessness",
                ranking=[[ids[place]], [ids[1 - place]]],
                source="browser",
            )
    aspects = figures.refresh_figures(project=project).values["aspects"]
    raw = {name: aspect["agreement"]["raw"]["value"] for name, aspect in aspects.items()}
    assert raw == {"overall": 1.0, "harmlessness": 0.0}
    assert Consensus.objects.filter(aspect="harmlessness").count() == 6


def test_votes_of_one_annotator_a_comparison_tell_nobody_from_chance():
    project = make_project()
    for annotator in [make_annotator() for _ in range(3)]:
        for _ in range(2):
            make_judgment(comparison=make_comparison(project=project), annotator=annotator)
    assert figures.refresh_figures(project=project).values["reliability"] == {"is_refused": False, "is_told": False}


def test_ties_alone_make_no_leaderboard():
    project = make_project()
    for _ in range(10):
        make_judgment(comparison=make_comparison(project=project), order=[[0, 1]])
    assert figures.refresh_figures(project=project).values["leaderboard"] is None


def test_forecast_is_by_whole_days_since_work_began():
    project = make_project(overlap=1)
    noon = timezone.now().replace(hour=12)
    for days_ago, num in ((4, 2), (3, 4), (1, 6), (0, 1)):
        for _ in range(num):
            judgment = make_judgment(comparison=make_comparison(project=project))
            Judgment.objects.filter(pk=judgment.pk).update(created_at=noon - timedelta(days=days_ago))
    for _ in range(15):
        make_comparison(project=project)
    values = figures.refresh_figures(project=project).values
    assert [num for _day, num in values["days"][-5:]] == [2, 4, 0, 6, 1]
    assert (values["forecast"]["rate"], values["forecast"]["days"]) == (3.0, 5.0)
    assert (values["num_judgments"], values["num_wanted"]) == (13, 28)


def test_suspicious_work_is_named_for_the_right_annotator():
    project = make_project(overlap=2)
    fast, careful = make_annotator(), make_annotator()
    for number in range(24):
        comparison = make_comparison(project=project)
        for annotator, seconds in ((fast, 0.2), (careful, 20.0)):
            place = (number // 3 + number) % 2
            make_judgment(comparison=comparison, annotator=annotator, order=[[place], [1 - place]], seconds=seconds)
    rows = figures.refresh_figures(project=project).values["annotators"]
    reasons = {row["id"]: [found["reason"] for found in row["suspicions"]] for row in rows}
    assert "too_fast" in reasons[fast.pk]
    assert "too_fast" not in reasons[careful.pk]


# When they are counted


def test_figures_that_are_fresh_are_not_counted_again(django_assert_num_queries):
    project = make_judgment().project
    first = figures.refresh_if_stale(project)
    with django_assert_num_queries(5):
        second = figures.refresh_if_stale(project)
    assert second.computed_at == first.computed_at


def test_judgments_revisions_verdicts_and_known_answers_make_figures_stale():
    judgment = make_judgment(comparison=make_comparison(num_wanted=5))
    project, comparison = judgment.project, judgment.comparison
    ranking = [[pk] for pk in response_ids(comparison)]
    changes = (
        lambda: make_judgment(comparison=comparison),
        lambda: Revision.objects.create(judgment=judgment, values={}),
        lambda: review.give_verdict(
            comparison=comparison, reviewer=make_annotator(), ranking=ranking, aspect="overall"
        ),
        lambda: Gold.objects.create(comparison=comparison, project=project, ranking=ranking),
    )
    for change in changes:
        kept = figures.refresh_figures(project=project)
        assert not figures.is_stale(kept)
        change()
        assert figures.is_stale(kept)


def test_a_verdict_stays_when_figures_are_counted_again():
    comparison = make_comparison(num_wanted=3)
    for _ in range(2):
        make_judgment(comparison=comparison)
    figures.refresh_figures(project=comparison.project)
    ranking = [[pk] for pk in response_ids(comparison)]
    review.give_verdict(comparison=comparison, reviewer=make_annotator(), ranking=ranking, aspect="overall")
    make_judgment(comparison=comparison, order=[[1], [0]])
    figures.refresh_figures(project=comparison.project)
    assert list(Consensus.objects.values_list("is_decided", "num_judgments")) == [(True, 3)]


def test_consensus_that_has_not_changed_is_not_written(simulated):
    project, _people, _votes = simulated
    figures.refresh_figures(project=project)
    Consensus.objects.filter(pk=Consensus.objects.first().pk).delete()
    before = dict(Consensus.objects.values_list("pk", "certainty"))
    figures.refresh_figures(project=project)
    after = dict(Consensus.objects.values_list("pk", "certainty"))
    assert len(after) == NUM_COMPARISONS
    assert before.items() <= after.items()


@pytest.fixture
def redis_server(monkeypatch):
    """What Redis holds, here a dictionary."""
    held = {}

    class Connection(nullcontext):
        def set(self, name, value, *, nx, ex):
            assert (nx, ex) == (True, figures.ASKED_SECONDS)
            return None if name in held else bool(held.setdefault(name, value))

        def delete(self, name):
            held.pop(name, None)

    connection = Connection()
    connection.enter_result = connection
    monkeypatch.setattr(shared, "connect", lambda: connection)
    return held


@pytest.fixture
def no_redis_server(monkeypatch):
    def fail():
        raise redis.ConnectionError

    monkeypatch.setattr(shared, "connect", fail)


def test_a_worker_is_asked_once_until_it_has_counted(monkeypatch, redis_server):
    project = make_judgment().project
    monkeypatch.setattr(figures, "SMALL", 0)
    asked = []
    monkeypatch.setattr(tasks.refresh_figures, "delay", asked.append)
    for _ in range(3):
        figures.refresh_if_stale(project)
    assert (asked, list(redis_server)) == ([project.pk], [f"plumbline:figures-asked:{project.pk}"])
    tasks.refresh_figures(project.pk)
    assert redis_server == {}
    make_judgment(comparison=make_comparison(project=project))
    figures.refresh_if_stale(project)
    assert asked == [project.pk] * 2


def test_a_large_project_is_left_to_a_worker(monkeypatch, no_redis_server):
    project = make_judgment().project
    monkeypatch.setattr(figures, "SMALL", 0)
    asked = []
    monkeypatch.setattr(tasks.refresh_figures, "delay", asked.append)
    assert figures.refresh_if_stale(project) is None
    assert asked == [project.pk]
    tasks.refresh_figures(project.pk)
    assert figures.refresh_if_stale(project) == Figures.objects.get()
    assert asked == [project.pk]


def test_without_a_broker_the_old_figures_are_shown(monkeypatch, caplog, no_redis_server):
    def fail(_project):
        raise OperationalError("no broker")

    project = make_judgment().project
    old = figures.refresh_figures(project=project)
    make_judgment(comparison=make_comparison(project=project))
    monkeypatch.setattr(figures, "SMALL", 0)
    monkeypatch.setattr(tasks.refresh_figures, "delay", fail)
    assert figures.refresh_if_stale(project) == old
    assert [record.message for record in caplog.records] == [f"The figures of project {project.pk} wait: no broker."]


def test_a_second_message_finds_the_work_done(no_redis_server):
    project = make_judgment().project
    tasks.refresh_figures(project.pk)
    first = Figures.objects.get().computed_at
    tasks.refresh_figures(project.pk)
    assert Figures.objects.get().computed_at == first


def test_reading_costs_as_many_queries_for_much_as_for_little(simulated, django_assert_num_queries):
    project, people, _votes = simulated
    small = make_project(overlap=2)
    comparison = make_comparison(project=small)
    for annotator, _other in combinations(people[:3], 2):
        if not Judgment.objects.filter(comparison=comparison, annotator=annotator).exists():
            make_judgment(comparison=comparison, annotator=annotator)
    for each in (small, project):
        figures.refresh_figures(project=each)
    with django_assert_num_queries(15):
        figures.refresh_figures(project=small)
    with django_assert_num_queries(15):
        figures.refresh_figures(project=project)
