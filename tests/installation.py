"""A whole installation for a test: `make up` in a home of its own, on a free port, with every real process."""

import contextlib
import http.cookiejar
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

from config.home import BASE_DIR

OURS = (
    "PLUMBLINE_",
    "DATABASE_URL",
    "REDIS_URL",
    "SECRET_KEY",
    "DJANGO_SETTINGS_MODULE",
    "HOST",
    "PORT",
    "MAKE",
    "MFLAGS",
)
READY_SECONDS = 120


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Installation:
    """One `PLUMBLINE_HOME`, which can be started and stopped again and again.

    `lines` is what `make up` has printed since the last start.
    """

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self.port = free_port()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        self.environment = {**inherited, "PLUMBLINE_HOME": str(home), "PORT": str(self.port), **environment}
        self.lines: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def accounts(self) -> dict[str, str]:
        """Passwords by user name: admin, staff, annotator."""
        lines = (self.home / "accounts.txt").read_text().splitlines()
        return {line.split()[0]: line.split()[1] for line in lines}

    def start(self, *, wait: bool = True) -> None:
        """Run `make up` in a process group of its own, as a shell does."""
        self.lines = []
        self.process = subprocess.Popen(
            ["make", "--no-print-directory", "up"],
            cwd=BASE_DIR,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        if wait:
            self.wait_until(lambda: self.is_ready, READY_SECONDS)

    def _read(self) -> None:
        with self.process.stdout as output:
            self.lines.extend(line.rstrip("\n") for line in output)

    @property
    def is_ready(self) -> bool:
        return f"Plumbline is ready: {self.base_url}/" in self.lines

    def wait_until(self, condition, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, "\n".join(self.lines)
            assert time.monotonic() < deadline, "\n".join(self.lines)
            time.sleep(0.05)

    def send(self, number: int, *, to_group: bool) -> None:
        (os.killpg if to_group else os.kill)(self.process.pid, number)

    def stop(self) -> None:
        """End `make up` by SIGTERM, and whatever should be left over by SIGKILL."""
        if self.process is not None:
            if self.process.poll() is None:
                self.send(signal.SIGTERM, to_group=False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            self.kill()

    def kill(self) -> None:
        """SIGKILL to everything, as when the power fails; until nothing has been started meanwhile."""
        while processes := self.processes():
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=1)
        if self.process is not None:
            self.process.wait(5)
            self.reader.join(5)

    def processes(self, pattern: str = "") -> list[psutil.Process]:
        """Everything alive with this home in its environment (or its arguments: Redis overwrites its environment)
        and `pattern` in its command line."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                is_ours = process.environ().get("PLUMBLINE_HOME") == str(self.home) or f"{self.home}/" in line
                if is_ours and re.search(pattern, line):
                    found.append(process)
        return found

    def run(self, *arguments: str) -> str:
        """What `manage.py` prints when it is run with this installation's environment."""
        command = [sys.executable, "manage.py", *arguments]
        done = subprocess.run(command, cwd=BASE_DIR, env=self.environment, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def logged_in(self, username: str) -> urllib.request.OpenerDirector:
        """A browser without JavaScript that has logged in through the form."""
        cookies = http.cookiejar.CookieJar()
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))
        browser.open(f"{self.base_url}/login/").close()
        token = next(cookie.value for cookie in cookies if cookie.name == "csrftoken")
        form = {"username": username, "password": self.accounts[username], "csrfmiddlewaretoken": token}
        browser.open(f"{self.base_url}/login/", urllib.parse.urlencode(form).encode()).close()
        return browser


@contextlib.contextmanager
def running(home: Path, *, demonstration: bool = False) -> Iterator[Installation]:
    """A started installation; with the demonstration and its first training run only where that is asked for."""
    installation = Installation(home, PLUMBLINE_DEMO="1" if demonstration else "0")
    try:
        installation.start()
        yield installation
    finally:
        installation.stop()
