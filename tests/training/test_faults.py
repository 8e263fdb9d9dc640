"""Workers, trainers and the broker are killed on purpose; runs end as they should, once, and leave no process."""

import contextlib
import json
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.scratch import Home, home

pytestmark = pytest.mark.slow


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Home]:
    with home(tmp_path) as made:
        yield made


def test_concurrent_claims_have_one_winner_each(scratch: Home):
    scratch.python("[make_run() for _ in range(20)]")
    claims = "print([run for run in range(1, 21) if services.claim_run(run_id=run, worker='host:1')])"
    claimed = [scratch._output(worker) for worker in [scratch.script(claims) for _ in range(4)]]
    runs = sorted(run for runs in claimed for run in json.loads(runs))
    assert runs == list(range(1, 21))
    assert scratch.rows("SELECT DISTINCT status, attempts, token FROM training_trainingrun") == [("running", 1, 1)]


def test_concurrent_starts_with_one_key_make_one_run(scratch: Home):
    scratch.python("make_preference_set(name='set')")
    start = """
        import uuid
        from training.models import PreferenceSet
        print(make_run(key=uuid.UUID(int=7), preference_set=PreferenceSet.objects.get()).pk)
    """.replace("\n        ", "\n")
    printed = [scratch._output(process) for process in [scratch.script(start) for _ in range(4)]]
    assert printed == ["1"] * 4


def test_copies_of_a_message_start_a_run_once(scratch: Home):
    scratch.redis()
    run = scratch.make_run()
    scratch.python(f"[tasks.wake({run}) for _ in range(50)]; tasks.wake(10**6)")
    scratch.worker()
    scratch.wait_until(lambda: scratch.state(run) == ("succeeded", 1, 1))
    scratch.wait_until(lambda: scratch.python("print(tasks.num_waiting())") == "0")
    assert scratch.statuses(run) == ["queued", "running", "succeeded"]


def test_lost_message_is_sent_again_by_the_sweeper(scratch: Home):
    run = scratch.make_run()  # no broker is there to take the message
    scratch.redis()
    scratch.worker()
    scratch.python("services.sweep()")
    scratch.wait_until(lambda: scratch.state(run) == ("succeeded", 1, 1))


def test_sweeper_does_not_fill_a_queue_that_nobody_reads(scratch: Home):
    scratch.redis()
    scratch.python("[make_run() for _ in range(30)]")
    assert scratch.python("[services.sweep() for _ in range(20)]; print(tasks.num_waiting())") == "120"


def test_killed_worker_takes_its_trainer_along_and_another_resumes_the_run(scratch: Home):
    scratch.redis()
    worker = scratch.worker()
    run = scratch.make_run("steps", num_steps=50)
    scratch.wait_until(lambda: scratch.num_metrics(run) >= 5)
    worker.send_signal(signal.SIGKILL)
    scratch.wait_until(lambda: not scratch.trainers(run), seconds=5)
    assert scratch.state(run) == ("running", 1, 1)
    scratch.worker()
    scratch.wait_until(lambda: scratch.python("services.sweep()") == "" and scratch.state(run)[0] == "succeeded")
    assert scratch.state(run) == ("succeeded", 2, 2)
    assert scratch.statuses(run) == ["queued", "running", "queued", "running", "succeeded"]
    assert scratch.result(run) == {"num_steps": 50, "num_processes": 2}
    assert scratch.num_metrics(run) == 50


def test_worker_told_to_stop_hands_its_run_back_uncounted(scratch: Home):
    scratch.redis()
    worker = scratch.worker()
    run = scratch.make_run("steps", num_steps=30)
    scratch.wait_until(lambda: scratch.num_metrics(run) >= 5)
    worker.send_signal(signal.SIGTERM)
    worker.wait(8)
    assert scratch.state(run) == ("queued", 0, 1)
    assert scratch.trainers(run) == []
    scratch.worker()
    scratch.wait_until(lambda: scratch.state(run) == ("succeeded", 1, 2))
    assert scratch.result(run) == {"num_steps": 30, "num_processes": 2}


def test_frozen_worker_comes_back_and_changes_nothing(scratch: Home):
    scratch.redis()
    worker = scratch.worker()
    run = scratch.make_run("steps", num_steps=40)
    scratch.wait_until(lambda: scratch.num_metrics(run) >= 5)
    worker.send_signal(signal.SIGSTOP)
    (zombie,) = scratch.trainers(run)
    other = scratch.worker()
    scratch.wait_until(lambda: scratch.python("services.sweep()") == "" and scratch.state(run)[2] == 2)
    scratch.wait_until(lambda: not zombie.is_running() or zombie.status() == "zombie")
    worker.send_signal(signal.SIGCONT)
    scratch.wait_until(lambda: scratch.state(run)[0] == "succeeded")
    assert scratch.state(run) == ("succeeded", 2, 2)
    assert scratch.statuses(run) == ["queued", "running", "queued", "running", "succeeded"]
    assert (worker.poll(), other.poll()) == (None, None)


def test_killed_broker_loses_no_run(scratch: Home):
    server = scratch.redis()
    runs = json.loads(scratch.python("print([make_run().pk for _ in range(2)])"))
    server.send_signal(signal.SIGKILL)  # nothing was saved: both messages are gone
    server.wait()
    (scratch.path / "redis" / "redis.sock").unlink()
    scratch.redis()
    scratch.worker()
    scratch.python("services.sweep()")
    scratch.wait_until(lambda: {scratch.state(run) for run in runs} == {("succeeded", 1, 1)})


def test_database_that_is_away_for_a_moment_stops_no_run(tmp_path: Path):
    with home(tmp_path, LOCK_SECONDS="0.1", STALE_SECONDS="60") as scratch:
        run = scratch.make_run("steps", num_steps=20)
        worker = scratch.script(f"services.execute_run(run_id={run})")
        scratch.wait_until(lambda: scratch.num_metrics(run) >= 1)
        with contextlib.closing(sqlite3.connect(tmp_path / "db.sqlite3", timeout=20, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            scratch.wait_until((tmp_path / "runs" / str(run) / "result.json").exists)
            scratch.wait_until(lambda: "the database is away" in scratch.log)
            assert scratch.num_metrics(run) < 20
        worker.wait(30)
        assert (scratch.state(run), scratch.num_metrics(run)) == (("succeeded", 1, 1), 20)


def test_trainer_dies_with_a_parent_that_dies_at_once(scratch: Home):
    run = scratch.make_run("wait")
    start = f"""
        import os, signal
        launch.Trainer(launch.prepare(services.claim_run(run_id={run}, worker="host:1")))
        os.kill(os.getpid(), signal.SIGKILL)
    """.replace("\n        ", "\n")
    scratch.script(start).wait(30)
    scratch.wait_until(lambda: not scratch.trainers(run), seconds=5)


PREPARE_REAL_RUN = """
    from pathlib import Path
    from training.alignment.tiny_lm import build_tiny_lm
    project = make_judged_project(num_prompts=30)
    services.freeze(project=project, name="first", fractions=(0.6, 0.2, 0.2))
    texts = [f"Question {number}? Answer {number}." for number in range(100)]
    build_tiny_lm(texts, Path("HOME/backbone"), vocabulary_size=300, hidden_size=32, num_layers=2, num_heads=2)
""".replace("\n    ", "\n")
REAL_RUN = ["preference_set=first", "num_epochs=40", "batch_size=4", "eval_steps=60", "save_minutes=0"]


def test_real_trainer_killed_and_then_its_worker_resumes_to_the_same_result(tmp_path: Path):
    with home(tmp_path, TRAINER="training.alignment") as scratch:
        scratch.python(PREPARE_REAL_RUN.replace("HOME", str(tmp_path)))
        values = [*REAL_RUN, f"backbone={tmp_path / 'backbone'}"]
        undisturbed = json.loads(scratch.manage("launch", "reward_model", "rm1", *values, "--wait").splitlines()[-1])
        assert (undisturbed["run"], undisturbed["status"]) == (1, "succeeded")

        scratch.redis()
        worker = scratch.worker()
        scratch.manage("launch", "reward_model", "rm2", *values)
        scratch.wait_until(lambda: _num_steps(scratch) >= 5)
        killed_at = _num_steps(scratch)
        scratch.trainers(2)[0].kill()
        scratch.wait_until(lambda: scratch.state(2) == ("running", 2, 2) and _num_steps(scratch) > killed_at)
        worker.send_signal(signal.SIGKILL)
        scratch.wait_until(lambda: not scratch.trainers(2), seconds=5)
        scratch.worker()
        scratch.wait_until(lambda: scratch.python("services.sweep()") == "" and scratch.state(2)[0] == "succeeded", 90)

        assert scratch.state(2) == ("succeeded", 3, 3)
        assert scratch.statuses(2) == ["queued", "running", "queued", "running", "queued", "running", "succeeded"]
        assert scratch.trainers(2) == []
        told = {name: value for name, value in undisturbed.items() if name not in {"run", "status", "run_dir"}}
        assert scratch.result(2) == told
        steps = [step for phase, step in _steps(scratch) if phase == "train"]
        assert steps == list(range(1, undisturbed["num_steps"] + 1))
        assert (tmp_path / "runs" / "2" / "model" / "model.safetensors").exists()


def _steps(scratch: Home) -> list[tuple[str, int]]:
    rows = scratch.rows('SELECT "values" FROM training_metric WHERE run_id = 2 ORDER BY line')
    return [(values["phase"], values["step"]) for values in (json.loads(row) for (row,) in rows)]


def _num_steps(scratch: Home) -> int:
    return max((step for _, step in _steps(scratch)), default=0)
