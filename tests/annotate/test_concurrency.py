"""Many processes judge at once, on a database of their own: constraints hold, nothing is lost, nothing fails.

SQLite always; PostgreSQL where PLUMBLINE_TEST_POSTGRES is the URL of a server's database, beside which the test
makes its own (such as postgres://user@127.0.0.1:5432/postgres).
"""

import json
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from config.home import BASE_DIR

NUM_PROCESSES, NUM_COMPARISONS, OVERLAP = 8, 60, 2
POSTGRES = os.environ.get("PLUMBLINE_TEST_POSTGRES", "")
STATE = """
import json
from annotate.models import Comparison, Judgment, Lease
print(json.dumps({
    "comparisons": list(Comparison.objects.values("pk", "num_taken", "num_wanted")),
    "judgments": list(Judgment.objects.values("pk", "comparison", "annotator", "is_extra")),
    "leases": Lease.objects.count(),
}))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(params=["sqlite", "postgresql"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of processes that share a fresh, empty database with a project of open comparisons."""
    ours = {name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "REDIS_URL"}}
    ours |= {"PLUMBLINE_HOME": str(tmp_path / "home"), "DJANGO_SETTINGS_MODULE": "config.settings"}
    if request.param == "sqlite":
        yield ours
        return
    if not POSTGRES:
        pytest.skip("PLUMBLINE_TEST_POSTGRES names no server")
    name = f"plumbline_test_{secrets.token_hex(4)}"
    with psycopg.connect(POSTGRES, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        yield ours | {"DATABASE_URL": f"{POSTGRES.rpartition('/')[0]}/{name}"}
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def manage(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "manage.py", *arguments]
    return subprocess.run(command, env=environment, cwd=BASE_DIR, check=True, capture_output=True, text=True).stdout


def start_judging(environment: dict[str, str], username: str, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.annotate.judging", username, str(seed)]
    return subprocess.Popen(command, env=environment, cwd=BASE_DIR, stdout=subprocess.PIPE, text=True)


def import_comparisons(environment: dict[str, str], folder: Path, number: int) -> None:
    rows = [{"prompt": f"Question {n}?", "responses": ["yes", "no", f"answer {n}"]} for n in range(number)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manage(environment, "migrate", "-v0")
    manage(environment, "import_data", "race", str(folder / "rows.jsonl"), "--overlap", str(OVERLAP))


def judge_at_once(environment: dict[str, str], folder: Path, usernames: list[str]) -> dict[str, Any]:
    """The state afterwards, with what the processes were told."""
    import_comparisons(environment, folder, NUM_COMPARISONS)
    judging = [start_judging(environment, username, seed) for seed, username in enumerate(usernames)]
    outputs = [process.communicate(timeout=120)[0] for process in judging]
    assert [process.returncode for process in judging] == [0] * len(judging)
    state = json.loads(manage(environment, "shell", "-v0", "-c", STATE))
    return state | {"acknowledged": [json.loads(output) for output in outputs]}


def test_no_judgment_is_lost_doubled_or_surplus(environment: dict[str, str], tmp_path: Path) -> None:
    state = judge_at_once(environment, tmp_path, [f"annotator{n}" for n in range(NUM_PROCESSES)])

    acknowledged = [pk for keys in state["acknowledged"] for pk in keys.values()]
    counted = Counter(judgment["comparison"] for judgment in state["judgments"] if not judgment["is_extra"])
    pairs = [(judgment["comparison"], judgment["annotator"]) for judgment in state["judgments"]]
    assert sorted(acknowledged) == sorted(judgment["pk"] for judgment in state["judgments"])
    assert len(set(pairs)) == len(pairs)
    assert counted == {comparison["pk"]: OVERLAP for comparison in state["comparisons"]}
    assert {(row["num_taken"], row["num_wanted"]) for row in state["comparisons"]} == {(OVERLAP, OVERLAP)}
    assert len(state["comparisons"]) == NUM_COMPARISONS
    assert state["leases"] == 0


def test_one_annotator_in_several_tabs_judges_each_comparison_once(environment: dict[str, str], tmp_path: Path) -> None:
    state = judge_at_once(environment, tmp_path, ["anna", "anna", "anna", "boris", "boris", "boris"])

    stored = {judgment["pk"] for judgment in state["judgments"]}
    assert {pk for keys in state["acknowledged"] for pk in keys.values()} == stored
    assert len(stored) == NUM_COMPARISONS * OVERLAP
    assert len({(judgment["comparison"], judgment["annotator"]) for judgment in state["judgments"]}) == len(stored)
    assert {row["num_taken"] for row in state["comparisons"]} == {OVERLAP}
    assert state["leases"] == 0


@pytest.mark.parametrize("environment", ["postgresql"], indirect=True)
def test_who_finds_the_last_comparison_taken_waits_whether_it_stays_open(
    environment: dict[str, str], tmp_path: Path
) -> None:
    import_comparisons(environment, tmp_path, 1)
    with psycopg.connect(environment["DATABASE_URL"]) as other:
        other.execute("SELECT id FROM annotate_comparison FOR NO KEY UPDATE")
        judging = start_judging(environment, "anna", 0)
        with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as watcher:
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            while watcher.execute(waiting).fetchone() == (0,):
                assert judging.poll() is None, "it gave up instead of waiting"
                time.sleep(0.05)
        other.rollback()
    assert len(json.loads(judging.communicate(timeout=60)[0])) == 1
