import pytest

from tests.factories import make_user
from tests.training.factories import make_finished_run, make_judged_project
from tests.training.reports import leave
from tests.training.trackings import make_policies
from training.plots import Strip
from training.policy_comparison_queries import Answer, Example, comparison
from training.report_figures import Row

pytestmark = pytest.mark.django_db


@pytest.fixture
def user():
    return make_user(is_superuser=True)


def path_of(run):
    return str(run.model_dir.resolve())


def make_comparison_of_policies(*paths, **values):
    return leave(make_finished_run(kind="compare_policies"), "report.json", make_policies(*paths, **values))


def test_policies_are_told_by_the_runs_and_rewards_they_came_from(user):
    reward = make_finished_run(name="helmsman")
    config = {"reward_model": path_of(reward), "algorithm": "rloo", "beta": 0.05, "num_samples": 4}
    rlhf = make_finished_run(kind="rlhf", name="ours", config=config)
    best = make_finished_run(
        kind="rejection_sampling", name="best-of-16", config={"reward_model": path_of(reward), "num_samples": 16}
    )
    found = comparison(make_comparison_of_policies("org/base", path_of(rlhf), path_of(best)), user)
    by = f"reward helmsman (run {reward.pk})"
    assert [(one.name, one.run, one.origin, one.is_first) for one in found.policies] == [
        ("base", None, "", True),
        ("ours", rlhf.pk, f"RLHF: {by}, algorithm rloo, beta 0.05", False),
        ("best-of-16", best.pk, f"Rejection sampling: {by}, samples 16", False),
    ]
    assert found.first == "base"


def test_a_policy_is_held_against_the_first(user):
    found = comparison(make_comparison_of_policies("a", "b", "c"), user)
    first, second, third = found.policies
    assert (first.verdict, second.verdict, third.verdict) == ("not compared", "better", "better")
    assert second.win_rate.text == "60.0% [57.0,\u00a063.0]"
    assert third.controlled_win_rate == Row(
        "At equal length", "60.0% [57.0,\u00a063.0]", "", Strip("33.67%", "23.87%", "43.47%", "1.00%")
    )
    assert third.held_out_gain.text == "+1.000 [+0.970,\u00a0+1.030]"
    assert found.columns[:4] == ["Optimised reward", "Gain in it", "Held-out reward", "KL to the first"]
    assert second.cells == [
        *("1.100 [1.070,\u00a01.130]", "+1.000 [+0.970,\u00a0+1.030]", "0.700 [0.670,\u00a00.730]"),
        *("1.000 [0.970,\u00a01.030]", "21.0", "80.0%", "5.0%", "5,121", "12.5"),
    ]
    assert (first.cells[1], first.cells[3]) == ("not measured", "not measured")
    assert found.basis == (
        "Each policy answered 64 prompts, 4 times each; the answers are compared by reward models trained on the votes "
        "set aside for the guard, from which no other reward has learned."
    )


def test_gains_stand_over_the_root_of_kl(user):
    found = comparison(make_comparison_of_policies("a", "b", "c" * 40), user)
    assert found.chart.about == (
        "Gain in held-out reward over a against the square root of the KL to it: "
        f"b: +0.500 [+0.470,\u00a0+0.530], KL 1.00; {'c' * 40}: +1.000 [+0.970,\u00a0+1.030], KL 2.00."
    )
    assert {label.text for label in found.chart.labels} == {"b", "c" * 19 + "…"}
    assert [(len(curve.dots), len(curve.bars), curve.line) for curve in found.chart.curves] == [(2, 2, "")]


def test_examples_show_each_policys_answer(user):
    found = comparison(make_comparison_of_policies("a", "b"), user)
    assert [(title, len(own)) for title, own in found.examples] == [
        ("Where they differ most", 2),
        ("Drawn at random", 2),
    ]
    assert found.examples[0][1][0] == Example(
        "Question 0?",
        "Question 0?",
        [Answer("a", "Answer 0 of a", "0.00", False), Answer("b", "Answer 0 of b", "0.25", True)],
    )


@pytest.mark.parametrize(
    "values",
    [
        {"samples": None, "num_prompts": None, "held_out_votes": None, "num_samples": "4"},
        {"samples": [{"prompt": 1}, {"responses": ["x", "y"]}, {"prompt": "Text", "responses": ["x"]}, None]},
    ],
)
def test_a_report_may_lack_anything(user, values):
    told = make_policies("a", "b", **values)
    told["policies"][1] = {"against_first": {"win_rate": None}, "kl": "far", "length": None}
    found = comparison(leave(make_finished_run(kind="compare_policies"), "report.json", told), user)
    assert (found.examples, found.chart) == ([], None)
    assert (found.policies[1].name, found.policies[1].verdict) == ("not named", "not compared")
    assert set(found.policies[1].cells) == {"not measured"}


@pytest.mark.parametrize("told", [{}, {"policies": []}, {"policies": [1]}, {"policies": {"name": "x"}}])
def test_no_policies_are_nothing(user, told):
    assert comparison(leave(make_finished_run(kind="compare_policies"), "report.json", told), user) is None
    assert comparison(leave(make_finished_run(kind="evaluate"), "report.json", make_policies("a", "b")), user) is None


def test_a_run_that_the_user_does_not_see_is_not_named():
    hidden = make_finished_run(kind="rlhf", name="secret", project=make_judged_project(is_open=False))
    found = comparison(make_comparison_of_policies("a", path_of(hidden)), make_user(is_staff=True))
    assert [(one.name, one.run, one.origin) for one in found.policies] == [("a", None, ""), ("model", None, "")]
