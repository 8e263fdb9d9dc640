import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from tests.factories import make_project, make_user
from tests.training.factories import make_finished_run, make_judged_project, make_preference_set
from tests.training.reports import figure, gains, leave, make_combination, make_report
from training import promotion_queries, promotion_services, services
from training.models import Promotion, TrainingRun
from training.promotion_queries import Test as Held
from training.promotion_services import CannotPromote

pytestmark = pytest.mark.django_db


@pytest.fixture
def preference_set():
    return make_preference_set(name="first", project=make_judged_project(name="cooking"))


def make_reward(preference_set, name="helmsman", **values):
    return make_finished_run(name=name, preference_set=preference_set, project=preference_set.project, **values)


def folder(run) -> str:
    return str(run.model_dir.resolve())


def evaluate(preference_set, first, second=None, *, report=None, **config):
    """A finished evaluation of one reward model, or of two on the same pairs."""
    told = report or make_report(comparison={**gains(0.03, 0.02)} if second else None)
    config = {"aspect": "overall", "split": "test", "reward_model": folder(first), **config}
    config.setdefault("other_reward_model", folder(second) if second else "")
    run = make_reward(preference_set, name="paired", kind="evaluate", config=config)
    return leave(run, "report.json", told)


def tell_learned(evaluation, num_prompts):
    """As an evaluation tells from how many of its prompts a reward has learned."""
    evaluation.result |= {"num_learned_prompts": num_prompts}
    evaluation.save()
    return evaluation


def promote_first(run, **values):
    """The first promotion of a project, by whatever its own report says."""
    leave(run, "report.json", make_report())
    return promotion_services.promote(run=run, previous=None, **values)


@pytest.fixture
def in_use(preference_set):
    """The promotion of the reward model that is in use."""
    return promote_first(make_reward(preference_set, name="in-use"), user=make_user(username="amina"))


def as_wide(accuracy, log_loss):
    """Gains as a report tells them, by the ends of their intervals."""
    figures = [{"value": sum(ends) / 2, "interval": list(ends)} for ends in (accuracy, log_loss)]
    return dict(zip(("accuracy_gain", "log_loss_gain"), figures, strict=True))


# The first one


def test_first_promotion_goes_by_the_accuracy_alone(preference_set):
    run, user = make_reward(preference_set), make_user(username="amina")

    promotion = promote_first(run, user=user)

    assert (promotion.project, promotion.run, promotion.previous, promotion.incumbent) == (
        preference_set.project,
        run,
        None,
        None,
    )
    assert (promotion.preference_set, promotion.created_by) == (preference_set, user)
    assert (promotion.is_overruled, promotion.reason) == (False, "")
    assert promotion.test == {
        "run": run.pk,
        "preference_set": preference_set.pk,
        "num_pairs": 812,
        "accuracy": {"value": 0.712, "interval": [pytest.approx(0.682), pytest.approx(0.742)]},
        "accuracy_gain": None,
        "log_loss_gain": None,
        "mcnemar_p": None,
        "num_prompts": 212,
    }
    assert promotion_queries.current(preference_set.project) == promotion


@pytest.mark.parametrize(
    ("accuracy", "is_open"),
    [
        ({"value": 0.6, "interval": [0.501, 0.7]}, True),
        ({"value": 0.6, "interval": [0.5, 0.7]}, False),
        ({"value": 0.9, "interval": None}, False),
        ({"value": "x"}, False),
        (None, False),
    ],
)
def test_first_reward_model_has_to_be_better_than_a_coin(preference_set, accuracy, is_open):
    run = make_reward(preference_set)
    leave(run, "report.json", make_report(figures={"accuracy": accuracy}))
    assert promotion_queries.gate(run).is_open == is_open


def test_first_promotion_takes_the_newest_evaluation(preference_set):
    run = leave(make_reward(preference_set), "report.json", make_report())
    evaluate(preference_set, run, report=make_report(figures={"accuracy": figure(0.6)}))
    newest = evaluate(preference_set, run, report=make_report(figures={"accuracy": figure(0.51)}, num_pairs=90))
    evaluate(preference_set, run, report=make_report(figures={"accuracy": figure(0.9)}), split="train")
    evaluate(preference_set, run, report=make_report(figures={"accuracy": figure(0.9)}), aspect="harmlessness")

    test = promotion_queries.gate(run).test

    assert (test.run, test.num_pairs, test.accuracy["value"], test.is_passed) == (newest.pk, 90, 0.51, False)


def test_first_promotion_of_a_combination_goes_by_what_was_saved(preference_set):
    run = leave(make_reward(preference_set, kind="combine"), "report.json", make_combination())
    test = promotion_queries.gate(run).test
    assert (test.accuracy["value"], test.num_pairs, test.is_passed) == (0.752, 812, True)


@pytest.mark.parametrize("aspect", ["harmlessness", "overall, helpfulness"])
def test_a_reward_model_of_another_aspect_is_not_measured(preference_set, aspect):
    run = make_reward(preference_set, config={"aspect": aspect})
    assert promotion_queries.gate(leave(run, "report.json", make_report())).test is None


# Against the current one


@pytest.mark.parametrize(
    ("accuracy", "log_loss", "is_open"),
    [
        ((0.01, 0.03), (0.01, 0.03), True),
        ((-0.03, 0.01), (-0.03, 0.001), True),
        ((-0.03, 0.0), (-0.02, 0.0), True),
        ((-0.05, 0.011), (-0.05, 0.011), True),
        ((-0.061, 0.02), (-0.01, 0.03), False),
        ((-0.01, 0.03), (-0.061, 0.02), False),
        ((-0.61, 0.02), (-0.61, 0.02), False),
        ((-0.03, -0.001), (0.01, 0.03), False),
        ((0.01, 0.03), (-0.03, -0.001), False),
    ],
)
def test_gate_opens_where_neither_gain_is_a_loss_beyond_chance_or_an_estimated_one_of_two_points(
    preference_set, in_use, accuracy, log_loss, is_open
):
    run = make_reward(preference_set)
    found = gains(0, 0, **as_wide(accuracy, log_loss))
    measured = evaluate(preference_set, run, in_use.run, report=make_report(comparison=found))

    gate = promotion_queries.gate(run)

    assert (gate.current, gate.is_open, gate.test.run) == (in_use, is_open, measured.pk)


def test_promotion_keeps_the_paired_test(preference_set, in_use):
    run = make_reward(preference_set)
    measured = evaluate(preference_set, run, in_use.run)

    promotion = promotion_services.promote(run=run, previous=in_use.pk)

    assert (promotion.previous, promotion.incumbent, promotion.is_overruled) == (in_use, in_use.run, False)
    assert promotion.test == {
        "run": measured.pk,
        "preference_set": preference_set.pk,
        "num_pairs": 812,
        "accuracy": None,
        "accuracy_gain": {"value": 0.03, "interval": [pytest.approx(0.01), pytest.approx(0.05)]},
        "log_loss_gain": {"value": 0.02, "interval": [pytest.approx(0.01), pytest.approx(0.03)]},
        "mcnemar_p": 0.0132,
        "num_prompts": 212,
    }
    assert promotion_queries.current(preference_set.project) == promotion


def test_a_comparison_the_other_way_round_counts_turned(preference_set, in_use):
    run = make_reward(preference_set)
    worse = gains(0, 0, **as_wide((0.01, 0.03), (0.01, 0.02)))
    evaluate(preference_set, in_use.run, run, report=make_report(comparison=worse))

    test = promotion_queries.gate(run).test

    assert (test.accuracy_gain["interval"], test.is_passed) == ([-0.03, -0.01], False)


def test_a_combination_that_was_told_of_the_current_reward_model_needs_no_evaluation(preference_set, in_use):
    config = {"incumbent": folder(in_use.run), "aspect": "overall"}
    run = make_reward(preference_set, kind="combine", config=config)
    leave(run, "report.json", make_combination(against_incumbent={"name": "x", **gains(0.0, 0.02, num_pairs=77)}))
    other = make_reward(preference_set, kind="combine", config={**config, "incumbent": folder(run)})
    leave(other, "report.json", make_combination(against_incumbent={"name": "x", **gains(0.0, 0.02)}))

    test = promotion_queries.gate(run).test

    assert (test.run, test.num_pairs, test.num_prompts, test.is_passed) == (run.pk, 77, 212, True)
    assert promotion_queries.gate(other).test is None


@pytest.mark.parametrize(
    "config", [{"split": "train"}, {"split": "validation"}, {"aspect": "all"}, {"other_reward_model": "hub/other"}]
)
def test_a_comparison_of_something_else_does_not_count(preference_set, in_use, config):
    run = make_reward(preference_set)
    evaluate(preference_set, run, in_use.run, **config)
    assert promotion_queries.gate(run).test is None


@pytest.mark.parametrize("values", [{"status": "failed"}, {"status": "cancelled"}])
def test_a_comparison_that_did_not_finish_does_not_count(preference_set, in_use, values):
    run = make_reward(preference_set)
    TrainingRun.objects.filter(pk=evaluate(preference_set, run, in_use.run).pk).update(**values)
    assert promotion_queries.gate(run).test is None


def test_a_comparison_on_another_project_does_not_count(preference_set, in_use):
    run = make_reward(preference_set)
    evaluate(make_preference_set(), run, in_use.run)
    assert promotion_queries.gate(run).test is None


@pytest.mark.parametrize("values", [{"seed": 1}, {"fractions": (0.7, 0.1, 0.2)}])
def test_a_comparison_on_prompts_that_may_have_been_learned_from_does_not_count(preference_set, in_use, values):
    run = make_reward(preference_set)
    evaluate(make_preference_set(project=preference_set.project, **values), run, in_use.run)
    assert promotion_queries.gate(run).test is None


@pytest.mark.parametrize("fractions", [services.FRACTIONS, (0.8, 0.1, 0.1), (0.7, 0.2, 0.1)])
def test_a_comparison_on_a_later_set_that_tests_on_the_same_prompts_counts(preference_set, in_use, fractions):
    run = make_reward(preference_set)
    later = make_preference_set(project=preference_set.project, fractions=fractions)
    evaluate(later, run, in_use.run)
    assert promotion_queries.gate(run).test.preference_set == later.pk


def test_what_members_learned_from_counts_too(preference_set, in_use):
    drawn_otherwise = make_preference_set(project=preference_set.project, seed=1)
    member = make_reward(drawn_otherwise, name="member")
    run = make_reward(preference_set, kind="combine", config={"members": f"{folder(member)}, hub/other"})
    evaluate(preference_set, run, in_use.run)
    assert promotion_queries.gate(run).test is None


def test_a_combination_that_was_fitted_on_the_test_split_cannot_be_measured_on_it(preference_set, in_use):
    run = make_reward(preference_set, kind="combine", config={"members": "a, b", "num_folds": 5})
    evaluate(preference_set, run, in_use.run)
    assert promotion_queries.gate(run).test is None
    assert promotion_queries.box(run, None).start_kind == "combine"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("num_learned", [0, 3])
def test_an_evaluation_tells_itself_whether_a_reward_has_learned_from_its_prompts(preference_set, seed, num_learned):
    run = make_reward(preference_set)
    measured_on = make_preference_set(project=preference_set.project, seed=seed)
    tell_learned(evaluate(measured_on, run), num_learned)
    assert (promotion_queries.gate(run).test is None) == bool(num_learned)

    in_use = promote_first(make_reward(preference_set, name="in-use"))
    both = tell_learned(evaluate(measured_on, run, in_use.run), num_learned)
    found = promotion_queries.gate(run)
    if num_learned:
        assert (found.test, found.uncounted.run) == (None, both.pk)
        assert found.uncounted.why == "a reward has learned from 3 of its prompts"
    else:
        assert (found.test.run, found.uncounted) == (both.pk, None)


def test_a_cross_fitted_combination_goes_by_its_own_report_where_none_is_in_use(preference_set):
    run = make_reward(preference_set, kind="combine", config={"members": "a, b", "num_folds": 5})
    leave(run, "report.json", make_combination(cross_fitted=5))
    evaluation = evaluate(preference_set, run)

    found = promotion_queries.gate(run)

    assert (found.test.run, found.test.accuracy["value"], found.is_open) == (run.pk, 0.752, True)
    why = "a reward was cross-fitted, and so on test prompts too"
    assert (found.uncounted.run, found.uncounted.why, found.obstacle) == (evaluation.pk, why, why)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"split": "train"}, "it is not on the test split"),
        ({"aspect": "overall, helpfulness"}, "it is not of overall judgments alone"),
        ({"report": {"comparison": None}}, "its report does not tell it"),
    ],
)
def test_the_newest_test_that_does_not_count_is_told(preference_set, in_use, config, why):
    run = make_reward(preference_set)
    counted = evaluate(preference_set, run, in_use.run)
    evaluate(preference_set, run, in_use.run, split="validation")
    newest = evaluate(preference_set, run, in_use.run, **config)

    found = promotion_queries.gate(run)

    assert (found.test.run, found.uncounted.run, found.uncounted.why) == (counted.pk, newest.pk, why)
    evaluate(preference_set, run, in_use.run)
    assert promotion_queries.gate(run).uncounted is None


def test_a_test_of_another_project_is_told_without_its_number(preference_set, in_use):
    run = make_reward(preference_set)
    evaluate(make_preference_set(), run, in_use.run)
    uncounted = promotion_queries.gate(run).uncounted
    assert (uncounted.run, uncounted.why) == (None, "it is not on judgments of this project")


def test_where_prompts_were_learned_from_another_test_on_them_is_no_way_out(preference_set, in_use):
    run = make_reward(preference_set)
    assert promotion_queries.gate(run).obstacle == ""
    tell_learned(evaluate(make_preference_set(project=preference_set.project), run, in_use.run), 3)
    assert promotion_queries.gate(run).obstacle == ""
    tell_learned(evaluate(preference_set, run, in_use.run), 2)
    assert promotion_queries.gate(run).obstacle == "a reward has learned from 2 of its prompts"


def test_a_set_that_was_split_otherwise_is_in_the_way_only_within_the_project(preference_set, in_use):
    whys = []
    for project in (preference_set.project, None):
        drawn_otherwise = make_preference_set(seed=1, **({"project": project} if project else {}))
        member = make_reward(drawn_otherwise, name="member")
        run = make_reward(preference_set, kind="combine", config={"members": f"{folder(member)}, hub/other"})
        whys.append(promotion_queries.gate(run).obstacle)
    assert whys == ["a reward has learned from a set whose prompts were split otherwise", ""]


@pytest.mark.parametrize(
    "comparison", [None, {}, [], {"accuracy_gain": figure(0.1)}, {"log_loss_gain": {"value": "x"}}]
)
def test_a_report_without_both_gains_is_no_test(preference_set, in_use, comparison):
    run = make_reward(preference_set)
    evaluate(preference_set, run, in_use.run, report=make_report(comparison=comparison))
    assert promotion_queries.gate(run).test is None


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("split", ["test", "train"])
def test_gate_asks_the_database_no_more_for_more_evaluations(preference_set, in_use, seed, split):
    """Whether they count or not."""
    members = [make_reward(preference_set, name=name) for name in ("one", "other")]
    run = make_reward(preference_set, kind="combine", config={"members": ", ".join(map(folder, members))})
    measured_on = make_preference_set(project=preference_set.project, seed=seed)
    numbers = []
    for num_more in (1, 3):
        for _ in range(num_more):
            evaluate(measured_on, run, in_use.run, split=split)
        with CaptureQueriesContext(connection) as queries:
            promotion_queries.gate(run)
        numbers.append(len(queries))
    assert numbers[0] == numbers[1]


# Refused, overruled


def test_a_closed_gate_says_what_would_open_it(preference_set, in_use):
    run = make_reward(preference_set)
    with pytest.raises(CannotPromote, match="Nothing shows yet what it is worth on held-out judgments"):
        promotion_services.promote(run=run, previous=in_use.pk)
    evaluate(preference_set, run, in_use.run, report=make_report(comparison=gains(-0.1, -0.1)))
    with pytest.raises(CannotPromote, match="It did not pass the test on held-out judgments"):
        promotion_services.promote(run=run, previous=in_use.pk, reason=" \n")
    with pytest.raises(CannotPromote, match="A reason has up to 2000 characters"):
        promotion_services.promote(run=run, previous=in_use.pk, reason="x" * 2001)
    assert list(Promotion.objects.all()) == [in_use]


@pytest.mark.parametrize("is_measured", [True, False])
def test_a_person_can_overrule_the_gate_with_a_reason(preference_set, in_use, is_measured):
    run, user = make_reward(preference_set), make_user(username="ben")
    if is_measured:
        evaluate(preference_set, run, in_use.run, report=make_report(comparison=gains(-0.1, -0.1)))

    promotion = promotion_services.promote(run=run, previous=in_use.pk, user=user, reason=" It is half as large. ")

    assert (promotion.is_overruled, promotion.reason, promotion.created_by) == (True, "It is half as large.", user)
    assert (promotion.test == {}, promotion.preference_set is None) == (not is_measured, not is_measured)


def test_a_reason_is_not_kept_where_none_is_needed(preference_set, in_use):
    run = make_reward(preference_set)
    evaluate(preference_set, run, in_use.run)
    assert promotion_services.promote(run=run, previous=in_use.pk, reason="because").reason == ""


@pytest.mark.parametrize("values", [{"kind": "sft"}, {"kind": "evaluate"}, {"status": "failed"}, {"project": None}])
def test_only_a_projects_reward_model_can_be_promoted(preference_set, values):
    run = make_finished_run(**{"preference_set": preference_set, "project": preference_set.project, **values})
    with pytest.raises(CannotPromote, match="has made no reward model for a project"):
        promotion_services.promote(run=run, previous=None, reason="because")
    assert promotion_queries.box(run, None) is None


# Two at once


def test_a_second_press_finds_the_reward_model_promoted(preference_set):
    run = make_reward(preference_set)
    assert promote_first(run) == promotion_services.promote(run=run, previous=None)
    assert Promotion.objects.count() == 1


def test_who_saw_another_reward_model_in_use_has_to_look_again(preference_set, in_use):
    """Both saw the same one in use; the second of them has not been compared with what the first promoted."""
    first, second = (make_reward(preference_set, name=name) for name in ("first", "second"))
    for run in (first, second):
        evaluate(preference_set, run, in_use.run)
    promoted = promotion_services.promote(run=first, previous=in_use.pk)

    with pytest.raises(CannotPromote, match="The current reward model of cooking is another one by now"):
        promotion_services.promote(run=second, previous=in_use.pk, reason="because")

    assert promotion_queries.current(preference_set.project) == promoted


def test_the_database_lets_one_promotion_follow_another(preference_set, in_use):
    values = {"project": preference_set.project, "run": in_use.run, "test": {}}
    for previous in (None, in_use):
        if previous:
            Promotion.objects.create(previous=previous, **values)
        with pytest.raises(IntegrityError), transaction.atomic():
            Promotion.objects.create(previous=previous, **values)
    assert Promotion.objects.count() == 2


def test_whoever_loses_the_race_is_told_in_words(preference_set, in_use, monkeypatch):
    """The lock does not hold on every database; then the constraint does."""
    run, other = make_reward(preference_set), make_reward(preference_set, name="other")
    evaluate(preference_set, run, in_use.run)
    gate = promotion_queries.gate(run)
    Promotion.objects.create(project=preference_set.project, run=other, previous=in_use, test={})
    monkeypatch.setattr(promotion_queries, "gate", lambda run: gate)

    with pytest.raises(CannotPromote, match="Somebody else has just promoted another reward model of cooking"):
        promotion_services.promote(run=run, previous=in_use.pk)


@pytest.mark.django_db(transaction=True)
def test_of_two_people_who_promote_at_once_one_is_refused(preference_set, in_use):
    runs = [make_reward(preference_set, name=name) for name in ("first", "second")]
    for run in runs:
        evaluate(preference_set, run, in_use.run)
    together = Barrier(len(runs))

    def promote(run):
        try:
            together.wait()
            return promotion_services.promote(run=run, previous=in_use.pk).run.name
        except CannotPromote as error:
            return str(error)
        finally:
            connection.close()

    with ThreadPoolExecutor() as threads:
        said = sorted(threads.map(promote, runs))

    assert said[0].startswith(("The current reward model of cooking is another", "Somebody else has just promoted"))
    assert said[1] == promotion_queries.current(preference_set.project).run.name
    assert Promotion.objects.count() == 2


# What is kept


def test_an_overruling_has_a_reason(preference_set, in_use):
    values = {"project": preference_set.project, "run": in_use.run, "test": {}, "previous": in_use}
    with pytest.raises(IntegrityError), transaction.atomic():
        Promotion.objects.create(is_overruled=True, **values)


def test_a_promotion_never_changes(in_use):
    with pytest.raises(TypeError, match="A promotion never changes"):
        in_use.save()
    with pytest.raises(TypeError, match="A promotion never changes"):
        in_use.delete()


def test_projects_have_reward_models_of_their_own(in_use):
    assert promotion_queries.current(make_project()) is None
    assert promotion_queries.current(None) is None
    other = make_preference_set()
    assert promote_first(make_reward(other)).previous is None


def test_a_test_is_told_in_a_line(preference_set, in_use):
    run = make_reward(preference_set)
    evaluate(preference_set, run, in_use.run)
    paired = promotion_services.promote(run=run, previous=in_use.pk)
    untested = make_reward(preference_set, name="untested")
    overruled = promotion_services.promote(run=untested, previous=paired.pk, reason="because")

    assert [promotion_queries.told_test(one).replace("\u00a0", " ") for one in (in_use, paired, overruled)] == [
        "71.2% [68.2, 74.2], 812 pairs",
        "+3.0 points [+1.0, +5.0], +0.020 [+0.010, +0.030] nats, 812 pairs",
        "none",
    ]


@pytest.mark.parametrize(
    ("accuracy", "log_loss", "said"),
    [
        ((0.01, 0.03), (-0.01, 0.03), "It is not worse than {} on held-out judgments."),
        ((-0.01, 0.03), (-0.01, 0.03), "It is not worse than {} on held-out judgments, as far as can be told."),
        ((-0.03, -0.01), (0.01, 0.03), "It is worse than {} on held-out judgments."),
        ((-0.61, 0.02), (0.01, 0.03), "It may well be worse than {} on held-out judgments."),
    ],
)
def test_verdict_is_only_as_sure_as_its_intervals(preference_set, in_use, accuracy, log_loss, said):
    test = Held(1, preference_set.pk, 9999, num_prompts=19, **as_wide(accuracy, log_loss))
    drawn = promotion_queries.drawn_test(test, make_reward(preference_set), in_use.run)
    assert drawn.verdict == said.format(in_use.run)
    assert (
        drawn.basis == "Measured on 9,999 ordered pairs of 19 prompts. On so few prompts only large differences show."
    )


def test_a_test_of_another_time_is_told_as_none(in_use):
    in_use.test = json.loads('{"figures": 3}')
    assert promotion_queries.stored_test(in_use) is None
    assert promotion_queries.told_test(in_use) == "none"
