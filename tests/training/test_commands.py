import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from tests.training.factories import make_finished_run, make_judged_project, make_preference_set
from tests.training.scratch import Home, home
from training import export
from training.models import PreferenceSet, TrainingRun

SAVED = {"base": "sft", "rm": "reward_model"}


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Home]:
    with home(tmp_path) as made:
        yield made


# freeze


@pytest.mark.django_db
def test_freeze_prints_what_each_split_holds(capsys):
    make_judged_project(name="cooking", num_prompts=2)
    call_command("freeze", "cooking", "first", "--seed=4", "--fractions=1,0,0")
    frozen = PreferenceSet.objects.get()
    assert (frozen.seed, frozen.fractions) == (4, [1, 0, 0])
    assert capsys.readouterr().out.splitlines() == [
        "train       2 judgments, 2 pairs, 0 simulated, 2 prompts",
        "validation  0 judgments, 0 pairs, 0 simulated, 0 prompts",
        "test        0 judgments, 0 pairs, 0 simulated, 0 prompts",
        "No prompt fell into validation and test: there are few, or its share is small.",
        f"digest      {frozen.digest}",
        f"Preference set cooking/first: {frozen.path}",
    ]


@pytest.mark.django_db
def test_freeze_sets_votes_aside_by_default(capsys):
    make_judged_project(name="cooking", num_prompts=1)
    call_command("freeze", "cooking", "first")
    assert PreferenceSet.objects.get().fractions == [0.65, 0.1, 0.1, 0.15]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:4]] == list(export.SPLITS)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing", "first"), r"^There is no project nothing\.$"),
        (("cooking", "a/b"), "1 to 100 characters"),
        (("cooking", "first", "--fractions=0.5,0.6,0"), "add up to 1"),
        (("cooking", "first", "--fractions=most"), "invalid"),
    ],
)
def test_freeze_says_what_is_wrong(arguments, message):
    make_judged_project(name="cooking")
    with pytest.raises(CommandError, match=message):
        call_command("freeze", *arguments)
    assert not PreferenceSet.objects.exists()


# launch


@pytest.mark.django_db
def test_launch_queues_a_run_and_prints_its_directory(capsys):
    frozen = make_preference_set(name="first")
    make_finished_run(kind="sft", name="base")
    call_command("launch", "reward_model", "rm1", "preference_set=first", "backbone=base", "num_epochs=2")
    run = TrainingRun.objects.get(name="rm1")
    assert capsys.readouterr().out == f"Run {run.pk}: {run.run_dir}\n"
    assert (run.status, run.preference_set, run.config["num_epochs"]) == ("queued", frozen, 2.0)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("sft", ["policy=base", "responses=edited"]),
        ("rejection_sampling", ["policy=base", "reward_model=rm", "num_shards=10", "num_rounds=3"]),
        ("rlhf", ["policy=base", "reward_model=rm, org/other", "algorithm=grpo", "kl_placement=loss"]),
        ("dpo", ["policy=base", "reference_policy=base", "loss=robust"]),
        ("compare_policies", ["policies=base, org/policy"]),
    ],
)
def test_launch_queues_what_aligns_a_policy_and_compares_it(kind, values):
    make_preference_set(name="first")
    folders = {name: str(make_finished_run(kind=of, name=name).model_dir) for name, of in SAVED.items()}
    call_command("launch", kind, "run", "preference_set=first", *values)
    run = TrainingRun.objects.get(name="run")
    told = dict(value.split("=") for value in values)
    expected = {key: ", ".join(folders.get(name, name) for name in value.split(", ")) for key, value in told.items()}
    assert (run.status, run.kind) == ("queued", kind)
    assert {key: str(run.config[key]) for key in told} == expected


@pytest.mark.django_db
def test_launch_samples_from_a_file(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": [{"role": "user", "content": "Question?"}]}\n')
    call_command("launch", "sample", "some", f"prompts={tmp_path / 'prompts.jsonl'}", "policy=org/policy")
    run = TrainingRun.objects.get()
    assert (run.preference_set, run.project, run.parent) == (None, None, None)
    told = {name: run.config[name] for name in ("prompts", "policy", "reward_model", "output")}
    assert told == {
        "prompts": str(tmp_path / "prompts.jsonl"),
        "policy": "org/policy",
        "reward_model": "",
        "output": "samples.jsonl",
    }


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["backbone=a/b", "trust_remote_code=true"], "trust_remote_code: reward_model has no such field"),
        (["backbone=a/b", "preference_set=none"], "preference_set: there is no 'none'; there are: none"),
        (["backbone"], "backbone: write key=value"),
    ],
)
def test_launch_names_the_field_it_refuses_last_and_as_json(values, message, capsys):
    with pytest.raises(CommandError) as refused:
        call_command("launch", "reward_model", "rm1", *values, "--wait")
    assert str(refused.value).startswith(message)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"status": "failed", "error": str(refused.value)}


def launch(scratch: Home, *values: str) -> subprocess.Popen[str]:
    """`manage.py launch … --wait` on a new preference set."""
    scratch.python("make_preference_set(name='first')")
    command = ["launch", "reward_model", "rm1", "preference_set=first", "backbone=hub/backbone", *values, "--wait"]
    return scratch.start(sys.executable, "manage.py", *command)


@pytest.mark.slow
def test_launch_without_a_broker_executes_the_run_itself(scratch: Home):
    process = launch(scratch, "aspect=steps", "num_epochs=15")
    output, _ = process.communicate(timeout=60)
    lines = output.splitlines()
    run_dir = str(scratch.path / "runs" / "1")
    assert process.returncode == 0
    assert lines[:3] == [f"Run 1: {run_dir}", "queued", "No worker took the run; this command executes it."]
    assert any(line.startswith("running  train  ") and "loss" in line for line in lines)
    assert json.loads(lines[-1]) == {
        "run": 1,
        "status": "succeeded",
        "run_dir": run_dir,
        "num_steps": 15,
        "num_processes": 1,
    }
    assert [line for line in lines if line.startswith("{")] == [lines[-1]]


@pytest.mark.slow
def test_launch_fails_with_the_trainers_words(scratch: Home):
    process = launch(scratch, "aspect=error")
    output, _ = process.communicate(timeout=60)
    last = json.loads(output.splitlines()[-1])
    assert process.returncode == 1
    assert (last["run"], last["status"]) == (1, "failed")
    assert last["error"].startswith("backbone: no such model")


@pytest.mark.slow
def test_launch_tries_three_times_by_itself(scratch: Home):
    process = launch(scratch, "aspect=crash")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "(attempt 3 of 3)" in json.loads(output.splitlines()[-1])["error"]
    assert scratch.state(1) == ("failed", 3, 3)


@pytest.mark.slow
def test_launch_leaves_the_run_to_a_worker_that_is_there(scratch: Home):
    scratch.redis()
    worker = scratch.worker()
    output, _ = launch(scratch).communicate(timeout=60)
    assert "this command executes it" not in output
    assert json.loads(output.splitlines()[-1])["accuracy"] == 0.75
    ((name,),) = scratch.rows("SELECT worker FROM training_trainingrun")
    assert name.endswith(f":{worker.pid}")


@pytest.mark.slow
def test_launch_cancels_on_ctrl_c_what_it_executes(scratch: Home):
    process = launch(scratch, "aspect=wait")
    scratch.wait_until(lambda: scratch.num_metrics(1) == 1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert json.loads(output.splitlines()[-1])["status"] == "cancelled"
    assert (scratch.state(1)[0], scratch.trainers(1)) == ("cancelled", [])


@pytest.mark.slow
def test_launch_leaves_a_workers_run_alone_on_ctrl_c(scratch: Home):
    scratch.redis()
    scratch.worker()
    process = launch(scratch, "aspect=steps", "num_epochs=40")
    scratch.wait_until(lambda: scratch.rows("SELECT id FROM training_metric"))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    lines = output.splitlines()
    assert "No longer watching; run 1 goes on." in lines
    assert json.loads(lines[-1])["status"] == "running"
    scratch.wait_until(lambda: scratch.state(1) == ("succeeded", 1, 1))
