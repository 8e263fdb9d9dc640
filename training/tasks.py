"""Celery entry points. A message carries an id and only wakes a worker; delivered twice, it finds the run claimed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import current_app, shared_task
from celery.signals import worker_shutting_down
from kombu import Connection
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from training import launch

TRAINING_QUEUE = "training"


@shared_task(name="training.execute_run")
def execute_run(run_id: int) -> None:
    from training import services  # noqa: PLC0415 -- services send these tasks

    services.execute_run(run_id=run_id)


@shared_task(name="training.sweep")
def sweep() -> None:
    from training import services  # noqa: PLC0415 -- services send these tasks

    services.sweep()


class NoBroker(Exception):
    """The broker cannot be reached."""


@contextmanager
def broker() -> Iterator[Connection]:
    """A connection to the broker, or NoBroker at once: a web request does not wait for one that is away."""
    try:
        with current_app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, interval_max=0)
            yield connection
    except (OperationalError, RedisError, OSError) as error:
        raise NoBroker(str(error)) from error


def wake(run_id: int) -> None:
    """Tell a training worker that there is a run to claim."""
    with broker() as connection:
        execute_run.apply_async((run_id,), connection=connection)


def num_waiting() -> int:
    """How many messages wait for a training worker."""
    with broker() as connection, connection.channel() as channel:
        return int(channel.client.llen(TRAINING_QUEUE))


@worker_shutting_down.connect
def stop_trainer(**kwargs: Any) -> None:
    """The pool is solo: this runs in the midst of `execute_run`, which sees the event and hands the run back."""
    launch.shutdown.set()
