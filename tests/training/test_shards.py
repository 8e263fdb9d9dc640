"""A run that divides its work waits for runs of its own, and goes on or ends with them."""

from collections.abc import Callable

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from tests.factories import make_user
from tests.training.factories import make_judged_project, make_preference_set, make_run, make_staff
from training import queries, services
from training.alignment.config import ConfigError, SampleConfig, config_to_dict
from training.models import TrainingRun

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def commit(django_capture_on_commit_callbacks):
    """Does what a transaction leaves to be done after it."""
    return lambda: django_capture_on_commit_callbacks(execute=True)


@pytest.fixture
def execute(commit) -> Callable[[TrainingRun], TrainingRun]:
    def execute(run: TrainingRun) -> TrainingRun:
        with commit():
            services.execute_run(run_id=run.pk)
        run.refresh_from_db()
        return run

    return execute


def make_parent(
    behaviour: str = "parts", *, num_shards: int = 3, num_rounds: int = 1, num_processes: int = 1, **values
) -> TrainingRun:
    fields = {"num_shards": num_shards, "num_rounds": num_rounds, "num_processes": num_processes}
    return make_run(kind="rejection_sampling", behaviour=behaviour, values=fields, **values)


def state(run: TrainingRun) -> tuple[str, int, int]:
    run.refresh_from_db()
    return run.status, run.attempts, run.token


def states(run: TrainingRun) -> list[str]:
    return list(run.shards.order_by("pk").values_list("status", flat=True))


def events(run: TrainingRun) -> list[str]:
    return list(run.events.values_list("status", flat=True))


def queued() -> TrainingRun | None:
    return TrainingRun.objects.filter(status="queued").order_by("pk").first()


def test_run_that_divides_its_work_waits_for_its_shards(execute):
    user = make_user()
    run = execute(make_parent(name="best-of-n", user=user))
    assert state(run) == ("waiting", 0, 1)
    assert (run.is_active, run.finished_at, run.error) == (True, None, "")
    assert events(run) == ["queued", "running", "waiting"]
    assert [(shard.name, shard.kind, shard.status, shard.project) for shard in run.shards.order_by("pk")] == [
        (f"best-of-n, shard {number}", "sample", "queued", run.project) for number in (1, 2, 3)
    ]
    assert {shard.created_by for shard in run.shards.all()} == {user}
    outputs = [shard.config["output"] for shard in run.shards.order_by("pk")]
    assert outputs == [str(run.run_dir / "round_1" / f"shard_{number}.json") for number in range(3)]
    assert events(run.shards.first()) == ["queued"]


def test_run_goes_on_when_the_last_of_its_shards_is_done(execute):
    run = execute(make_parent())
    first, second, third = run.shards.order_by("pk")
    assert [(execute(shard).status, state(run)) for shard in (second, first)] == [
        ("succeeded", ("waiting", 0, 1)),
        ("succeeded", ("waiting", 0, 1)),
    ]
    execute(third)
    assert state(run) == ("queued", 0, 1)
    execute(run)
    assert state(run) == ("succeeded", 1, 2)
    assert run.result == {"written": [f"round_1/shard_{number}.json" for number in range(3)]}
    assert events(run) == ["queued", "running", "waiting", "queued", "running", "succeeded"]


def test_rounds_have_shards_of_their_own(execute):
    run = make_parent(num_shards=2, num_rounds=3)
    while (one := queued()) is not None:
        execute(one)
    assert state(run) == ("succeeded", 1, 4)
    assert run.shards.count() == 6
    assert [shard.name[-7:] for shard in run.shards.order_by("pk")] == [f"shard {number}" for number in range(1, 7)]
    assert set(run.shards.values_list("status", "attempts", "token")) == {("succeeded", 1, 1)}
    assert len(run.result["written"]) == 6


def test_shard_that_fails_fails_its_run_in_its_words_and_ends_the_others(execute):
    run = execute(make_parent("second_fails"))
    first, second, third = run.shards.order_by("pk")
    execute(first)
    execute(second)
    assert state(run) == ("failed", 0, 1)
    assert run.error.startswith(f"{second}: backbone: no such model")
    assert run.finished_at is not None
    assert states(run) == ["succeeded", "failed", "cancelled"]
    assert list(third.events.values_list("status", "note")) == [
        ("queued", f"a part of run {run.pk}"),
        ("cancelled", f"run {run.pk} has ended"),
    ]


def test_cancelling_a_run_cancels_its_shards(execute, commit):
    run = execute(make_parent())
    done, running, _ = run.shards.order_by("pk")
    execute(done)
    services.claim_run(run_id=running.pk, worker="host:1")
    with commit():
        services.cancel_run(run=run)
    assert state(run) == ("cancelled", 0, 1)
    assert states(run) == ["succeeded", "running", "cancelled"]
    running.refresh_from_db()
    assert running.is_cancel_requested


def test_cancelling_a_shard_cancels_its_run(execute, commit):
    run = execute(make_parent())
    second = run.shards.order_by("pk")[1]
    with commit():
        services.cancel_run(run=second)
    assert state(run) == ("cancelled", 0, 1)
    assert run.events.last().note == f"{second} was cancelled"
    assert states(run) == ["cancelled"] * 3


def test_run_that_was_cancelled_before_it_waits_begins_no_shard():
    run = make_parent()
    held = services.claim_run(run_id=run.pk, worker="host:1")
    services.cancel_run(run=run)
    assert services.wait_for_shards(run=held, shards=[SampleConfig(output="/a")])
    assert (state(run), states(run)) == (("cancelled", 0, 1), [])


def test_run_that_another_worker_holds_cannot_be_made_to_wait():
    run = make_parent()
    zombie = services.claim_run(run_id=run.pk, worker="host:1")
    services.requeue_run(run=zombie, note="lost")
    services.claim_run(run_id=run.pk, worker="host:2")
    assert not services.wait_for_shards(run=zombie, shards=[SampleConfig(output="/a")])
    assert (state(run), states(run)) == (("running", 2, 2), [])


def test_equal_parts_are_one_shard():
    held = services.claim_run(run_id=make_parent().pk, worker="host:1")
    part = SampleConfig(output="/a")
    services.wait_for_shards(run=held, shards=[part, SampleConfig(output="/b"), part])
    assert [shard.config for shard in held.shards.order_by("pk")] == [
        config_to_dict(SampleConfig(output=output)) for output in ("/a", "/b")
    ]


def test_run_whose_shards_write_where_it_does_not_look_fails(execute, settings):
    run = execute(make_parent("loses", num_shards=1))
    shard = run.shards.get()
    execute(shard)
    execute(run)
    assert state(run) == ("failed", 1, 2)
    assert run.error == (
        f"{shard} has succeeded, but what it wrote is not there: do all workers share {settings.RUNS_DIR}?"
    )
    assert run.shards.count() == 1


def test_sweeper_lets_a_run_go_on_that_was_not_told_of_its_shards(execute):
    run = execute(make_parent(num_shards=2))
    for shard in run.shards.all():
        services.execute_run(run_id=shard.pk)  # the worker dies before it tells
    assert state(run) == ("waiting", 0, 1)
    services.sweep()
    assert state(run) == ("queued", 0, 1)


def test_sweeper_fails_a_run_that_was_not_told_of_a_failure(execute):
    run = execute(make_parent("second_fails"))
    services.execute_run(run_id=run.shards.order_by("pk")[1].pk)
    services.sweep()
    assert (state(run), states(run)) == (("failed", 0, 1), ["cancelled", "failed", "cancelled"])


def test_sweeper_cancels_what_works_for_a_run_that_has_ended(execute):
    run = execute(make_parent())
    first, *_ = run.shards.order_by("pk")
    services.claim_run(run_id=first.pk, worker="host:1")
    TrainingRun.objects.filter(pk=run.pk).update(status="cancelled")
    services.sweep()
    assert states(run) == ["running", "cancelled", "cancelled"]
    first.refresh_from_db()
    assert first.is_cancel_requested


def test_late_news_of_one_round_do_not_end_the_wait_for_the_next(execute, monkeypatch):
    run = execute(make_parent(num_shards=1, num_rounds=2))
    execute(run.shards.get())
    execute(run)
    assert state(run) == ("waiting", 0, 2)
    transition = services._transition

    def late(run_id, status, when, **changes):
        """What was read of the first round is acted upon now."""
        TrainingRun.objects.filter(pk=run_id).update(token=3)
        return transition(run_id, status, when, **changes)

    TrainingRun.objects.filter(parent=run).update(status="succeeded", result={})
    monkeypatch.setattr(services, "_transition", late)
    services._look_at_shards(run.pk)
    assert state(run) == ("waiting", 0, 3)


def test_shard_that_fails_while_shards_are_looked_at_is_not_taken_for_done(execute):
    run = execute(make_parent(num_shards=1))
    looked: list[str] = []

    def fail_after_the_look_for_failures(execute, sql, *rest):
        found = execute(sql, *rest)
        looked.append(sql)
        if len(looked) == 2:  # the first found the run
            run.shards.update(status="failed")
        return found

    with connection.execute_wrapper(fail_after_the_look_for_failures):
        services._look_at_shards(run.pk)
    assert (state(run), states(run), len(looked) > 2) == (("waiting", 0, 1), ["failed"], True)
    services._look_at_shards(run.pk)
    assert state(run) == ("failed", 0, 1)


@pytest.mark.slow
def test_run_of_several_processes_waits_though_their_launcher_ends_otherwise(execute):
    run = execute(make_parent(num_processes=2))
    assert (state(run), states(run)) == (("waiting", 0, 1), ["queued"] * 3)


# Pages


@pytest.fixture
def staff(client: Client) -> Client:
    client.force_login(make_staff())
    return client


def page_of(run: TrainingRun, name: str = "change") -> str:
    return reverse(f"admin:training_trainingrun_{name}", args=[run.pk])


def test_list_shows_runs_that_people_started_and_their_pages_the_shards(execute, staff: Client):
    run = execute(make_parent(name="best-of-n"))
    listed = staff.get(reverse("admin:training_trainingrun_changelist")).context["cl"]
    assert list(listed.queryset) == [run]
    page = staff.get(page_of(run)).content.decode()
    for shard in run.shards.all():
        assert page_of(shard) in page
    page = staff.get(page_of(run.shards.first())).content.decode()
    assert f'<a href="{page_of(run)}">run {run.pk}</a>, which waits for it' in page


def test_shards_of_a_hidden_project_are_not_found(execute, client: Client):
    run = execute(make_parent(preference_set=make_preference_set(project=make_judged_project(is_open=False))))
    viewer = make_user(is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_trainingrun"))
    client.force_login(viewer)
    assert client.get(page_of(run.shards.first())).status_code == 404
    assert client.get(page_of(run, "shards")).status_code == 404


def test_progress_of_a_waiting_run_is_that_of_the_shards_it_waits_for(execute, staff: Client):
    run = execute(make_parent(num_shards=2, num_rounds=2))
    for shard in run.shards.all():
        execute(shard)
    execute(run)
    assert states(run) == ["succeeded"] * 2 + ["queued"] * 2
    half = run.shards.order_by("pk")[2]
    TrainingRun.objects.filter(pk=half.pk).update(progress=0.5)
    progress = queries.progress(run)
    assert (progress.percent, progress.phase) == (25, "0 of 2 shards done")
    assert [shard.pk for shard in progress.shards.shown] == list(run.shards.order_by("pk").values_list("pk", flat=True))
    assert "0 of 2 shards done" in staff.get(page_of(run, "progress")).content.decode()
    table = staff.get(page_of(run, "shards")).content.decode()
    assert 'value="0.50"' in table
    assert f'hx-get="{page_of(run, "shards")}" hx-trigger="every 2s"' in table


def test_run_without_shards_shows_none(staff: Client):
    run = make_run()
    assert queries.progress(run).shards is None
    assert staff.get(page_of(run, "shards")).status_code == 404
    assert "run-shards" not in staff.get(page_of(run)).content.decode()


def test_table_of_shards_takes_as_many_queries_for_three_as_for_one(execute, staff, django_assert_num_queries):
    one, three = (execute(make_parent(num_shards=number)) for number in (1, 3))
    with CaptureQueriesContext(connection) as captured:
        staff.get(page_of(one, "shards"))
    with django_assert_num_queries(len(captured)):
        staff.get(page_of(three, "shards"))


@pytest.mark.parametrize("method", ["post", "put", "patch", "delete"])
def test_table_of_shards_is_only_read(execute, staff: Client, method: str):
    assert getattr(staff, method)(page_of(execute(make_parent()), "shards")).status_code == 405


def test_key_of_a_shard_tells_its_part():
    run = make_parent()
    one, other = SampleConfig(output="/a"), SampleConfig(output="/b")
    assert services._shard_key(run, one) == services._shard_key(run, SampleConfig(output="/a"))
    assert services._shard_key(run, one) != services._shard_key(run, other)
    assert services._shard_key(make_parent(), one) != services._shard_key(run, one)


def test_wait_is_refused_and_undone_for_a_part_that_has_been_done():
    run = make_parent()
    held = services.claim_run(run_id=run.pk, worker="host:1")
    part = SampleConfig(output="/a")
    TrainingRun.objects.create(kind="sample", name="s", parent=run, key=services._shard_key(run, part), config={})
    with pytest.raises(ConfigError, match="what it wrote is not there"):
        services.wait_for_shards(run=held, shards=[SampleConfig(output="/b"), part])
    assert (state(run), run.shards.count()) == (("running", 1, 1), 1)
