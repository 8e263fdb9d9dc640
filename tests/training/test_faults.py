"""Workers, trainers and the broker are killed on purpose; runs end as they should, once, and leave no process."""

import json
import signal
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


def test_trainer_dies_with_a_parent_that_dies_at_once(scratch: Home):
    run = scratch.make_run("wait")
    start = f"""
        import os, signal
        launch.Trainer(launch.prepare(services.claim_run(run_id={run}, worker="host:1")))
        os.kill(os.getpid(), signal.SIGKILL)
    """.replace("\n        ", "\n")
    scratch.script(start).wait(30)
    scratch.wait_until(lambda: not scratch.trainers(run), seconds=5)
