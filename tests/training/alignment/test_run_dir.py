import json
import os
import re

import pytest

from training.alignment.config import ConfigError, EvaluateConfig, SampleConfig
from training.alignment.run_dir import (
    PACKAGES,
    RunDir,
    StopFlag,
    append_lines,
    is_sealed,
    replace_folder,
    seal,
    whole_lines,
)


@pytest.fixture
def run_dir(tmp_path) -> RunDir:
    return RunDir.create(tmp_path / "run", EvaluateConfig(reward_model="a/b", seed=3))


def save(run_dir: RunDir, step: int, content: str = "weights", **state: object) -> None:
    run_dir.save_checkpoint(step, lambda folder: (folder / "weights").write_text(content), state)


def test_a_run_directory_keeps_what_the_run_is_told(run_dir):
    assert RunDir(run_dir.path).config() == EvaluateConfig(reward_model="a/b", seed=3)
    assert json.loads((run_dir.path / "run.json").read_text())["kind"] == "evaluate"


def test_a_configuration_altered_on_disk_is_checked_again(run_dir):
    (run_dir.path / "run.json").write_text('{"kind": "evaluate", "config": {"seed": "many"}}')

    with pytest.raises(ConfigError, match="seed: 'many' is not a whole number"):
        run_dir.config()


@pytest.mark.parametrize("told", ['{"kind": "evaluate"', "[]", '{"kind": "evaluate"}', '{"kind": 3, "config": {}}'])
def test_a_damaged_configuration_is_told_as_such(run_dir, told):
    (run_dir.path / "run.json").write_text(told)

    with pytest.raises(ConfigError, match=r"^run.json: (must hold|Expecting)"):
        run_dir.config()


def test_a_name_is_a_folder_where_there_is_one_and_else_a_hugging_face_id(run_dir, tmp_path):
    (run_dir.path / "backbone").mkdir()

    assert run_dir.locate("backbone") == str(run_dir.path / "backbone")
    assert run_dir.locate(str(tmp_path)) == str(tmp_path)
    assert run_dir.locate("org/model") == "org/model"
    assert run_dir.locate("") == ""
    assert run_dir.resolve("preferences.jsonl") == run_dir.path / "preferences.jsonl"


def test_metrics_are_read_as_they_are_logged(run_dir):
    run_dir.log(step=1, phase="train", progress=0.25, loss=0.7)
    run_dir.log(step=2, phase="train", progress=0.5, loss=0.6)

    lines = list(run_dir.read_metrics(skip=1))

    assert [{key: line[key] for key in line if key != "time"} for line in lines] == [
        {"step": 2, "phase": "train", "progress": 0.5, "loss": 0.6}
    ]


def test_a_half_written_metric_is_left_for_later(run_dir):
    assert list(run_dir.read_metrics()) == []
    run_dir.metrics.write_text('{"step": 1}\n{"step": 2')

    assert list(run_dir.read_metrics()) == [{"step": 1}]


def test_a_resumed_phase_forgets_what_it_is_about_to_write_again(run_dir):
    for step, phase in [(1, "train"), (1, "validation"), (2, "train"), (2, "validation"), (3, "train")]:
        run_dir.log(step=step, phase=phase, progress=0)

    run_dir.truncate_metrics(1, "train", after=0.5)
    assert len(list(run_dir.read_metrics())) == 5  # those are of an earlier part
    run_dir.truncate_metrics(1, "train")

    kept = [(line["step"], line["phase"]) for line in run_dir.read_metrics()]
    assert kept == [(1, "train"), (1, "validation"), (2, "validation")]


def test_results_errors_and_versions(run_dir):
    assert (run_dir.read_result(), run_dir.read_error()) == (None, None)

    run_dir.write_result({"accuracy": 0.5})
    run_dir.write_error(ConfigError("seed: no"))
    run_dir.write_versions()

    assert run_dir.read_result() == {"accuracy": 0.5}
    assert run_dir.read_error() == {"type": "ConfigError", "message": "seed: no"}
    versions = json.loads((run_dir.path / "versions.json").read_text())
    assert set(versions) == {"python", *PACKAGES}
    assert all(re.match(r"\d+\.\d+", version) for version in versions.values())


def test_shards_are_read_as_they_were_written(run_dir):
    shards = [SampleConfig(prompts="prompts.jsonl", first=3 * number, num_prompts=3) for number in range(2)]

    assert run_dir.read_shards() == []
    run_dir.write_shards(shards)
    assert run_dir.read_shards() == shards


def test_the_newest_checkpoint_comes_first_and_old_ones_go(run_dir):
    assert run_dir.latest_checkpoint() is None

    for step in (2, 999_999, 1_000_000):
        save(run_dir, step, best=step / 2)

    folder, state = run_dir.latest_checkpoint()
    assert (folder.name, state) == ("step-1000000", {"step": 1_000_000, "best": 500_000.0})
    assert [path.name for path in run_dir.checkpoints()] == ["step-1000000", "step-999999"]
    run_dir.remove_checkpoints()
    assert run_dir.checkpoints() == []


@pytest.mark.parametrize("harm", ["cut", "altered", "missing", "unsealed"])
def test_a_checkpoint_that_is_not_whole_does_not_count(run_dir, harm):
    save(run_dir, 1)
    save(run_dir, 2)
    newest = run_dir.path / "checkpoints" / "step-000002"
    match harm:
        case "cut":
            (newest / "weights").write_text("weigh")
        case "altered":
            (newest / "weights").write_text("weighty")
        case "missing":
            (newest / "weights").unlink()
        case "unsealed":
            (newest / "COMPLETE.json").unlink()

    assert run_dir.latest_checkpoint()[1] == {"step": 1}


def test_a_checkpoint_cut_short_while_written_leaves_the_old_one(run_dir):
    save(run_dir, 1)

    def fail(folder):
        (folder / "weights").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_dir.save_checkpoint(2, fail, {})

    assert run_dir.latest_checkpoint()[1] == {"step": 1}
    save(run_dir, 2)
    assert run_dir.latest_checkpoint()[1] == {"step": 2}


def test_a_checkpoint_of_the_same_step_is_replaced(run_dir):
    save(run_dir, 1, "old")
    save(run_dir, 1, "new")

    assert (run_dir.latest_checkpoint()[0] / "weights").read_text() == "new"


def test_a_seal_covers_folders_within(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_text("1")
    seal(tmp_path)
    assert is_sealed(tmp_path)

    (tmp_path / "deep" / "file").write_text("2")

    assert not is_sealed(tmp_path)


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "model"
    replace_folder(folder, lambda path: (path / "old").write_text("1"))

    replace_folder(folder, lambda path: (path / "new").write_text("2"))

    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_a_stop_flag_serves_as_a_signal_handler():
    stop = StopFlag()
    assert stop() is False

    stop.set(15, None)

    assert stop() is True


def test_lines_are_added_after_those_that_are_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_lines(path, [1, {"b": 2}])
    with path.open("a") as file:
        file.write('{"half')  # as a kill may leave it
    assert whole_lines(path, 1) == (2, 11)

    os.truncate(path, 11)
    append_lines(path, [3])

    assert path.read_text() == '1\n{"b": 2}\n3\n'
