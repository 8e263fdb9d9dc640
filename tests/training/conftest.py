from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def quick_runs(settings, tmp_path: Path) -> None:
    """Each test has folders of its own, a trainer without torch, and short waits."""
    settings.RUNS_DIR = tmp_path / "runs"
    settings.PREFERENCE_SETS_DIR = tmp_path / "preference_sets"
    settings.MEMBERS_DIR = tmp_path / "members"
    settings.SCORE_CACHE = tmp_path / "scores.sqlite3"
    settings.RUN_TRAINER = "tests.training.little_trainer"
    settings.RUN_HEARTBEAT_SECONDS = 0.2
    settings.RUN_STALE_SECONDS = 2
    settings.RUN_STOP_SECONDS = 0.5
