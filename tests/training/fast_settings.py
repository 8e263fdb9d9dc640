"""Settings for the processes of a scratch home: short waits, and what a test sets in the environment."""

import os

from tests.settings import *  # noqa: F403

RUN_TRAINER = os.environ.get("TRAINER", "tests.training.little_trainer")
RUN_HEARTBEAT_SECONDS = 0.2
RUN_STALE_SECONDS = float(os.environ.get("STALE_SECONDS", "2"))
RUN_STOP_SECONDS = 5
DATABASES["default"]["OPTIONS"]["timeout"] = float(os.environ.get("LOCK_SECONDS", "20"))  # noqa: F405
