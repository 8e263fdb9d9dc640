import json
import os
import sys
import time

import pytest

from training import launch
from training.alignment.config import RewardModelConfig
from training.alignment.run_dir import RunDir


def make_run_dir(path, **config) -> RunDir:
    return RunDir.create(path / "run", RewardModelConfig(backbone="hub/backbone", **config))


def test_command_starts_the_trainer_by_itself(tmp_path):
    run_dir = make_run_dir(tmp_path)
    trainer = ["-m", "tests.training.little_trainer", str(run_dir.path)]
    assert launch.command(run_dir) == [sys.executable, *trainer]


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="with GPUs it is accelerate that launches")
def test_command_starts_several_processes_through_a_launcher(tmp_path):
    run_dir = make_run_dir(tmp_path, num_processes=2)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    trainer = ["-m", "tests.training.little_trainer", str(run_dir.path)]
    assert launch.command(run_dir) == [sys.executable, *launcher, *trainer]


@pytest.mark.slow
@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="with GPUs it is accelerate that launches")
def test_several_processes_work_and_die_together(tmp_path):
    run_dir = make_run_dir(tmp_path, num_processes=2, aspect="wait")
    trainer = launch.Trainer(run_dir)
    deadline = time.monotonic() + 60
    while len(list(run_dir.read_metrics())) < 2:
        assert time.monotonic() < deadline, (run_dir.path / "log.txt").read_text()
        time.sleep(0.1)
    family = launch.psutil.Process(trainer.pid).children(recursive=True)
    trainer.kill()
    assert len(family) == 2
    _, alive = launch.psutil.wait_procs(family, timeout=5)
    assert alive == []


def test_environment_passes_only_what_is_listed(monkeypatch, tmp_path, settings):
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name in ("PATH", "CUDA_VISIBLE_DEVICES", "LC_ALL", "SECRET_KEY", "DATABASE_URL", "HF_TOKEN", "PLUMBLINE_HOME"):
        monkeypatch.setenv(name, "x")
    assert launch.environment(make_run_dir(tmp_path)) == {
        "PATH": "x",
        "CUDA_VISIBLE_DEVICES": "x",
        "LC_ALL": "x",
        "PLUMBLINE_SCORE_CACHE": str(settings.SCORE_CACHE),
        "PLUMBLINE_SUPERVISED": "1",
        "PYTHONUNBUFFERED": "1",
    }


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "The training process ended with exit code 3."),
        (-11, "The training process was killed by SIGSEGV."),
        (-9, "The training process was killed by SIGKILL. Often that means that memory ran out."),
        (-99, "The training process was killed by signal 99."),
    ],
)
def test_describe_exit_names_the_signal(code, words):
    assert launch.describe_exit(code) == words


def test_follower_reads_whole_lines_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = launch.MetricsFollower(path)
    assert follower.read() is None
    path.write_text('{"step": 1}\n{"st')
    assert follower.read() == launch.News(0, [{"step": 1}])
    assert follower.read() is None
    with path.open("a") as file:
        file.write('ep": 2}\nno json\n[1]\n{"loss": NaN, "more": [Infinity, {"x": -Infinity}]}\n')
    assert follower.read() == launch.News(1, [{"step": 2}, {}, {}, {"loss": None, "more": [None, {"x": None}]}])
    follower.close()


def test_follower_begins_anew_when_the_file_is_replaced(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    follower = launch.MetricsFollower(path)
    follower.read()
    (tmp_path / "other").write_text('{"step": 1}\n{"step": 3}\n{"step": 4}\n')
    (tmp_path / "other").replace(path)
    assert follower.read() == launch.News(0, [{"step": 1}, {"step": 3}, {"step": 4}])
    path.write_text("")
    assert follower.read() == launch.News(0, [])
    follower.close()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("a\x00b\x08c\x9bd", "abcd"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("abc\u202edef\u200bghi\U000e0041", "abcdefghi"),
        ("\x1b", ""),
        ("größer 🍳 é", "größer 🍳 é"),
    ],
)
def test_plain_text_leaves_what_can_be_seen(text, plain):
    assert launch.plain_text(text) == plain


def test_log_tail_shows_the_last_state_of_a_progress_bar(tmp_path):
    log = b"one\r\n 10%|#\r 50%|##\r100%|####\ntwo \xff\n\x1b[Kthree\r\n"
    (tmp_path / "log.txt").write_bytes(log)
    assert launch.log_tail(tmp_path, 10) == ["one", "100%|####", "two \ufffd", "three"]
    assert launch.log_tail(tmp_path, 2) == ["two \ufffd", "three"]


def test_log_tail_reads_only_the_end_of_a_long_log(tmp_path):
    (tmp_path / "log.txt").write_text("x" * 10_000_000 + "\nlast\n")
    assert launch.log_tail(tmp_path, 100)[-1] == "last"
    assert [len(line) for line in launch.log_tail(tmp_path, 100)] == [1000, 4]


def test_log_tail_of_a_run_that_has_none(tmp_path):
    assert launch.log_tail(tmp_path, 100) == []


def test_finite_leaves_json_that_every_database_takes():
    value = {"a": float("nan"), 1: [float("inf"), 2.5, "NaN", None, True]}
    assert json.dumps(launch.finite(value), allow_nan=False) == '{"a": null, "1": [null, 2.5, "NaN", null, true]}'
