"""`make up` for real: what it prints, what it keeps, how it ends, what it starts again; and the container files."""

import contextlib
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from config.home import BASE_DIR
from tests.installation import Installation

SECONDS = 15  # to stop, and for what was killed to start again
PROCESSES = {
    "redis": "redis-server ",
    "web": "bin/gunicorn ",
    "worker": "bin/celery .* worker@",
    "trainer": "bin/celery .* trainer@",
    "live": "bin/celery .* live@",
    "beat": "bin/celery .* beat ",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("home"), PLUMBLINE_DEMO="0")
    try:
        installation.start()
        yield installation
    finally:
        installation.stop()


@pytest.fixture
def stopped(shared: Installation) -> Iterator[Installation]:
    """An installation that was started before, and is stopped; a test may start it and break it."""
    shared.stop()
    yield shared
    shared.stop()


def parts_without_answer(installation: Installation) -> str:
    command = [sys.executable, "-m", "config.ready", "web", "redis", "worker", "trainer", "live"]
    environment = installation.environment
    done = subprocess.run(command, cwd=BASE_DIR, env=environment, capture_output=True, text=True, check=False)
    return done.stderr


@pytest.mark.slow
def test_first_start_prints_the_accounts_and_last_where_it_answers(installation):
    passwords = installation.accounts
    assert list(passwords) == ["admin", "staff", "annotator"]
    assert len(set(passwords.values())) == 3
    assert installation.lines[-5:] == [
        f"First start. These accounts were made; {installation.home}/accounts.txt keeps them:",
        f"  admin      {passwords['admin']}  (administrator)",
        f"  staff      {passwords['staff']}  (ML staff)",
        f"  annotator  {passwords['annotator']}  (annotator)",
        f"Plumbline is ready: {installation.base_url}/",
    ]


@pytest.mark.slow
def test_all_that_is_kept_is_for_its_owner_only(installation):
    kept = [path for path in installation.home.iterdir() if path.name != "static"]
    assert [path.name for path in kept if path.stat().st_mode & 0o077] == []
    assert stat.S_IMODE((installation.home / "accounts.txt").stat().st_mode) == 0o600


@pytest.mark.slow
@pytest.mark.parametrize(("username", "sees_admin"), [("admin", True), ("staff", True), ("annotator", False)])
def test_the_accounts_log_in(installation, username, sees_admin):
    browser = installation.logged_in(username)
    with browser.open(f"{installation.base_url}/admin/") as page:
        assert (page.url == f"{installation.base_url}/admin/") is sees_admin


@pytest.mark.slow
def test_second_start_prints_one_line_and_finds_everything(stopped):
    passwords = stopped.accounts
    stopped.start()
    assert stopped.accounts == passwords
    stopped.logged_in("annotator")
    assert stopped.lines == [f"Plumbline is ready: {stopped.base_url}/"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to_group"),
    [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGTERM, False), (signal.SIGHUP, True)],
    ids=["Ctrl-C", "SIGTERM to all", "SIGTERM to make", "terminal closed"],
)
def test_stop_leaves_no_process(stopped, number, to_group):
    stopped.start()
    assert {name for name, word in PROCESSES.items() if stopped.processes(word)} == set(PROCESSES)
    stopped.send(number, to_group=to_group)
    stopped.process.wait(SECONDS)
    assert stopped.processes() == []


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.3, 0.9, 1.2, 1.5, 1.8, 2.4])
def test_stop_while_starting_leaves_no_process(stopped, delay):
    stopped.start(wait=False)
    time.sleep(delay)
    stopped.send(signal.SIGTERM, to_group=False)
    stopped.process.wait(SECONDS)
    assert stopped.processes() == []


@pytest.mark.slow
def test_what_is_killed_starts_again(stopped):
    stopped.start()
    killed = [process for word in PROCESSES.values() for process in stopped.processes(word)]
    for process in killed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    stopped.wait_until(lambda: all(stopped.processes(word) for word in PROCESSES.values()), SECONDS)
    stopped.wait_until(lambda: parts_without_answer(stopped) == "", 4 * SECONDS)


@pytest.mark.slow
def test_start_after_everything_was_killed(stopped):
    stopped.start()
    stopped.kill()
    stopped.start()
    assert parts_without_answer(stopped) == ""


@pytest.mark.slow
def test_second_start_of_a_running_installation_is_refused(stopped):
    stopped.start()
    assert (
        refused(stopped, PORT="1")
        == f"Plumbline is already running on {stopped.home} (its Redis answers). Stop that one first."
    )


@pytest.mark.slow
def test_taken_port_is_said_at_once(stopped):
    with socket.create_server(("127.0.0.1", stopped.port)):
        said = refused(stopped)
    assert said == f"Port {stopped.port} on 127.0.0.1 is taken. Choose another one: make up PORT=8001"


def refused(installation: Installation, **environment: str) -> str:
    """What `make up` says when it does not start."""
    done = subprocess.run(
        ["make", "--no-print-directory", "up"],
        cwd=BASE_DIR,
        env={**installation.environment, **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    return done.stderr.splitlines()[0]
