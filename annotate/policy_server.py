"""Policies trained here, answering over OpenAI's protocol: `transformers serve` as a child of the live worker.

It starts when a policy is asked for the first time, listens on this machine only, loads a policy when it is asked
for and unloads it when it has been idle. It dies with its worker.
"""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

from django.conf import settings

START_SECONDS = 120  # loading torch on a busy machine
_starting = threading.Lock()
_server: "tuple[subprocess.Popen[bytes], str] | None" = None


class NoPolicyServer(Exception):
    """The server did not come up; the message says why."""


def base_url() -> str:
    """Where the policies answer; starts the server unless it runs.

    Raises:
        NoPolicyServer: it does not start.
    """
    global _server  # noqa: PLW0603 -- one server for each worker process
    with _starting:
        if _server is None or _server[0].poll() is not None:
            _server = _start()
        return _server[1]


def _start() -> "tuple[subprocess.Popen[bytes], str]":
    port = _free_port()
    program = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1", "--port", str(port)]
    tether = [sys.executable, str(settings.BASE_DIR / "config" / "tether.py"), str(os.getpid())]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    process = subprocess.Popen(
        [*tether, *program], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=None
    )
    deadline = time.monotonic() + START_SECONDS
    while not _answers(port):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise NoPolicyServer("`transformers serve` does not start; the worker's log says why.")
        time.sleep(0.2)
    return process, f"http://127.0.0.1:{port}/v1"


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
