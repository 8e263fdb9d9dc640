import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BigBirdConfig

from tests.training.alignment.material import save_backbone, write_length_world, write_rankings
from tests.training.alignment.processes import run_by_two
from training.alignment.__main__ import EXIT_WAITING, OUT_OF_MEMORY, PROGRAMS, in_words, run
from training.alignment.config import (
    CONFIGS,
    EvaluateConfig,
    LearningCurveConfig,
    RewardModelConfig,
    SampleConfig,
    SftConfig,
)
from training.alignment.reward_net import load_backbone
from training.alignment.run_dir import RunDir, StopFlag, Waiting

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
TRAINER = [sys.executable, "-m", "training.alignment"]
TWO_PROCESSES = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
    *("-m", "training.alignment"),
]


@pytest.fixture
def prepare(tmp_path, llama_folder, rankings_path):
    """Makes the run directory of a short training."""

    def prepare(name: str = "run", **values: object) -> RunDir:
        config = RewardModelConfig(
            **{
                "preferences": str(rankings_path),
                "backbone": str(llama_folder),
                "learning_rate": 3e-3,
                "num_epochs": 1.0,
                "save_minutes": 60.0,
                **values,
            }
        )
        return RunDir.create(tmp_path / name, config)

    return prepare


@pytest.fixture
def start():
    """Starts trainers, whose log is in their run directories; kills what is left of them."""
    started = []

    def start(run_dir: RunDir, command: list[str] = TRAINER) -> subprocess.Popen:
        with (run_dir.path / "log.txt").open("w") as log:
            trainer = subprocess.Popen([*command, str(run_dir.path)], cwd=ROOT, env=ENVIRONMENT, stderr=log)
        started.append(trainer)
        return trainer

    yield start
    for trainer in started:
        trainer.kill()
        trainer.wait()


def output_of(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def wait_for_step(run_dir: RunDir, step: int) -> None:
    deadline = time.monotonic() + 60
    while not any(line["step"] >= step for line in run_dir.read_metrics()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def curve(run_dir: RunDir) -> list[dict]:
    return [{key: line[key] for key in line if key != "time"} for line in run_dir.read_metrics()]


def files(run_dir: RunDir) -> list[str]:
    return sorted(path.name for path in run_dir.path.iterdir())


def test_a_run_leaves_its_result_and_nothing_half_done(prepare):
    run_dir = prepare()

    assert run(run_dir, StopFlag()) == 0

    assert files(run_dir) == ["metrics.jsonl", "model", "report.json", "result.json", "run.json", "versions.json"]
    assert run_dir.read_result()["num_steps"] == 6


def test_a_run_that_is_done_stays_as_it_is(prepare):
    run_dir = prepare()
    run_dir.write_result({"accuracy": 0.5})

    assert run(run_dir, StopFlag()) == 0

    assert files(run_dir) == ["result.json", "run.json"]


def test_a_failure_is_told_in_words(tmp_path, llama_folder, capsys):
    config = EvaluateConfig(preferences=str(tmp_path / "nowhere.jsonl"), reward_model=str(llama_folder))
    run_dir = RunDir.create(tmp_path / "run", config)

    assert run(run_dir, StopFlag()) == 1

    message = f"preferences: {tmp_path}/nowhere.jsonl: No such file or directory"
    assert run_dir.read_error() == {"type": "ConfigError", "message": message}
    assert capsys.readouterr().err == f"ConfigError: {message}\n"


def test_a_second_attempt_forgets_the_first_ones_error(prepare):
    run_dir = prepare(aspect="style")
    assert run(run_dir, StopFlag()) == 1
    assert run_dir.read_error()["type"] == "ConfigError"

    run_dir = prepare(num_epochs=0.1)

    assert run(run_dir, StopFlag()) == 0
    assert run_dir.read_error() is None


@pytest.mark.parametrize("written", ['{"kind": "dance", "config": {}}', '{"kind": '])
def test_a_run_that_is_told_nonsense_says_so(tmp_path, written):
    (tmp_path / "run.json").write_text(written)

    assert run(RunDir(tmp_path), StopFlag()) == 1

    assert RunDir(tmp_path).read_error()["type"] == "ConfigError"


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_each_kind_has_its_program(kind):
    module, function = PROGRAMS[kind]

    program = getattr(importlib.import_module(f"training.alignment.{module}"), function)

    assert list(inspect.signature(program).parameters) == ["config", "run_dir", "stop"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RewardModelConfig(), "preferences.jsonl"),
        (EvaluateConfig(), "preferences.jsonl"),
        (SftConfig(), "examples: neither examples nor preferences are given"),
    ],
)
def test_what_a_program_needs_is_told_by_its_error(tmp_path, config, message):
    run_dir = RunDir.create(tmp_path, config)

    assert run(run_dir, StopFlag()) == 1
    assert message in run_dir.read_error()["message"]


def test_a_run_that_waits_for_others_names_them_and_is_not_done(tmp_path, monkeypatch):
    shard = SampleConfig(prompts="prompts.jsonl", policy="a/b")

    def wait(*_: object) -> None:
        raise Waiting([shard])

    monkeypatch.setitem(sys.modules, "training.alignment.sampling", SimpleNamespace(run_sampling=wait))
    run_dir = RunDir.create(tmp_path, SampleConfig())

    assert run(run_dir, StopFlag()) == EXIT_WAITING
    assert (run_dir.read_shards(), run_dir.read_result(), run_dir.read_error()) == ([shard], None, None)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_lack_of_memory_is_told_as_such(error):
    told = in_words(error)

    assert (type(told).__name__, str(told)) == ("MemoryError", OUT_OF_MEMORY)


def test_other_errors_are_told_as_they_are():
    error = RuntimeError("shapes differ")

    assert in_words(error) is error


def test_the_command_line_wants_a_run_directory(tmp_path):
    for arguments in ([], [str(tmp_path), "more"]):
        told = output_of(*TRAINER, *arguments)
        assert (told.returncode, told.stderr) == (1, "usage: python -m training.alignment RUN_DIR\n")
    told = output_of(*TRAINER, str(tmp_path))
    assert (told.returncode, told.stderr) == (1, f"FileNotFoundError: there is no {tmp_path}/run.json\n")


def test_the_trainer_loads_no_django_and_says_nothing(prepare):
    code = (
        "import sys; from training.alignment.__main__ import main; code = main();"
        "print(code, {'django', 'celery', 'annotate', 'trl', 'datasets'} & set(sys.modules))"
    )

    done = output_of(sys.executable, "-c", code, str(prepare(num_epochs=0.1).path))

    assert (done.stdout, done.stderr) == ("0 set()\n", "")


def test_a_trainer_that_is_asked_to_stop_or_killed_goes_on_where_it_was(prepare, start):
    values = {"num_epochs": 20.0, "eval_steps": 25}
    whole = prepare("whole", **values)
    undisturbed = start(whole)
    run_dir = prepare(**values, save_minutes=0.01)

    first = start(run_dir)
    wait_for_step(run_dir, 10)
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 75
    assert (run_dir.path / "log.txt").read_text().startswith("stopped after step ")
    assert run_dir.read_result() is None
    assert run_dir.read_error() is None

    second = start(run_dir)
    wait_for_step(run_dir, run_dir.latest_checkpoint()[1]["step"] + 20)
    second.kill()
    assert second.wait() == -signal.SIGKILL
    assert run_dir.read_result() is None

    assert (start(run_dir).wait(), undisturbed.wait()) == (0, 0)
    assert run_dir.read_result() == whole.read_result()
    assert curve(run_dir) == curve(whole)
    assert (run_dir.model / "model.safetensors").read_bytes() == (whole.model / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_two_processes_learn_what_one_does(prepare, start, tmp_path):
    preferences = write_rankings(tmp_path / "rankings", num_train=21, num_validation=7, num_test=9)
    values = {"preferences": str(preferences), "num_epochs": 3.0, "batch_size": 5, "max_tokens": 300}  # the last has 1
    one, two = prepare("one", **values), prepare("two", **values, num_processes=2)

    assert run(one, StopFlag()) == 0
    assert start(two, TWO_PROCESSES).wait() == 0

    for alone, together in zip(curve(one), curve(two), strict=True):
        assert together == pytest.approx(alone, abs=1e-4)
    assert two.read_result() == {**one.read_result(), **measured(two)}
    assert measured(two) == pytest.approx(measured(one), abs=1e-4)
    weights, others = (load_file(run_dir.model / "model.safetensors") for run_dir in (one, two))
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], atol=1e-3, rtol=0)


@pytest.mark.slow
def test_two_processes_train_a_model_with_weights_that_no_reward_is_read_from(prepare, tmp_path, gpt2_folder):
    """BigBird has a pooler, which its classifier leaves alone."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BigBirdConfig(attention_type="original_full", **sizes)
    backbone = save_backbone(tmp_path / "backbone", config, gpt2_folder)
    values = {"backbone": str(backbone), "num_epochs": 0.5, "batch_size": 8}
    one, two = prepare("one", **values), prepare("two", **values, num_processes=2)

    assert run(one, StopFlag()) == 0
    assert run_by_two(two) == 0

    for alone, together in zip(curve(one), curve(two), strict=True):
        assert together == pytest.approx(alone, abs=1e-4)


@pytest.mark.slow
def test_processes_that_share_the_weights_learn_what_one_does_and_go_on_where_they_stopped(prepare, tmp_path):
    """Interrupted after some steps, and taken up again: what each process held a part of comes back."""
    preferences = write_rankings(tmp_path / "rankings", num_train=21, num_validation=7, num_test=9)
    values = {"preferences": str(preferences), "num_epochs": 6.0, "batch_size": 5, "max_tokens": 300}
    one, sharded = prepare("one", **values), prepare("sharded", **values, num_processes=2, sharding="fsdp")

    assert run(one, StopFlag()) == 0
    assert run_by_two(sharded, stop_at=3) != 0
    assert sharded.read_result() is None
    assert sharded.checkpoints()
    assert run_by_two(sharded) == 0

    for alone, together in zip(curve(one), curve(sharded), strict=True):
        assert together == pytest.approx(alone, abs=1e-3)
    assert measured(sharded) == pytest.approx(measured(one), abs=1e-2)
    weights, others = (load_file(run_dir.model / "model.safetensors") for run_dir in (one, sharded))
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], atol=2e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_processes_agree_on_what_length_counts_for(prepare, tmp_path, sharding):
    preferences = write_length_world(tmp_path / "rankings", 26, overall=3.0)
    values = {"preferences": str(preferences), "batch_size": 5, "max_tokens": 300, "length": "control"}
    one, two = prepare("one", **values), prepare("two", **values, num_processes=2, sharding=sharding)

    assert run(one, StopFlag()) == 0
    assert run_by_two(two) == 0

    assert flat(curve(two)) == pytest.approx(flat(curve(one)), abs=1e-3)
    alone, together = (run_dir.read_result()["learned"]["nats_per_doubling_of_length"] for run_dir in (one, two))
    assert together == pytest.approx(alone, abs=1e-3)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path, reward_model_folder, llama_folder, long_rankings_path):
    """Two reward models, and more rankings than are scored at a time."""
    run_dirs = []
    for num_processes in (1, 2):
        config = EvaluateConfig(
            preferences=str(long_rankings_path),
            reward_model=str(reward_model_folder),
            other_reward_model=str(untrained(tmp_path / "untrained", llama_folder)),
            num_processes=num_processes,
        )
        run_dirs.append(RunDir.create(tmp_path / str(num_processes), config))
    one, two = run_dirs
    assert run(one, StopFlag()) == 0
    assert run_by_two(two) == 0

    assert curve(two) == curve(one)
    for name in ("scores.jsonl", "other_scores.jsonl"):
        alone, together = (rows_of(run_dir, name) for run_dir in run_dirs)
        assert [row["id"] for row in together] == [row["id"] for row in alone]
        assert [row["num_truncated"] for row in together] == [row["num_truncated"] for row in alone]
        for own, other in zip(alone, together, strict=True):
            assert other["scores"] == pytest.approx(own["scores"], abs=1e-4)
    alone, together = (json.loads((run_dir.path / "report.json").read_text()) for run_dir in run_dirs)
    assert flat(together) == pytest.approx(flat(alone), abs=1e-3)
    assert flat(two.read_result()) == pytest.approx(flat(one.read_result()), abs=1e-3)


@pytest.mark.slow
def test_two_processes_draw_the_curve_that_one_does(tmp_path, llama_folder):
    preferences = write_rankings(tmp_path / "rankings", num_train=21, num_validation=7, num_test=9)
    run_dirs = []
    for num_processes in (1, 2):
        config = LearningCurveConfig(
            preferences=str(preferences),
            backbone=str(llama_folder),
            num_points=2,
            learning_rate=3e-3,
            batch_size=5,
            num_processes=num_processes,
        )
        run_dirs.append(RunDir.create(tmp_path / str(num_processes), config))
    one, two = run_dirs
    assert run(one, StopFlag()) == 0
    assert run_by_two(two) == 0

    assert flat(curve(two)) == pytest.approx(flat(curve(one)), abs=1e-3)
    assert flat(two.read_result()) == pytest.approx(flat(one.read_result()), abs=1e-3)
    alone, together = (json.loads((run_dir.path / "curve.json").read_text()) for run_dir in run_dirs)
    assert len(alone["points"]) == 2
    assert flat(together) == pytest.approx(flat(alone), abs=1e-3)


def untrained(folder: Path, backbone: Path) -> Path:
    """A reward model whose head is as it was drawn."""
    torch.manual_seed(0)
    for part in load_backbone(str(backbone)):
        part.save_pretrained(folder)
    return folder


def rows_of(run_dir: RunDir, name: str) -> list[dict]:
    return [json.loads(line) for line in (run_dir.path / name).read_text().splitlines()]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """What is in dictionaries in lists in dictionaries, by its path: pytest compares no nested ones approximately."""
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: one for key, part in parts for path, one in flat(part, f"{name}.{key}").items()}
    return {name: value}


def measured(run_dir: RunDir) -> dict:
    return {name: run_dir.read_result()[name] for name in ("loss", "validation_loss", "temperature")}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to its parent")
def test_a_supervised_trainer_dies_with_its_parent(prepare):
    run_dir = prepare(num_epochs=10_000.0)
    code = "import subprocess, sys, time; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(600)"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, *TRAINER, str(run_dir.path)],
        cwd=ROOT,
        env={**ENVIRONMENT, "PLUMBLINE_SUPERVISED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent.stdout:
        pid = int(parent.stdout.readline())
    wait_for_step(run_dir, 1)

    parent.kill()
    parent.wait()

    deadline = time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
