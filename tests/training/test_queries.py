import json

import pytest

from annotate.demonstration.quality import quality
from annotate.demonstration.recipes import demonstration_rows
from annotate.models import Figures
from tests.factories import make_project, make_user
from tests.training.factories import make_finished_run, make_run
from training import member_services, queries
from training.models import Metric

pytestmark = pytest.mark.django_db


def write_samples(run, when: str, rows: list[tuple[list, str]]) -> None:
    lines = [json.dumps({"prompt": prompt, "response": text, "reward": 0.5}) for prompt, text in rows]
    (run.run_dir / f"samples_{when}.jsonl").write_text("\n".join(lines) + "\n")


def make_sampled_run(*, is_demonstration: bool):
    """A finished run that answered three prompts, first with the last and then with the first of their responses."""
    project = make_project(is_demonstration=is_demonstration)
    run = make_finished_run(kind="rejection_sampling", project=project)
    by_prompt = {row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"]): row for row in ROWS}
    rows = list(by_prompt.values())[:3]
    for when, place in (("before", -1), ("after", 0)):
        write_samples(run, when, [(row["prompt"], row["responses"][place]["content"]) for row in rows])
    return run, rows


ROWS = list(demonstration_rows(seed=0))[:20]


def test_oracle_quality_compares_the_demonstrations_answers():
    run, rows = make_sampled_run(is_demonstration=True)
    before, after = ([quality(row["prompt"], row["responses"][place]["content"]) for row in rows] for place in (-1, 0))
    gains = [new - old for new, old in zip(after, before, strict=True)]
    mean = sum(gains) / 3
    margin = 1.959963984540054 * (sum((gain - mean) ** 2 for gain in gains) / 2 / 3) ** 0.5
    assert queries.oracle_quality(run) == pytest.approx(
        {
            "oracle_quality_before": sum(before) / 3,
            "oracle_quality_after": sum(after) / 3,
            "oracle_quality_gain_interval": pytest.approx([mean - margin, mean + margin]),
        }
    )


def test_oracle_quality_is_unknown_elsewhere():
    run, _ = make_sampled_run(is_demonstration=False)
    assert queries.oracle_quality(run) == {}
    assert queries.oracle_quality(make_finished_run()) == {}


def test_result_lines_say_accuracy_with_its_interval():
    result = {"model": "model", "accuracy": 0.712, "interval": [0.64, 0.781], "num_pairs": 181, "num_prompts": 40}
    assert queries.result_lines({**result, "loss": 0.61234}) == [
        queries.Line("Pairwise accuracy", "71.2% (95% interval 64.0% to 78.1%), 181 pairs of 40 prompts"),
        queries.Line("Loss", "0.6123"),
    ]


def test_result_lines_say_the_human_ceiling_beside_an_accuracy():
    ceiling = {"low": 0.7379, "high": 0.8051, "num_items": 4006}
    told = queries.Line("Human ceiling", "73.8% to 80.5%, from 4006 comparisons", queries.CEILING_HELP)
    lines = queries.result_lines({"accuracy": 0.7, "loss": 0.5}, ceiling)
    assert lines == [queries.Line("Pairwise accuracy", "70.0%"), told, queries.Line("Loss", "0.5")]
    assert queries.result_lines({"loss": 0.5}, ceiling) == [queries.Line("Loss", "0.5")]


def test_human_ceiling_is_that_of_the_aspect_the_run_learned():
    project = make_project()
    run = make_finished_run(project=project, config={"aspect": "harmlessness"})
    assert queries.human_ceiling(run) is None
    aspects = {"overall": {"ceiling": None}, "harmlessness": {"ceiling": {"low": 0.6, "high": 0.7, "num_items": 12}}}
    Figures.objects.create(project=project, values={"aspects": aspects})
    assert queries.human_ceiling(run) == {"low": 0.6, "high": 0.7, "num_items": 12}
    assert queries.human_ceiling(make_finished_run(project=project)) is None
    assert queries.human_ceiling(make_finished_run()) is None


def test_result_lines_say_rewards_before_and_after():
    rewards = {"reward_before": -0.31, "reward_after": 0.88, "reward_gain": 1.19, "reward_gain_interval": [0.9, 1.48]}
    result = {**rewards, "num_held_out_prompts": 16}
    assert queries.result_lines(result) == [
        queries.Line("Mean reward, optimised", "-0.31 before, 0.88 after; gain +1.19 (95% interval +0.9 to +1.48)"),
        queries.Line("Held-out prompts", "16"),
    ]


@pytest.mark.parametrize("result", [None, {}, {"model": "model"}])
def test_result_lines_of_nothing(result):
    assert queries.result_lines(result) == []
    assert queries.headline(result) == ""


def test_result_lines_say_that_a_figure_is_missing():
    result = {"accuracy": None, "interval": None, "reward_before": None, "reward_after": 1.0}
    assert [line.text for line in queries.result_lines(result)] == ["not measured", "not measured"]
    assert queries.headline(result) == ""


def test_an_interval_that_is_not_known_is_left_out():
    unknown = [None, None]
    result = {"accuracy": 0.7, "interval": unknown, "kl": 1.5, "kl_interval": unknown}
    result |= {"reward_before": 0.0, "reward_after": 1.0, "reward_gain": 1.0, "reward_gain_interval": unknown}
    assert [line.text for line in queries.result_lines(result)] == [
        "70.0%",
        "0 before, 1 after; gain +1",
        "1.5",
    ]
    told = {"held_out_reward_gain": 0.25, "held_out_reward_gain_interval": unknown}
    assert queries.headline(told) == "held-out reward +0.25"


def test_result_lines_tell_a_figure_with_its_interval():
    result = {"kl": 3.14159, "kl_interval": [2.5, 3.75], "loss": 0.5, "loss_interval": None, "odd_interval": [1, 2]}
    assert [(line.label, line.text) for line in queries.result_lines(result)] == [
        ("KL", "3.142 (95% interval 2.5 to 3.75)"),
        ("Loss", "0.5"),
        ("Odd interval", "1, 2"),
    ]


def test_result_lines_make_lists_and_objects_readable():
    result = {
        "packing": "shared",
        "num_real_tokens": 120_400,
        "early_stop": False,
        "note": None,
        "learned": {"flip_rate": 0.08125, "temperatures": {"amina": 1.5, "ben": 0.25}},
        "ceiling": [0.738, 0.805],
        "annotators": list(range(40)),
        "heads": [],
    }
    assert [(line.label, line.text) for line in queries.result_lines(result)] == [
        ("Packing", "shared"),
        ("Real tokens", "120400"),
        ("Early stop", "no"),
        ("Note", "none"),
        ("Learned", "flip_rate 0.08125, temperatures (amina 1.5, ben 0.25)"),
        ("Ceiling", "0.738, 0.805"),
        ("Annotators", ", ".join(map(str, range(30))) + ", and 10 more"),
        ("Heads", "none"),
    ]


def test_run_page_says_nothing_twice():
    run = make_finished_run(result={"accuracy": 0.7, "brier": 0.2, "num_truncated": 3})
    lines = queries.run_page(run, told_elsewhere={"brier"}).result
    assert [line.label for line in lines] == ["Pairwise accuracy", "Truncated"]


@pytest.mark.parametrize(
    ("result", "headline"),
    [
        ({"accuracy": 0.5, "loss": 1}, "accuracy 50.0%"),
        ({"reward_before": 0.1, "reward_after": 0.25}, "reward 0.1 → 0.25"),
        ({"loss": 1.23456}, "loss 1.23"),
        (
            {"accuracy": 0.7, "reward_before": 0.1, "reward_after": 2, "held_out_reward_gain": -0.5},
            "held-out reward -0.50",
        ),
        ({"win_rate": 0.6125, "win_rate_interval": [0.5, 0.7]}, "win rate 61.3%"),
        (
            {
                "held_out_reward_gain": 0.88,
                "held_out_reward_gain_interval": [0.71, 1.046],
                "stopped_by": "held_out_falls",
            },
            "held-out reward +0.88 [+0.71, +1.05], stopped by the guard",
        ),
    ],
)
def test_headline_picks_one_figure(result, headline):
    assert queries.headline(result) == headline


def test_words_spell_kl_as_papers_do():
    assert [queries.words(name) for name in ("kl", "kl_target", "num_kl_steps", "held_out_num_prompts", "klein")] == [
        *("KL", "KL target", "KL steps", "Held-out prompts", "Klein")
    ]


def test_config_lines_name_the_run_that_a_model_came_from():
    base = make_finished_run(kind="sft", name="base")
    run = make_run(values={"backbone": "base"})
    lines = {line.label: (line.text, line.run) for line in queries.config_lines(run)}
    assert lines["Backbone"] == (f"base (run {base.pk})", base.pk)
    assert lines["Preferences"] == ("preferences.jsonl", None)
    assert lines["Epochs"] == ("3", None)


def test_names_of_what_a_user_may_not_see_are_not_told():
    hidden, own = make_project(name="hidden", is_open=False), make_project(name="own")
    made = [
        member_services.create_member(kind="length", name=name, values={}, project=project)
        for name, project in (("short", own), ("secret", hidden), ("brief", make_project(name="other")))
    ]
    member = str(made[0].path.resolve())
    saved = str(make_finished_run(name="secret", project=hidden).model_dir.resolve())
    nobody, everybody = make_user(), None
    assert queries.saving_runs([saved], nobody) == {}
    assert queries.saving_runs([saved], everybody)[saved].name == "secret"
    told = [queries.registered_members([member], user, own.pk)[member] for user in (nobody, everybody)]
    assert told == ["own/short", "own/short"]
    assert queries.registered_members([member], nobody, hidden.pk) == {member: "other/brief"}
    assert queries.registered_members([member], everybody, hidden.pk) == {member: "hidden/secret"}


def test_samples_pair_answers_to_the_same_prompt():
    run, rows = make_sampled_run(is_demonstration=True)
    first = rows[0]
    assert len(queries.samples(run)) == 3
    assert queries.samples(run)[0] == queries.Sample(
        prompt=first["prompt"][-1]["content"],
        before=first["responses"][-1]["content"],
        after=first["responses"][0]["content"],
        reward_before=0.5,
        reward_after=0.5,
    )


def test_samples_leave_out_a_line_that_is_still_being_written():
    run, _ = make_sampled_run(is_demonstration=True)
    with (run.run_dir / "samples_after.jsonl").open("a") as file:
        file.write('{"prompt": [{"role"')
    assert len(queries.samples(run)) == 3


def add_metrics(run, *lines: dict) -> None:
    start = run.metrics.count()
    Metric.objects.bulk_create(
        [Metric(run=run, line=start + number, values=values) for number, values in enumerate(lines)]
    )


def test_metric_series_gives_what_is_new():
    run = make_run()
    assert queries.metric_series(run, after=0, first=None) == {
        "first": None,
        "start": 0,
        "rows": [],
        "is_more": False,
        "is_active": True,
    }
    add_metrics(run, {"loss": 3}, {"loss": 2})
    told = queries.metric_series(run, after=0, first=None)
    assert (told["start"], told["rows"]) == (0, [{"loss": 3}, {"loss": 2}])
    add_metrics(run, {"loss": 1})
    told = queries.metric_series(run, after=2, first=told["first"])
    assert (told["start"], told["rows"]) == (2, [{"loss": 1}])


def test_metric_series_begins_anew_after_lines_were_taken_back():
    run = make_run()
    add_metrics(run, {"loss": 3}, {"loss": 2})
    first = queries.metric_series(run, after=0, first=None)["first"]
    run.metrics.all().delete()
    add_metrics(run, {"loss": 3}, {"loss": 2.5}, {"loss": 2})
    told = queries.metric_series(run, after=2, first=first)
    assert (told["start"], told["rows"]) == (0, [{"loss": 3}, {"loss": 2.5}, {"loss": 2}])


def test_progress_tells_the_newest_figures():
    run = make_run()
    add_metrics(run, {"loss": 3.0}, {"accuracy": 0.5}, {"loss": 2.0}, {"loss": None})
    run.progress, run.phase = 0.419, "train"
    assert queries.progress(run) == queries.Progress(
        percent=41, phase="train", latest=[queries.Line("Loss", "2"), queries.Line("Accuracy", "0.5")]
    )


def test_newest_metrics_are_a_table_of_the_curves():
    run = make_run()
    add_metrics(run, {"phase": "train", "step": 1, "loss": 0.123456}, {"phase": "validation", "step": 1, "accuracy": 1})
    assert queries.newest_metrics(run) == [
        {"phase": "validation", "step": 1, "loss": "", "accuracy": "1", "reward": ""},
        {"phase": "train", "step": 1, "loss": "0.1235", "accuracy": "", "reward": ""},
    ]
