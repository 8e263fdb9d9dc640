"""Who answers: `python -m config.ready` waits for everything, then says so in one line.

`python -m config.ready worker` asks once, for a health check: status 0 if that part answers. Workers and beat count
as connected when Redis lists a connection of their name (see config/celery.py), so that a worker which is busy for
an hour still counts. Without Django: the answer must cost next to nothing.
"""

import http.client
import os
import socket
import sys
import time
from collections.abc import Iterable
from typing import Any

import redis

from config.home import HOME, redis_url

HOST = os.environ.get("HOST", "127.0.0.1")
PORT = os.environ.get("PORT", "8000")
REACHED_BY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 -- who listens everywhere is reached here
PARTS = ("web", "redis", "worker", "trainer", "live")
NOTICE_SECONDS = 15


def url() -> str:
    return f"http://{f'[{HOST}]' if ':' in HOST else HOST}:{PORT}/"


def is_web_answering() -> bool:
    connection = http.client.HTTPConnection(REACHED_BY.get(HOST, HOST), int(PORT), timeout=5)
    try:
        connection.request("GET", "/login/")
        return connection.getresponse().status < http.HTTPStatus.INTERNAL_SERVER_ERROR
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def redis_clients() -> list[dict[str, Any]] | None:
    """Redis's connections to our database, or None when it does not answer."""
    address = redis_url().replace("redis+socket://", "unix://", 1)
    with redis.Redis.from_url(address, decode_responses=True, socket_timeout=5) as client:
        try:
            database = str(client.connection_pool.connection_kwargs.get("db") or 0)
            return [row for row in client.client_list() if row["db"] == database]
        except redis.ConnectionError:
            return None


def is_answering(part: str) -> bool:
    if part == "web":
        return is_web_answering()
    clients = redis_clients()
    if clients is None:
        return False
    return part == "redis" or f"{part}@{socket.gethostname()}" in {client["name"] for client in clients}


def missing(parts: Iterable[str] = PARTS) -> list[str]:
    """Those of `parts` that do not answer."""
    return [part for part in parts if not is_answering(part)]


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 -- what this module is for


def wait() -> None:
    """Return when every part answers; say now and then which one does not."""
    noticed = time.monotonic()
    while silent := missing():
        if time.monotonic() - noticed > NOTICE_SECONDS:
            noticed = time.monotonic()
            say(f"Still waiting for {', '.join(silent)}. Redis keeps its log in {HOME / 'redis'}.")
        time.sleep(0.2)


def main() -> None:
    if parts := sys.argv[1:]:
        sys.exit(f"No answer from {', '.join(silent)}." if (silent := missing(parts)) else 0)
    wait()
    say(f"Plumbline is ready: {url()}")


if __name__ == "__main__":
    main()
