import json
import os
import time
import uuid
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from django.db.models.functions import Now

from annotate.models import Annotator, Figures
from tests.factories import make_comparison, make_judgment, make_project
from tests.training.factories import BACKBONE, make_finished_run, make_judged_project, make_preference_set, make_run
from training import launch, services
from training.alignment.config import CONFIGS, ConfigError
from training.models import Metric, PreferenceSet, TrainingRun

pytestmark = pytest.mark.django_db


def execute(run: TrainingRun) -> TrainingRun:
    assert services.execute_run(run_id=run.pk)
    run.refresh_from_db()
    return run


def claim(run: TrainingRun) -> TrainingRun:
    claimed = services.claim_run(run_id=run.pk, worker="host:1")
    assert claimed is not None
    return claimed


def state(run: TrainingRun) -> tuple[str, int, int]:
    run.refresh_from_db()
    return run.status, run.attempts, run.token


def events(run: TrainingRun) -> list[tuple[str, int]]:
    return list(run.events.values_list("status", "token"))


def let_time_pass(run: TrainingRun, seconds: float) -> None:
    TrainingRun.objects.filter(pk=run.pk).update(heartbeat_at=Now() - timedelta(seconds=seconds))


# freeze


def test_freeze_stores_digest_counts_and_file():
    project = make_judged_project(num_prompts=2)
    frozen = services.freeze(project=project, name="first", seed=5, fractions=(1, 0, 0))
    assert {split: counts["judgments"] for split, counts in frozen.counts.items()} == {
        "train": 2,
        "validation": 0,
        "test": 0,
    }
    assert launch.file_digest(frozen.path) == frozen.digest
    assert (frozen.seed, frozen.fractions, frozen.created_by) == (5, [1, 0, 0], None)


def test_freeze_sets_votes_aside_for_the_guard():
    frozen = services.freeze(project=make_judged_project(num_prompts=2), name="first", fractions=(0, 0, 0, 1))
    assert {split: counts["judgments"] for split, counts in frozen.counts.items()} == {
        **{"train": 0, "validation": 0, "test": 0},
        "guard": 2,
    }
    assert {json.loads(line)["split"] for line in frozen.path.read_text().splitlines()} == {"guard"}


def test_freeze_tells_each_judgment_how_reliable_its_annotator_is():
    project = make_judged_project()
    annotators = list(Annotator.objects.filter(judgments__project=project).distinct().order_by("pk"))
    with pytest.raises(services.CannotFreeze, match="How reliable annotators are is not known yet"):
        services.freeze(project=project, name="weighted", is_weighted=True)
    rows = [{"id": annotators[0].pk, "accuracy": 0.9}, {"id": 0, "accuracy": 0.4}, {"id": -1, "accuracy": None}]
    Figures.objects.create(project=project, values={"annotators": rows}, last_judgment=0, num_changes=0)

    frozen = services.freeze(project=project, name="weighted", is_weighted=True)

    lines = [json.loads(line) for line in frozen.path.read_text().splitlines()]
    weights = {line["annotator"]: line["weight"] for line in lines}
    known = next(line["annotator"] for line in lines if line["weight"] == 0.8)
    assert weights == {name: 0.8 if name == known else 0.4 for name in weights}
    assert len(weights) == len(annotators)
    plain = services.freeze(project=project, name="plain")
    assert "weight" not in plain.path.read_text()


def test_freeze_gives_equal_digests_for_equal_judgments():
    project = make_judged_project()
    assert services.freeze(project=project, name="a").digest == services.freeze(project=project, name="b").digest


def test_freeze_keeps_every_judgment_and_marks_simulated_ones():
    comparison = make_comparison()
    make_judgment(comparison=comparison)
    make_judgment(comparison=comparison, source="simulation")
    frozen = services.freeze(project=comparison.project, name="both")
    records = [json.loads(line) for line in frozen.path.read_text().splitlines()]
    assert sorted(record["source"] for record in records) == ["browser", "simulation"]
    assert sum(split["simulated"] for split in frozen.counts.values()) == 1


def test_freeze_refuses_empty_project():
    project = make_project(name="empty")
    with pytest.raises(services.CannotFreeze, match="Project empty has no judgments yet"):
        services.freeze(project=project, name="first")
    assert not PreferenceSet.objects.exists()


def test_freeze_refuses_taken_name():
    frozen = make_preference_set(name="first")
    with pytest.raises(services.CannotFreeze, match="already has a preference set first"):
        services.freeze(project=frozen.project, name="first")


@pytest.mark.parametrize("name", ["", "  ", "a/b", "x" * 101])
def test_freeze_refuses_unfit_name(name):
    with pytest.raises(services.CannotFreeze, match="1 to 100 characters"):
        services.freeze(project=make_judged_project(), name=name)


@pytest.mark.parametrize(
    "fractions",
    [
        *((0.5, 0.5), (0.9, 0.2, 0.1), (1.5, -0.5, 0), (float("nan"), 1, 0)),
        *((0.8, 0.1, 0.1, 0.1), (0.6, 0.1, 0.1, 0.1, 0.1)),
    ],
)
def test_freeze_refuses_unfit_fractions(fractions):
    with pytest.raises(services.CannotFreeze, match="add up to 1"):
        services.freeze(project=make_judged_project(), name="first", fractions=fractions)


# create_run


def test_every_kind_of_run_has_a_name_and_a_configuration():
    assert sorted(TrainingRun.Kind.values) == sorted(CONFIGS)


def test_create_run_queues_checked_configuration(django_capture_on_commit_callbacks):
    preference_set = make_preference_set()
    with django_capture_on_commit_callbacks() as callbacks:
        run = services.create_run(
            kind="reward_model",
            name="rm",
            values={"backbone": BACKBONE, "num_epochs": "2"},
            preference_set=preference_set,
        )
    assert (run.status, run.name, run.project, run.attempts) == ("queued", "rm", preference_set.project, 0)
    assert run.config["backbone"] == BACKBONE
    assert run.config["num_epochs"] == 2.0
    assert run.config["preferences"] == "preferences.jsonl"
    assert events(run) == [("queued", 0)]
    assert len(callbacks) == 1


def test_create_run_with_the_same_key_gives_the_same_run():
    key = uuid.uuid4()
    preference_set = make_preference_set()
    first, second = (make_run(key=key, preference_set=preference_set) for _ in range(2))
    assert first == second
    assert TrainingRun.objects.count() == 1


def test_create_run_stays_queued_when_the_broker_is_away(django_capture_on_commit_callbacks, caplog, monkeypatch):
    slept = []
    monkeypatch.setattr("kombu.utils.functional.sleep", slept.append)
    with django_capture_on_commit_callbacks(execute=True):
        run = make_run()
    assert state(run) == ("queued", 0, 0)
    assert sum(slept) == 0  # nobody waits for it
    assert "waits for the sweeper: no broker" in caplog.text


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("reward_model", {}, "backbone: name a model"),
        ("reward_model", {"backbone": BACKBONE, "trust_remote_code": "true"}, "trust_remote_code: reward_model has no"),
        ("reward_model", {"backbone": BACKBONE, "num_epochs": "0"}, "num_epochs: 0.0 is below 0.01"),
        ("reward_model", {"backbone": BACKBONE}, "preferences: name a preference set"),
        ("evaluate", {"reward_model": BACKBONE, "preferences": "/no/such"}, "preferences: there is no file '/no/such'"),
        ("sft", {"policy": "new:tiny"}, "examples: name a file of examples, or a preference set"),
        ("sft", {"policy": "new:tiny", "examples": "/no/such"}, "examples: there is no file '/no/such'"),
        ("ppo", {}, "kind: 'ppo' is not one of"),
        ("rlhf", {"policy": BACKBONE, "reward_model": BACKBONE}, "preferences: name a preference set"),
        ("dpo", {"policy": BACKBONE}, "preferences: name a preference set"),
        ("compare_policies", {"policies": "a/b, a/c"}, "preferences: name a preference set"),
        ("sample", {"policy": BACKBONE, "prompts": "/no/such"}, "prompts: there is no file '/no/such'"),
    ],
)
def test_create_run_names_the_field_it_refuses(kind, values, message):
    with pytest.raises(ConfigError) as refused:
        services.create_run(kind=kind, name="run", values=values)
    assert str(refused.value).startswith(message)
    assert not TrainingRun.objects.exists()


# claim_run and writes under a token


def test_claim_run_has_one_winner():
    run = make_run()
    winner = services.claim_run(run_id=run.pk, worker="host:1")
    assert services.claim_run(run_id=run.pk, worker="host:2") is None
    assert winner is not None
    assert (winner.worker, winner.status, winner.attempts, winner.token) == ("host:1", "running", 1, 1)
    assert events(run) == [("queued", 0), ("running", 1)]


def test_claim_run_leaves_a_run_that_is_to_be_cancelled():
    run = make_run()
    TrainingRun.objects.update(is_cancel_requested=True)
    assert services.claim_run(run_id=run.pk, worker="host:1") is None


def test_writes_of_a_zombie_are_refused():
    run = make_run()
    zombie = claim(run)
    services.requeue_run(run=zombie, note="lost")
    holder = claim(run)
    with pytest.raises(services.ClaimLost):
        services.record_progress(run=zombie, news=launch.News(0, [{"progress": 0.9, "phase": "train"}]))
    assert not services.finish_run(run=zombie, result={"accuracy": 0})
    assert not services.fail_run(run=zombie, error="from the grave")
    assert not services.requeue_run(run=zombie, note="from the grave")
    assert state(run) == ("running", 2, 2)
    assert (run.progress, run.error, run.metrics.count()) == (0, "", 0)
    assert services.finish_run(run=holder, result={"accuracy": 1})
    assert events(run) == [("queued", 0), ("running", 1), ("queued", 1), ("running", 2), ("succeeded", 2)]


def test_record_progress_stores_metrics_and_tells_of_a_cancel():
    run = claim(make_run())
    news = launch.News(0, [{"progress": 0.25, "phase": "train", "loss": 1.0}, {"progress": 7, "phase": "validation"}])
    assert services.record_progress(run=run, news=news) is False
    services.cancel_run(run=run)
    assert services.record_progress(run=run, news=None) is True
    run.refresh_from_db()
    assert (run.progress, run.phase) == (1.0, "validation")
    assert list(run.metrics.values_list("line", "values")) == list(enumerate(news.lines))


def test_record_progress_replaces_lines_that_were_taken_back():
    run = claim(make_run())
    services.record_progress(run=run, news=launch.News(0, [{"loss": 3}, {"loss": 2}, {"loss": 1}]))
    services.record_progress(run=run, news=launch.News(0, [{"loss": 3}]))
    services.record_progress(run=run, news=launch.News(1, [{"loss": 2.5}]))
    assert list(run.metrics.values_list("line", "values")) == [(0, {"loss": 3}), (1, {"loss": 2.5})]


# execute_run, with the little trainer


def test_execute_run_follows_the_trainer_to_its_result():
    run = execute(make_run(num_steps=3))
    assert state(run) == ("succeeded", 1, 1)
    assert run.result == {"accuracy": 0.75, "interval": [0.5, 1.0], "loss": None}
    assert (run.progress, run.phase, run.error) == (1.0, "validation", "")
    assert run.finished_at is not None
    losses = [metric.values["loss"] for metric in run.metrics.all()]
    assert losses == [1.0, 0.5, 1 / 3, None]
    assert events(run) == [("queued", 0), ("running", 1), ("succeeded", 1)]


def test_execute_run_writes_a_complete_run_directory():
    run = execute(make_run())
    assert sorted(path.name for path in run.run_dir.iterdir()) == [
        "log.txt",
        "metrics.jsonl",
        "preferences.jsonl",
        "result.json",
        "run.json",
    ]
    assert json.loads((run.run_dir / "run.json").read_text()) == {"kind": run.kind, "config": run.config}
    assert launch.file_digest(run.run_dir / "preferences.jsonl") == run.preference_set.digest


def test_execute_run_shows_the_trainer_nothing_secret(monkeypatch):
    for name in ("SECRET_KEY", "DATABASE_URL", "REDIS_URL", "HF_TOKEN", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    result = execute(make_run(behaviour="environment")).result
    allowed = {name for name in result["names"] if name in launch.ENVIRONMENT or name.startswith("NCCL_")}
    ours = {"PLUMBLINE_SCORE_CACHE", "PLUMBLINE_SUPERVISED", "PYTHONUNBUFFERED"}
    from_the_interpreter = {"LC_CTYPE"}
    assert set(result["names"]) - allowed - ours - from_the_interpreter == set()
    assert {"PATH", "NCCL_DEBUG", "PLUMBLINE_SUPERVISED"} <= set(result["names"])
    assert result["argv"] == [str(Path(launch.settings.RUNS_DIR) / str(TrainingRun.objects.get().pk))]


def test_execute_run_does_nothing_for_a_run_that_is_not_queued():
    run = execute(make_run())
    assert services.execute_run(run_id=run.pk) is False
    assert services.execute_run(run_id=10**6) is False
    assert state(run) == ("succeeded", 1, 1)


def test_execute_run_fails_with_the_trainers_words_and_log():
    run = execute(make_run(behaviour="error"))
    assert state(run) == ("failed", 1, 1)
    assert run.error == "backbone: no such model\n\nThe end of its log:\nlittle trainer error"


@pytest.mark.parametrize(("behaviour", "code"), [("exit 3", 3), ("no result", 0)])
def test_execute_run_fails_when_the_trainer_says_nothing(behaviour, code):
    run = execute(make_run(behaviour=behaviour))
    assert state(run) == ("failed", 1, 1)
    assert run.error.startswith(f"The training process ended with exit code {code}.\n\nThe end of its log:\n")


def test_execute_run_gives_up_a_run_that_kills_its_trainer_three_times():
    run = make_run(behaviour="crash")
    assert [state(execute(run)) for _ in range(3)] == [("queued", 1, 1), ("queued", 2, 2), ("failed", 3, 3)]
    assert run.error.startswith(
        "The training process was killed by SIGKILL. Often that means that memory ran out. (attempt 3 of 3)"
    )
    assert services.execute_run(run_id=run.pk) is False


def test_execute_run_counts_a_trainer_that_was_stopped_from_outside():
    run = execute(make_run(behaviour="interrupted"))
    assert state(run) == ("queued", 1, 1)


def test_execute_run_resumes_and_keeps_metrics_once():
    run = make_run(behaviour="steps", num_steps=25)
    killed = []

    def kill_at_the_third_step() -> bool:
        run.refresh_from_db()
        if not killed and Metric.objects.filter(run=run).count() >= 3:
            killed.append(run.pid)
            psutil.Process(run.pid).kill()
        return False

    services.execute_run(run_id=run.pk, should_stop=kill_at_the_third_step)
    assert state(run) == ("queued", 1, 1)
    execute(run)
    assert state(run) == ("succeeded", 2, 2)
    assert run.result == {"num_steps": 25, "num_processes": 2}
    assert [metric.values["step"] for metric in run.metrics.all()] == list(range(1, 26))


def test_execute_run_follows_metrics_that_are_written_anew():
    run = make_run(behaviour="rewrite")
    seen = []

    def look() -> bool:
        steps = [metric.values["step"] for metric in run.metrics.all()]
        if steps and (not seen or seen[-1] != steps):
            seen.append(steps)
            (run.run_dir / ("go_on" if len(seen) == 1 else "finish")).touch()
        return False

    services.execute_run(run_id=run.pk, should_stop=look)
    assert seen == [[1, 2, 3, 4, 5], [1, 2, 3]]
    assert state(run) == ("succeeded", 1, 1)


def test_execute_run_takes_a_result_that_an_earlier_worker_could_not_note():
    run = make_run(behaviour="crash")
    services.requeue_run(run=claim(run), note="its worker died")
    run.run_dir.mkdir(parents=True)
    (run.run_dir / "result.json").write_text('{"accuracy": 0.9}')
    (run.run_dir / "metrics.jsonl").write_text('{"step": 1, "phase": "train", "progress": 1.0}\n')
    execute(run)
    assert (state(run), run.result, run.metrics.count()) == (("succeeded", 2, 2), {"accuracy": 0.9}, 1)


def test_execute_run_sets_aside_what_another_database_left():
    run = make_run()
    run.run_dir.mkdir(parents=True)
    (run.run_dir / "result.json").write_text('{"accuracy": "of another run"}')
    execute(run)
    assert run.result["accuracy"] == 0.75
    (left,) = [path for path in run.run_dir.parent.iterdir() if path != run.run_dir]
    assert left.name.startswith(f"{run.pk}.old-")


def test_execute_run_refuses_altered_records():
    run = make_run()
    run.preference_set.path.chmod(0o644)
    run.preference_set.path.write_text("{}\n")
    execute(run)
    assert run.status == "failed"
    assert run.error.startswith(f"The records of preference set {run.preference_set} have been altered")


def test_execute_run_says_that_the_disk_cannot_be_written(settings, tmp_path):
    settings.RUNS_DIR = tmp_path / "file" / "runs"
    (tmp_path / "file").write_text("in the way")
    run = execute(make_run())
    assert state(run) == ("failed", 1, 1)
    assert run.error.startswith("The run directory could not be written: [Errno 20] Not a directory")


def test_execute_run_copies_examples_once(tmp_path):
    examples = tmp_path / "mine.jsonl"
    examples.write_text('{"prompt": "Hi", "completion": "Hello"}\n')
    run = make_run(kind="sft", values={"policy": "new:tiny", "examples": str(examples)}, preference_set=None)
    claimed = claim(run)
    launch.prepare(claimed)
    examples.write_text("other\n")
    services.requeue_run(run=claimed, note="interrupted")
    config = launch.prepare(claim(run)).config()
    assert config.examples == "examples.jsonl"
    assert (run.run_dir / "examples.jsonl").read_text() == '{"prompt": "Hi", "completion": "Hello"}\n'


def test_execute_run_hands_the_run_back_when_its_worker_stops():
    run = make_run(behaviour="wait")
    services.execute_run(run_id=run.pk, should_stop=run.metrics.exists)
    assert state(run) == ("queued", 0, 1)
    assert not psutil.pid_exists(run.pid)


def test_execute_run_claims_nothing_when_its_worker_stops():
    run = make_run()
    assert services.execute_run(run_id=run.pk, should_stop=lambda: True) is False
    assert state(run) == ("queued", 0, 0)


def test_execute_run_hands_the_run_back_on_ctrl_c():
    run = make_run(behaviour="wait")

    def press() -> bool:
        if run.metrics.exists():
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        services.execute_run(run_id=run.pk, should_stop=press)
    assert state(run) == ("queued", 0, 1)
    assert not psutil.pid_exists(run.pid)


def test_execute_run_stops_silently_when_the_run_was_taken_from_it(caplog):
    run = make_run(behaviour="wait")

    def take() -> bool:
        if run.metrics.exists():
            TrainingRun.objects.filter(pk=run.pk).update(token=7)
        return False

    services.execute_run(run_id=run.pk, should_stop=take)
    assert state(run) == ("running", 1, 7)
    assert not psutil.pid_exists(run.pid)
    assert "Stopped working on run" in caplog.text


def test_execute_run_stops_a_trainer_without_a_sign_of_life(settings):
    settings.RUN_SILENT_SECONDS = 1
    run = execute(make_run(behaviour="wait"))
    assert state(run) == ("failed", 1, 1)
    assert run.error.startswith("Stopped: no sign of life for 0.0166667 minutes.")


def test_execute_run_kills_what_the_last_attempt_left():
    run = make_run(behaviour="stubborn")
    claimed = claim(run)
    trainer = launch.Trainer(launch.prepare(claimed))
    TrainingRun.objects.update(pid=trainer.pid, pid_started_at=trainer.started_at)
    wait_until((run.run_dir / "child.pid").exists)
    child = psutil.Process(int((run.run_dir / "child.pid").read_text()))
    services.requeue_run(run=claimed, note="its worker was lost")
    again = claim(run)
    launch.kill_survivor(again)
    assert not psutil.pid_exists(trainer.pid)
    assert not child.is_running()
    trainer.kill()


def test_kill_survivor_leaves_another_process_with_the_same_number(monkeypatch):
    run = claim(make_run())
    run.pid, run.pid_started_at = os.getpid(), 1.0
    launch.kill_survivor(run)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# cancel_run


def test_cancel_run_ends_a_queued_run_at_once():
    run = make_run()
    services.cancel_run(run=run)
    assert state(run) == ("cancelled", 0, 0)
    assert services.execute_run(run_id=run.pk) is False
    assert run.finished_at is not None


@pytest.mark.parametrize("behaviour", ["wait", "stubborn"])
def test_cancel_run_stops_a_running_trainer(behaviour):
    run = make_run(behaviour=behaviour)

    def cancel() -> bool:
        if run.metrics.exists():
            services.cancel_run(run=run)
        return False

    services.execute_run(run_id=run.pk, should_stop=cancel)
    assert state(run) == ("cancelled", 1, 1)
    assert not psutil.pid_exists(run.pid)
    assert events(run)[-1] == ("cancelled", 1)


def test_cancel_run_ends_a_run_that_is_handed_back_meanwhile():
    run = make_run()
    claimed = claim(run)
    services.cancel_run(run=run)
    services.requeue_run(run=claimed, note="interrupted")
    assert state(run) == ("cancelled", 1, 1)


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_cancel_run_leaves_an_ended_run(status):
    run = make_finished_run(status=status)
    services.cancel_run(run=run)
    assert state(run) == (status, 0, 0)
    assert not run.is_cancel_requested
    assert events(run) == []


# sweep


def test_sweep_takes_a_run_back_from_a_worker_that_fell_silent():
    run = claim(make_run())
    let_time_pass(run, 1)
    services.sweep()
    assert state(run) == ("running", 1, 1)
    let_time_pass(run, 3)
    services.sweep()
    assert state(run) == ("queued", 1, 1)
    assert run.events.last().note == "The worker host:1 was lost. (attempt 1 of 3)"


def test_sweep_fails_a_run_whose_workers_were_lost_three_times():
    run = make_run()
    for _ in range(3):
        claim(run)
        let_time_pass(run, 3)
        services.sweep()
    assert state(run) == ("failed", 3, 3)
    assert run.error == "The worker host:1 was lost. (attempt 3 of 3)"


def test_sweep_cancels_what_was_to_be_cancelled():
    queued, lost = make_run(), claim(make_run())
    TrainingRun.objects.update(is_cancel_requested=True)
    let_time_pass(lost, 3)
    services.sweep()
    assert (state(queued), state(lost)) == (("cancelled", 0, 0), ("cancelled", 1, 1))


def test_sweep_without_a_broker_does_the_rest(caplog):
    queued, lost = make_run(), claim(make_run())
    let_time_pass(lost, 3)
    services.sweep()
    assert (state(queued), state(lost)) == (("queued", 0, 0), ("queued", 1, 1))
    assert "Queued runs wait: no broker" in caplog.text
