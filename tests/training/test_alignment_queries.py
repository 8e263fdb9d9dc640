import json
import math
import os

import pytest

from annotate.demonstration.quality import quality
from tests.factories import make_project
from tests.training.factories import make_finished_run
from tests.training.reports import leave
from tests.training.trackings import ALARM, exploited, leave_checks, leave_samples, make_check
from training import alignment_queries
from training.alignment_queries import Answer, Choice, Row, read_checks, samples_over_time, tracking
from training.plots import Range

pytestmark = pytest.mark.django_db


def make_rlhf(**values):
    return make_finished_run(**{"kind": "rlhf", "config": {"guard": "stop", "kl_target": 2.0}, **values})


def test_checks_are_read_by_step_and_half_written_lines_left(tmp_path):
    run = make_rlhf()
    first, again, later = (make_check(step, kl=kl, reward=1, held_out=0.5) for step, kl in ((20, 1), (20, 4), (10, 0)))
    leave_checks(run, [first, again, later], tail='{"step": 30, "rew')
    checks = read_checks(run.run_dir / "checks.jsonl")
    assert [(check.step, check.distance) for check in checks] == [(10, 0), (20, 2)]
    assert checks[1].rewards == {"reward": Range(1, 0.9, 1.1), "held_out": Range(0.5, 0.4, 0.6)}
    assert checks[1].measures["length"] == 28
    assert read_checks(tmp_path / "none") == []


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "null",
        "{",
        '{"step": -1}',
        '{"step": 1e3}',
        '{"step": "1"}',
        '{"step": 10000000000000}',
        "\x00",
        "[" * 9999,
    ],
)
def test_checks_of_another_shape_are_none(line):
    run = leave(make_rlhf(), "checks.jsonl", f"{line}\n")
    assert read_checks(run.run_dir / "checks.jsonl") == []
    assert tracking(run) is None


def test_a_check_may_lack_any_figure():
    run = leave_checks(make_rlhf(), [{"step": 0}, {"step": 5, "kl": None, "reward": math.nan, "held_out": "high"}])
    found = tracking(run)
    assert (found.charts, found.measures, found.columns) == ([], [], [])
    assert found.rows == [Row(0, ["not measured"] * 2, ""), Row(5, ["not measured"] * 2, "")]
    assert found.verdict == "No alarm."


def test_a_kl_below_zero_is_an_estimate_of_none():
    run = leave_checks(make_rlhf(), [make_check(0, kl=-0.01, reward=0, held_out=0)])
    assert read_checks(run.run_dir / "checks.jsonl")[0].distance == 0


def test_tracking_shows_both_rewards_against_the_root_of_kl():
    found = tracking(leave_checks(make_rlhf(), exploited()))
    (chart,) = found.charts
    assert [curve.name for curve in chart.curves] == ["reward", "held_out"]
    assert [bool(curve.band) for curve in chart.curves] == [False, True]
    assert chart.curves[1].dots[4].text == "80: held-out reward 0.700 [0.600,\u00a00.800], KL 1.96"
    assert {"80 best", "160", "0"} <= {label.text for label in chart.labels}
    assert len(chart.rings) == 1
    assert chart.about == (
        "Rewards of held-out prompts against the square root of the KL to the reference policy: the optimised reward "
        "goes from 0 to 2.52, the held-out reward goes from 0 to 0 in 9 checks. The figures are in the table."
    )
    assert found.rows[4] == Row(
        80,
        [
            "1.260 [1.160,\u00a01.360]",
            "0.700 [0.600,\u00a00.800]",
            "1.96",
            "1.20",
            "26.0",
            "2.30",
            "2.0%",
            "80.0%",
            "97.5%",
        ],
        "best",
    )
    assert found.columns == ["KL", "Spread", "Length", "Entropy", "Repetition", "Diversity", "Ended"]


def test_rewards_of_unlike_ranges_stand_in_pictures_of_their_own():
    checks = [make_check(step, kl=step, reward=10.0 * step, held_out=0.1 * step) for step in range(4)]
    found = tracking(leave_checks(make_rlhf(), checks))
    assert [[curve.name for curve in chart.curves] for chart in found.charts] == [["reward"], ["held_out"]]


def test_measures_stand_over_the_steps_with_what_they_are_held_against():
    found = tracking(leave_checks(make_rlhf(), exploited()))
    kl, spread, length, *_ = found.measures
    assert (kl.label, kl.newest, kl.chart.levels[0].text) == ("KL", "7.84", "target")
    assert kl.chart.about == "KL by step: 0.00 at 0, 7.84 at 160."
    assert (spread.chart.levels[0].text, length.chart.levels) == ("training data", [])
    assert [upright.text for upright in kl.chart.uprights] == ["best"]


@pytest.mark.parametrize(
    ("guard", "alarm", "verdict"),
    [
        ("stop", ALARM, "Stopped by the guard at step 120; the policy of step 80 is kept."),
        (
            "alarm",
            ALARM,
            "The guard raised an alarm at step 120, and was told to go on. The held-out reward is highest at step 80.",
        ),
        ("stop", {}, "No alarm. The held-out reward is highest at step 80."),
        ("off", {}, "Only recorded, not guarded. The held-out reward is highest at step 80."),
        ("stop", {"step": 120}, "Stopped by the guard at step 120; the policy of step 80 is kept."),
        ("stop", {"step": None, "words": None}, "No alarm. The held-out reward is highest at step 80."),
    ],
)
def test_verdict_says_what_the_guard_did(guard, alarm, verdict):
    run = leave(leave_checks(make_rlhf(config={"guard": guard}), exploited()), "alarm.json", alarm)
    found = tracking(run)
    assert (found.verdict, found.is_alarmed) == (verdict, alarm.get("step") is not None)
    assert found.why == (alarm.get("words") or "")
    assert found.is_guarded == (guard != "off")
    assert [upright.text for upright in found.charts[0].uprights] == (["alarm 120"] if found.is_alarmed else [])


def test_verdict_says_which_policy_is_kept_once_it_is():
    run = leave_checks(make_rlhf(result={"model": "model", "saved_step": 160}), exploited())
    told = "No alarm. The held-out reward is highest at step 80; the policy of step 160 is kept."
    assert tracking(run).verdict == told


def test_shares_have_axes_of_shares():
    found = tracking(leave_checks(make_rlhf(), [make_check(0, kl=0, reward=0, held_out=0, ended=1.0, repetition=0.0)]))
    ticks = {measure.label: [tick.text for tick in measure.chart.y_ticks] for measure in found.measures}
    assert (ticks["Ended"][-1], ticks["Repetition"][0]) == ("100%", "0%")


def test_true_quality_stands_beside_where_it_is_known():
    question = "My family of three likes tofu tray bake. Can I have the recipe?"
    project = make_project(is_demonstration=True)
    run = leave_checks(make_rlhf(project=project), exploited(2))
    leave_samples(run, 0, num_prompts=1, prompt=[{"role": "user", "content": question}], response="- Kale")
    leave_samples(run, 20, num_prompts=1, response="What is no recipe is not graded.")
    found = tracking(run)
    assert (found.columns[0], [row.cells[2] for row in found.rows]) == ("True quality", ["0.00", "not measured"])
    good = "**Tofu tray bake for 3**\n\n- 450 g tofu\n- 300 g carrots\n\n1. Heat the oven to 200 degrees."
    leave_samples(run, 20, num_prompts=1, prompt=question, response=good)
    os.utime(run.run_dir / "samples" / "step-000020.jsonl", ns=(1, 1))
    shown = float(tracking(run).rows[1].cells[2])
    assert shown == round(quality([{"role": "user", "content": question}], good), 2) > 0.1
    project.is_demonstration = False
    assert "True quality" not in tracking(run).columns


def test_rejection_sampling_counts_rounds():
    run = leave_checks(make_rlhf(kind="rejection_sampling"), exploited(3, every=1))
    found = tracking(run)
    assert (found.verdict, found.unit) == ("No alarm. The held-out reward is highest at round 1.", "round")


def test_a_run_that_works_is_told_of_before_its_first_check():
    found = tracking(make_rlhf(status="queued"))
    assert (found.verdict, found.rows, found.version) == ("The policy has not been checked yet.", [], "none")
    assert tracking(make_rlhf()) is None
    assert tracking(leave_checks(make_finished_run(kind="sft"), exploited())) is None


def test_version_changes_with_each_check_and_with_the_alarm():
    run = leave_checks(make_rlhf(), exploited())
    assert tracking(run).version == "160"
    assert tracking(leave(run, "alarm.json", ALARM)).version == "160-alarm"


def test_version_reads_the_last_whole_line_alone(monkeypatch):
    run = leave_checks(make_rlhf(), exploited())
    monkeypatch.setattr(alignment_queries, "TAIL", 2000)
    with (run.run_dir / "checks.jsonl").open("a") as file:
        file.write('{"step": 180, "rew')
    assert alignment_queries.version(run) == "160"
    (run.run_dir / "checks.jsonl").write_text("no check\n")
    assert alignment_queries.version(run) == "none"


def test_many_checks_are_thinned_to_those_that_matter():
    checks = [make_check(step, kl=step / 100, reward=0, held_out=float(step == 333)) for step in range(1000)]
    found = tracking(leave(leave_checks(make_rlhf(), checks), "alarm.json", {**ALARM, "step": 707, "best_step": 333}))
    steps = [row.step for row in found.rows]
    assert (len(steps), steps[:3], steps[-1]) == (103, [0, 10, 20], 999)
    assert {(row.step, row.said) for row in found.rows if row.said} == {(333, "best"), (707, "alarm")}


# Answers over time


@pytest.fixture
def sampled():
    run = leave_checks(make_rlhf(), exploited())
    for step in range(0, 161, 20):
        leave_samples(run, step)
    return run


def test_samples_stand_side_by_side_by_step(sampled):
    found = samples_over_time(sampled)
    assert found.prompts == [Choice(place, f"Question {place}?", place == 0) for place in range(3)]
    assert [one.label for one in found.steps] == ["0, before", "20", "40", "60", "80, best", "100", "120", "140", "160"]
    assert [one.value for one in found.steps if one.is_chosen] == [0, 80, 160]
    assert (found.prompt, found.previous, found.next) == ("Question 0?", None, 1)
    assert found.rows[1] == [
        Answer("step 0", "Answer 1 to question 0 at 0.", "reward 0.00, held-out 0.50"),
        Answer("step 80, the best", "Answer 1 to question 0 at 80.", "reward 8.94, held-out 0.50"),
        Answer("step 160", "Answer 1 to question 0 at 160.", "reward 12.65, held-out 0.50"),
    ]


def test_samples_of_the_prompt_and_steps_that_are_asked_for(sampled):
    found = samples_over_time(sampled, "2", ["40", "20", "7", "x", "9" * 30])
    assert [one.value for one in found.steps if one.is_chosen] == [20, 40]
    assert [answer.text for answer in found.rows[0]] == [f"Answer 0 to question 2 at {step}." for step in (20, 40)]
    assert (found.previous, found.next) == (1, None)


@pytest.mark.parametrize("prompt", ["3", "-1", "x", "9" * 30, "²"])
def test_a_prompt_that_there_is_not_is_the_first(sampled, prompt):
    assert samples_over_time(sampled, prompt, ["²"]).prompt == "Question 0?"


def test_samples_of_another_shape_are_left_out(sampled):
    folder = sampled.run_dir / "samples"
    (folder / "step-000000.jsonl").write_text(
        '{"prompt": 1, "response": "x"}\n{"response": "x"}\n{"prompt": [{"role": "user"}], "response": "x"}\n'
        + json.dumps({"prompt": "Text", "response": None})
        + "\n"
        + json.dumps({"prompt": "Text", "response": "\ud800"})
        + "\n"
        + '{"prompt": "Text", "resp'
    )
    (folder / "step-x.jsonl").write_text("")
    (folder / "step-000000.jsonl.partial").write_text("")
    found = samples_over_time(sampled)
    assert [one.label for one in found.prompts] == ["Text"]
    assert found.rows == [[Answer("step 0", "?", "")]]


def test_no_samples_are_nothing():
    run = make_rlhf()
    assert samples_over_time(run) is None
    leave_samples(run, 0, num_prompts=0)
    assert samples_over_time(run) is None


def test_a_conversation_is_told_with_its_roles_and_long_texts_are_cut(sampled):
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why? " * 2000}]
    leave_samples(sampled, 0, num_prompts=1, prompt=prompt, response="x" * 5000)
    found = samples_over_time(sampled, "0", ["0"])
    assert found.prompt.startswith("system:\nBe brief.\n\nuser:\nWhy? ")
    assert (len(found.prompt), len(found.rows[0][0].text)) == (4000, 4000)
    assert found.prompts[0].label == ("Why? " * 18)[:90] + "…"


def test_steps_are_offered_as_many_as_there_is_room_for():
    run = leave_checks(make_rlhf(), exploited())
    for step in range(200):
        leave_samples(run, step, num_prompts=1, num_responses=1)
    found = samples_over_time(run, "0", [str(step) for step in range(50, 60)])
    assert len(found.steps) <= alignment_queries.MAX_STEPS + 3 + alignment_queries.MAX_COLUMNS
    assert [one.value for one in found.steps if one.is_chosen] == [50, 51, 52, 53, 54, 55]
