import dataclasses
import json

import pytest

from tests.training.alignment.material import StopAt, write_rankings
from training.alignment.__main__ import dispatch
from training.alignment.config import ConfigError, LearningCurveConfig
from training.alignment.learning_curve import in_hash_order, learning_curve, part_sizes
from training.alignment.preferences import prompt_key
from training.alignment.run_dir import Interrupted, RunDir, StopFlag


@pytest.fixture
def run_dir(tmp_path, llama_folder) -> RunDir:
    preferences = write_rankings(tmp_path / "preferences.jsonl", num_train=32, num_validation=8, num_test=24)
    config = LearningCurveConfig(
        preferences=str(preferences), backbone=str(llama_folder), num_points=3, num_epochs=1.0, learning_rate=3e-3
    )
    return RunDir.create(tmp_path / "run", config)


def read_curve(run_dir: RunDir) -> dict:
    return json.loads((run_dir.path / "curve.json").read_text())


def metrics(run_dir: RunDir) -> list[dict]:
    return [{name: line[name] for name in line if name != "time"} for line in run_dir.read_metrics()]


@pytest.mark.parametrize(
    ("num_prompts", "num_points", "expected"),
    [(100, 3, [25, 50, 100]), (7, 3, [2, 4, 7]), (2, 5, [1, 2]), (1, 2, [1])],
)
def test_parts_are_halves_of_halves(num_prompts, num_points, expected):
    assert part_sizes(num_prompts, num_points) == expected


def test_the_order_of_prompts_does_not_depend_on_where_they_stand_and_new_ones_go_in_between():
    prompts = [str(number) for number in range(50)]

    ordered = in_hash_order(prompts, 0)

    assert in_hash_order(prompts[::-1], 0) == ordered
    assert in_hash_order(prompts, 1) != ordered
    assert [one for one in in_hash_order([*prompts, "new"], 0) if one != "new"] == ordered


def test_a_curve_has_a_point_for_each_part(run_dir):
    result = dispatch(run_dir.config(), run_dir, StopFlag())

    curve = read_curve(run_dir)
    points = curve["points"]
    assert [(point["num_judgments"], point["num_prompts"], point["seed"]) for point in points] == [
        (8, 4, 0),
        (16, 8, 0),
        (32, 16, 0),
    ]
    for point in points:
        for figure in (point["accuracy"], point["log_loss"]):
            assert figure["interval"][0] <= figure["value"] <= figure["interval"][1]
    assert result == {
        "num_points": 3,
        "num_judgments": 32,
        "num_prompts": 16,
        "accuracy": points[-1]["accuracy"]["value"],
        "interval": points[-1]["accuracy"]["interval"],
        "log_loss": points[-1]["log_loss"]["value"],
        "longer_wins": curve["longer_wins"]["value"],
    }
    assert metrics(run_dir) == [
        {
            "step": number,
            "phase": "point",
            "progress": number / 3,
            "num_judgments": point["num_judgments"],
            "accuracy": point["accuracy"]["value"],
            "log_loss": point["log_loss"]["value"],
        }
        for number, point in enumerate(points, start=1)
    ]
    left = sorted(path.name for path in (run_dir.path / "points" / "000016-0").iterdir())
    assert left == ["metrics.jsonl", "report.json", "result.json", "run.json"]


@pytest.mark.slow
def test_a_stopped_curve_goes_on_without_training_again_what_is_done(run_dir, tmp_path):
    config = dataclasses.replace(run_dir.config(), num_points=2, num_seeds=2)
    whole = RunDir.create(tmp_path / "whole", config)
    learning_curve(config, whole, StopFlag())

    with pytest.raises(Interrupted):
        learning_curve(config, run_dir, StopAt(6))
    done = {path: path.stat().st_mtime_ns for path in run_dir.path.glob("points/*/result.json")}
    assert 0 < len(done) < 4
    learning_curve(config, run_dir, StopFlag())

    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert read_curve(run_dir) == read_curve(whole)
    assert metrics(run_dir) == metrics(whole)
    assert [(point["num_prompts"], point["seed"]) for point in read_curve(run_dir)["points"]] == [
        (8, 0),
        (8, 1),
        (16, 0),
        (16, 1),
    ]


def test_a_part_with_nothing_to_learn_from_is_left_out_and_told(run_dir):
    path = run_dir.path / "one_style.jsonl"
    lines = (run_dir.path.parent / "preferences.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    prompts = {prompt_key(row["prompt"]): row for row in rows if row["split"] == "train"}
    last = prompts[in_hash_order(list(prompts), 0)[-1]]
    path.write_text("\n".join([*lines, json.dumps({**last, "aspect": "style"})]) + "\n")
    config = dataclasses.replace(run_dir.config(), preferences=str(path), aspect="overall, style")

    result = learning_curve(config, run_dir, StopFlag())

    curve = read_curve(run_dir)
    why = "aspect: no training ranking of style puts one response above another"
    assert curve["left_out"] == [{"num_prompts": size, "seed": 0, "why": why} for size in (4, 8)]
    assert [point["num_prompts"] for point in curve["points"]] == [16]
    assert (result["num_points"], result["num_prompts"]) == (1, 16)
    assert metrics(run_dir)[-1]["progress"] == 1
    assert not (run_dir.path / "points" / "000004-0" / "preferences.jsonl").exists()


def test_what_all_prompts_refuse_is_an_error(run_dir):
    with pytest.raises(ConfigError, match=r"^aspect: .*style"):
        learning_curve(dataclasses.replace(run_dir.config(), aspect="overall, style"), run_dir, StopFlag())


def test_a_curve_needs_something_to_train_and_to_test_on(run_dir):
    for values in ({"aspect": "style"}, {"preferences": str(run_dir.path / "run.jsonl")}):
        (run_dir.path / "run.jsonl").write_text("")
        with pytest.raises(
            ConfigError, match=r"^preferences: no decided rankings of aspect .* in train, or none in test$"
        ):
            learning_curve(dataclasses.replace(run_dir.config(), **values), run_dir, StopFlag())
