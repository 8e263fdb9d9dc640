"""Workers and the broker are killed while they share a run's shards; what was done is not done again."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.scratch import Home, home
from training.alignment.run_dir import file_digest

pytestmark = pytest.mark.slow

NUM_SHARDS = 4
ENDED = ("succeeded", "failed", "cancelled")
DIVIDE = f"""
    values = {{"num_shards": {NUM_SHARDS}}}
    print(make_run(kind="rejection_sampling", behaviour="steps", num_steps=15, values=values).pk)
""".replace("\n    ", "\n")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Home]:
    with home(tmp_path) as made:
        yield made


def shards(scratch: Home) -> list[int]:
    rows = scratch.rows("SELECT id FROM training_trainingrun WHERE parent_id IS NOT NULL ORDER BY id")
    return [shard for (shard,) in rows]


def running(scratch: Home) -> dict[str, int]:
    """By worker, the shard that it is at."""
    found = scratch.rows(
        "SELECT worker, id FROM training_trainingrun WHERE parent_id IS NOT NULL AND status = 'running'"
    )
    return {worker.rpartition(":")[2]: shard for worker, shard in found}


def test_killed_worker_costs_the_shard_that_it_was_at(scratch: Home):
    scratch.redis()
    workers = [scratch.worker() for _ in range(2)]
    run = int(scratch.python(DIVIDE))
    scratch.wait_until(lambda: len(running(scratch)) == 2)
    assert scratch.state(run) == ("waiting", 0, 1)
    killed = running(scratch)[str(workers[0].pid)]
    scratch.wait_until(lambda: scratch.num_metrics(killed) >= 3)
    workers[0].send_signal(signal.SIGKILL)
    scratch.wait_until(lambda: not scratch.trainers(killed), seconds=5)
    scratch.wait_until(lambda: scratch.python("services.sweep()") == "" and scratch.state(run)[0] == "succeeded", 60)

    assert scratch.state(run) == ("succeeded", 1, 2)
    assert {shard: scratch.state(shard) for shard in shards(scratch)} == {
        shard: ("succeeded", 2, 2) if shard == killed else ("succeeded", 1, 1) for shard in shards(scratch)
    }
    assert scratch.num_metrics(killed) == 15
    assert scratch.result(run)["written"] == [f"round_1/shard_{number}.json" for number in range(NUM_SHARDS)]
    assert scratch.statuses(run) == ["queued", "running", "waiting", "queued", "running", "succeeded"]


def test_killed_broker_loses_no_shard(scratch: Home):
    server = scratch.redis()
    worker = scratch.worker()
    run = int(scratch.python(DIVIDE))
    scratch.wait_until(lambda: running(scratch))
    server.send_signal(signal.SIGKILL)  # nothing was saved: the messages of the other shards are gone
    server.wait()
    worker.send_signal(signal.SIGKILL)
    (scratch.path / "redis" / "redis.sock").unlink()
    scratch.redis()
    for _ in range(2):
        scratch.worker()
    scratch.wait_until(lambda: scratch.python("services.sweep()") == "" and scratch.state(run)[0] == "succeeded", 60)
    assert sorted(scratch.state(shard) for shard in shards(scratch)) == [
        *[("succeeded", 1, 1)] * (NUM_SHARDS - 1),
        ("succeeded", 2, 2),
    ]
    assert scratch.state(run) == ("succeeded", 1, 2)


def test_cancelled_run_leaves_no_process_of_its_shards(scratch: Home):
    scratch.redis()
    for _ in range(2):
        scratch.worker()
    run = int(scratch.python(DIVIDE.replace("15", "200")))
    scratch.wait_until(lambda: len(running(scratch)) == 2)
    scratch.python(f"services.cancel_run(run=TrainingRun.objects.get(pk={run}))")
    scratch.wait_until(lambda: {scratch.state(one)[0] for one in (run, *shards(scratch))} == {"cancelled"})
    assert [process for one in (run, *shards(scratch)) for process in scratch.trainers(one)] == []


def test_launch_without_a_worker_does_the_shards_and_then_the_rest(scratch: Home):
    scratch.python("make_preference_set(name='first')")
    values = ["preference_set=first", "policy=hub/steps", "reward_model=hub/reward", "num_samples=3", "num_shards=2"]
    output = scratch.manage("launch", "rejection_sampling", "best-of-n", *values, "num_rounds=2", "--wait")
    lines = output.splitlines()
    assert json.loads(lines[-1])["written"] == [
        f"round_{number}/shard_{shard}.json" for number in (1, 2) for shard in (0, 1)
    ]
    assert lines.count("No worker took the run; this command executes it.") == 1
    assert any(line.startswith("waiting  1 of 2 shards done  ") for line in lines)
    assert scratch.state(1) == ("succeeded", 1, 3)
    assert [scratch.state(shard) for shard in shards(scratch)] == [("succeeded", 1, 1)] * 4


def test_launch_cancels_on_ctrl_c_the_shards_that_it_executes(scratch: Home):
    scratch.python("make_preference_set(name='first')")
    values = ["preference_set=first", "policy=hub/steps", "reward_model=hub/reward", "num_samples=200", "num_shards=2"]
    command = ["launch", "rejection_sampling", "best-of-n", *values, "--wait"]
    process = scratch.start(sys.executable, "manage.py", *command)
    scratch.wait_until(lambda: running(scratch) and scratch.num_metrics(shards(scratch)[0]) > 1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, json.loads(output.splitlines()[-1])["status"]) == (1, "cancelled")
    assert [scratch.state(shard)[0] for shard in shards(scratch)] == ["cancelled"] * 2
    assert [process for shard in shards(scratch) for process in scratch.trainers(shard)] == []


PREPARE_REAL_RUN = """
    from pathlib import Path
    from training.alignment.member_config import FormatRule, LengthRule, write_member
    from training.alignment.tiny_lm import build_tiny_lm
    project = make_judged_project(num_prompts=24)
    services.freeze(project=project, name="first", fractions=(0.8, 0, 0.2))
    texts = [f"Question {number}? Answer {number}." for number in range(100)]
    build_tiny_lm(texts, Path("HOME/policy"), vocabulary_size=300, hidden_size=32, num_layers=2, num_heads=2)
    write_member(Path("HOME/reward"), LengthRule(target=3, tolerance=0))
    write_member(Path("HOME/held-out"), FormatRule(pattern="Answer"))
""".replace("\n    ", "\n")
TIMES = {"seconds_generating", "seconds_scoring"}
REAL_RUN = [
    *("preference_set=first", "num_samples=16", "num_epochs=1", "max_new_tokens=48", "num_held_out_prompts=4"),
    *("num_checked=2", "guard=alarm", "generation_batch_size=4"),  # chunks of one prompt
]


def test_same_data_whoever_samples_them_and_whoever_is_killed(tmp_path: Path):
    with home(tmp_path, TRAINER="training.alignment", STALE_SECONDS="4") as scratch:
        scratch.python(PREPARE_REAL_RUN.replace("HOME", str(tmp_path)))
        models = {"policy": "policy", "reward_model": "reward", "held_out_reward_model": "held-out"}
        values = [*REAL_RUN, *(f"{field}={tmp_path / folder}" for field, folder in models.items())]
        alone = json.loads(scratch.manage("launch", "rejection_sampling", "one", *values, "--wait").splitlines()[-1])
        assert (alone["run"], alone["status"]) == (1, "succeeded")

        scratch.redis()
        workers = [scratch.worker() for _ in range(2)]
        scratch.manage("launch", "rejection_sampling", "many", *values, "num_shards=3")
        scratch.wait_until(lambda: len(running(scratch)) == 2, 120)
        killed = running(scratch)[str(workers[0].pid)]
        scratch.wait_until(lambda: scratch.num_metrics(killed) >= 1, 120)
        workers[0].send_signal(signal.SIGKILL)
        scratch.wait_until(lambda: not scratch.trainers(killed), seconds=5)
        scratch.wait_until(lambda: scratch.python("services.sweep()") == "" and scratch.state(2)[0] in ENDED, 240)

        assert scratch.state(2) == ("succeeded", 1, 2)
        assert {shard: scratch.state(shard)[1] for shard in shards(scratch)} == {
            shard: 2 if shard == killed else 1 for shard in shards(scratch)
        }
        one, many = tmp_path / "runs" / "1", tmp_path / "runs" / "2"
        for name in ("round_1/samples.jsonl", "round_1/winners.jsonl", "samples_after.jsonl", "checks.jsonl"):
            assert _untimed(one / name) == _untimed(many / name)
        told = {name: value for name, value in alone.items() if name not in {"run", "status", "run_dir", *TIMES}}
        assert {name: value for name, value in scratch.result(2).items() if name not in TIMES} == told
        weights = [file_digest(folder / "model" / "model.safetensors") for folder in (one, many)]
        assert weights[0] == weights[1]


def _untimed(path: Path) -> list[dict]:
    rows = (json.loads(line) for line in path.read_text().splitlines())
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]
