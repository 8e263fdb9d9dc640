from urllib.parse import parse_qs

import pytest

from tests.factories import make_user
from tests.training.factories import make_finished_run, make_judged_project, make_preference_set
from tests.training.reports import figure, leave, make_report
from training import comparison_queries
from training.comparison_queries import side_by_side

pytestmark = pytest.mark.django_db


@pytest.fixture
def user():
    return make_user(is_superuser=True)


def make_evaluation(preference_set, *, accuracy=0.7, model=None, num_pairs=812, **values):
    """A finished evaluation of a model with its report."""
    model = model or make_finished_run(preference_set=preference_set)
    config = {"reward_model": str(model.model_dir.resolve()), "split": "test", "aspect": "overall"}
    run = make_finished_run(kind="evaluate", preference_set=preference_set, config=config, **values)
    report = make_report(num_pairs=num_pairs)
    report["figures"]["accuracy"] = figure(accuracy)
    return leave(run, "report.json", report)


def test_side_by_side_shows_every_report_on_a_preference_set(user):
    preference_set = make_preference_set()
    model = make_finished_run(name="helmsman", preference_set=preference_set)
    evaluation = make_evaluation(preference_set, model=model)
    trained = leave(make_finished_run(preference_set=preference_set), "report.json", make_report())
    make_evaluation(make_preference_set())
    make_evaluation(preference_set, status="cancelled")
    leave(make_finished_run(kind="sft", preference_set=preference_set), "report.json", make_report())

    found = side_by_side(user, preference_set, set())
    assert [(one.run, one.model, one.measured_on) for one in found.shown] == [
        (trained, trained.name, "test, overall, 812 pairs"),
        (evaluation, "helmsman", "test, overall, 812 pairs"),
    ]
    assert found.shown[1].accuracy.text == "70.0% [67.0,\u00a073.0]"
    assert (found.offered, found.is_same_basis) == (found.shown, True)


def test_side_by_side_shows_the_chosen_and_warns_of_other_pairs(user):
    preference_set = make_preference_set()
    runs = [make_evaluation(preference_set, num_pairs=number) for number in (10, 10, 20)]
    found = side_by_side(user, preference_set, {run.pk for run in runs[1:]})
    assert ([one.run for one in found.shown], len(found.offered)) == (runs[:0:-1], 3)
    assert not found.is_same_basis
    assert side_by_side(user, preference_set, {run.pk for run in runs[:2]}).is_same_basis


def test_two_models_lead_to_a_paired_evaluation(user):
    preference_set = make_preference_set()
    clear, old, new = (
        make_finished_run(name=name, preference_set=preference_set) for name in ("clear", "twice", "twice")
    )
    for model in (clear, old):
        make_evaluation(preference_set, model=model)
    assert parse_qs(side_by_side(user, preference_set, set()).paired_query) == {
        "preference_set": [str(preference_set.pk)],
        "reward_model": [str(old.model_dir.resolve())],  # its name stands for the newer run
        "other_reward_model": ["clear"],
    }
    make_evaluation(preference_set, model=new)
    assert side_by_side(user, preference_set, set()).paired_query == ""


def test_a_model_is_not_paired_with_itself(user):
    preference_set = make_preference_set()
    model = make_finished_run(preference_set=preference_set)
    for _ in range(2):
        make_evaluation(preference_set, model=model)
    assert side_by_side(user, preference_set, set()).paired_query == ""


def test_reported_sets_are_those_that_the_user_may_see():
    hidden = make_preference_set(project=make_judged_project(is_open=False))
    shown, empty = make_preference_set(), make_preference_set()
    for preference_set in (hidden, shown):
        make_evaluation(preference_set, project=preference_set.project)
    make_evaluation(empty, status="failed", model=make_finished_run())
    assert comparison_queries.reported_sets(make_user()) == [shown]


def test_side_by_side_asks_the_database_no_more_for_three_runs(user, django_assert_num_queries):
    preference_set = make_preference_set()
    make_evaluation(preference_set)
    with django_assert_num_queries(2):
        side_by_side(user, preference_set, set())
    for _ in range(2):
        make_evaluation(preference_set)
    with django_assert_num_queries(2):
        side_by_side(user, preference_set, set())
