"""Annotators judging pairs through the web server over loopback, as Label Studio 1.23 was measured.

Every annotator has an account, a session and a CSRF token as in the browser, asks for the first comparison, and then
submits: the answer to a submit brings the next comparison along, leased. The load generator runs on the same two
cores. Afterwards the database is asked whether any judgment is surplus, doubled or lost.

The peer's figures are those of Label Studio on two such cores with 20,000 tasks and gunicorn (PostgreSQL) or its own
server (SQLite); it is not run again here, since it installs a gigabyte. PostgreSQL is measured where
PLUMBLINE_TEST_POSTGRES is the URL of a server's database, beside which the benchmark makes its own.
"""

import asyncio
import json
import os
import random
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations, islice, repeat
from pathlib import Path
from typing import Any

from bench.run import Row
from config.home import BASE_DIR

POSTGRES = os.environ.get("PLUMBLINE_TEST_POSTGRES", "")
SIZES = [int(size) for size in os.environ.get("PLUMBLINE_BENCH_SIZES", "1000,100000,1000000").split(",")]
NUM_PROMPTS = 10_000  # beyond so many comparisons, several share a prompt: texts are not what is measured
SECONDS, THINKING_SECONDS = 20, 60
MAX_JUDGMENTS = 700  # in one cell, so that the smallest project does not run out
PEER = {"postgresql": (8.2, 4346.0), "sqlite": (1.5, 7360.0)}  # judgments/s, ms at p99 of a submit, 32 annotators
PEER_THINKING = {"postgresql": 541.0, "sqlite": 1682.0}  # ms at p99, 32 annotators at 20 s
SECRET = "b" * 32


@dataclass
class Figures:
    """What the annotators saw: milliseconds of every request, and the keys of acknowledged judgments."""

    milliseconds: list[float] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        return len(self.acknowledged) / self.seconds

    def percentile(self, share: float) -> float:
        ordered = sorted(self.milliseconds)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def run() -> Iterator[Row]:
    for database in ("postgresql", "sqlite"):
        if database == "postgresql" and not POSTGRES:
            print("  PostgreSQL skipped: PLUMBLINE_TEST_POSTGRES names no server")
            continue
        yield from measure(database)


def measure(database: str) -> Iterator[Row]:
    p99: dict[int, float] = {}
    per_second, peer_p99 = PEER[database]
    aim = {"postgresql": 100, "sqlite": 60}[database]
    for size in SIZES:
        with serving(database, size, 300) as (port, sessions, state):
            asyncio.run(judge(port, sessions[:4], 0, 3))  # warm
            figures = asyncio.run(judge(port, sessions[:32], 0, SECONDS))
            report(figures, f"{database}, {size:,} comparisons, 32 annotators", state(figures.acknowledged))
            p99[size] = figures.percentile(0.99)
            name = f"{database}, {size:,} comparisons, 32 annotators without thinking time"
            yield Row(
                name, figures.per_second, per_second, "judgments/s", figures.per_second / per_second, aim / per_second
            )
            yield Row(f"{name}, submit p99", p99[size], peer_p99, "ms", peer_p99 / p99[size], 1)
            if size == SIZES[len(SIZES) // 2]:
                crowd = {"postgresql": 300, "sqlite": 50}[database]
                figures = asyncio.run(judge(port, sessions[:crowd], 20, THINKING_SECONDS))
                report(
                    figures,
                    f"{database}, {size:,} comparisons, {crowd} annotators at 20 s",
                    state(figures.acknowledged),
                )
                ours, theirs = figures.percentile(0.99), PEER_THINKING[database]
                yield Row(
                    f"{database}, {crowd} annotators at 20 s, p99", ours, theirs, "ms", theirs / ours, theirs / 100
                )
    largest, smallest = p99[max(p99)], p99[min(p99)]
    yield Row(
        f"{database}, p99 at {max(p99):,} over p99 at {min(p99):,}",
        largest,
        smallest,
        "ms",
        smallest / largest,
        1 / 1.3,
    )


def report(figures: Figures, name: str, state: dict[str, int]) -> None:
    print(
        f"  {name}: {figures.per_second:.1f} judgments/s, p50 {figures.percentile(0.5):.0f} ms, "
        f"p99 {figures.percentile(0.99):.0f} ms, {len(figures.errors)} errors {figures.errors[:2]}; "
        f"in the database: {state}",
        flush=True,
    )


# The installation under load


@contextmanager
def serving(database: str, size: int, num_annotators: int) -> Iterator[tuple[int, list[str], Any]]:
    """The web server over a fresh database of `size` comparisons: its port, session keys, and a count of faults."""
    port = 20_000 + secrets.randbelow(10_000)
    with tempfile.TemporaryDirectory() as folder, database_url(database) as url:
        environment = {name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "REDIS_URL"}}
        environment |= {"PLUMBLINE_HOME": folder, "PORT": str(port), "DJANGO_SETTINGS_MODULE": "config.settings", **url}
        manage = [sys.executable, "manage.py"]
        for arguments in (["migrate", "-v0"], ["collectstatic", "--noinput", "-v0"]):
            subprocess.run([*manage, *arguments], env=environment, cwd=BASE_DIR, check=True)
        sessions = json.loads(inside(environment, "prepare", size, num_annotators))
        command = [str(Path(sys.executable).with_name("gunicorn")), "--config", "config/gunicorn.py"]
        server = subprocess.Popen(command, env=environment, cwd=BASE_DIR)
        try:
            asyncio.run(wait_for(port))
            yield port, sessions, lambda keys: json.loads(inside(environment, "faults", said=json.dumps(keys)))
        finally:
            server.terminate()
            server.wait()


@contextmanager
def database_url(database: str) -> Iterator[dict[str, str]]:
    if database == "sqlite":
        yield {}
        return
    import psycopg

    name = f"plumbline_bench_{secrets.token_hex(4)}"
    with psycopg.connect(POSTGRES, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        try:
            yield {"DATABASE_URL": f"{POSTGRES.rpartition('/')[0]}/{name}"}
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[call-overload]


def inside(environment: dict[str, str], *arguments: object, said: str = "") -> str:
    """What this module's own command prints in the environment of the installation."""
    command = [sys.executable, "-m", "bench.annotation_load", *map(str, arguments)]
    told: Any = {"env": environment, "cwd": BASE_DIR, "input": said, "stdout": subprocess.PIPE, "text": True}
    return str(subprocess.run(command, check=True, **told).stdout)


def prepare(size: int, num_annotators: int) -> list[str]:
    """Fill an empty database; returns the session keys of its annotators."""
    from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
    from django.contrib.auth.models import User
    from django.contrib.sessions.backends.db import SessionStore
    from django.db import connection, transaction

    from annotate.models import Project

    project = Project.objects.create(name="load", guidelines="Which answer helps more?")
    with transaction.atomic():
        fill(project.pk, size)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    sessions = []
    for number in range(num_annotators):
        user = User.objects.create(username=f"annotator{number}")
        session = SessionStore()
        session[SESSION_KEY], session[BACKEND_SESSION_KEY] = str(user.pk), "django.contrib.auth.backends.ModelBackend"
        session[HASH_SESSION_KEY] = user.get_session_auth_hash()
        session.save()
        sessions.append(str(session.session_key))
    return sessions


def fill(project_id: int, size: int) -> None:
    """Prompts of 30 words; comparisons of two answers of 100 words, in the proportion of NUM_PROMPTS."""
    from annotate.insert import insert
    from annotate.models import Comparison, Option, Prompt, Response

    words = (
        "water",
        "boils",
        "heat",
        "the",
        "pan",
        "egg",
        "seven",
        "minutes",
        "salt",
        "cook",
        "slowly",
        "until",
        "soft",
    )
    rng = random.Random(0)
    num_prompts = min(size, NUM_PROMPTS)
    num_each = -(-size // num_prompts)
    num_responses = next(k for k in range(2, 100) if k * (k - 1) // 2 >= num_each)
    texts = [" ".join(rng.choices(words, k=100)) for _ in range(200)]
    questions = [[{"role": "user", "content": " ".join(rng.choices(words, k=30))}] for _ in range(num_prompts)]
    names = ("project", "messages", "digest")
    prompts = insert(Prompt, names, [(project_id, messages, f"{n:064x}") for n, messages in enumerate(questions)])
    answers = [(prompt, rng.choice(texts), f"{n:064x}") for prompt in prompts for n in range(num_responses)]
    responses = insert(Response, ("prompt", "content", "digest"), answers)
    pairs = [
        (prompt, pair)
        for place, prompt in enumerate(prompts)
        for pair in islice(combinations(responses[place * num_responses : (place + 1) * num_responses], 2), num_each)
    ][:size]
    for start in range(0, size, 20_000):
        chunk = pairs[start : start + 20_000]
        rows = [(project_id, prompt, f"{start + n:064x}", 2) for n, (prompt, _pair) in enumerate(chunk)]
        comparisons = insert(Comparison, ("project", "prompt", "digest", "num_responses"), rows)
        options = [
            (comparison, response, position)
            for comparison, (_prompt, pair) in zip(comparisons, chunk, strict=True)
            for position, response in enumerate(pair)
        ]
        insert(Option, ("comparison", "response", "position"), options)


def faults() -> dict[str, int]:
    """Judgments as the database holds them, and how many of them break a promise; standard input names those that
    were acknowledged."""
    from django.db.models import Count, F

    from annotate.models import Comparison, Judgment

    judged = Comparison.objects.annotate(num=Count("judgments")).filter(num__gt=F("num_wanted"))
    twice = Judgment.objects.values("comparison", "annotator").annotate(num=Count("pk")).filter(num__gt=1)
    stored = {str(key) for key in Judgment.objects.values_list("key", flat=True)}
    lost = [key for key in json.load(sys.stdin) if key not in stored]
    return {"judgments": len(stored), "surplus": judged.count(), "doubled": twice.count(), "lost": len(lost)}


# The annotators


async def wait_for(port: int) -> None:
    for _ in range(300):
        try:
            _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return
    raise TimeoutError("the web server does not listen")


async def judge(port: int, sessions: list[str], thinking: float, seconds: float) -> Figures:
    """Let the annotators of these sessions judge for so long; `thinking` is the mean time between two requests."""
    figures = Figures()
    budget = iter(repeat(None, MAX_JUDGMENTS if not thinking else 10**9))
    start = time.perf_counter()
    end = start + seconds
    await asyncio.gather(*(Annotator(port, key, figures).work(thinking, end, budget) for key in sessions))
    figures.seconds = time.perf_counter() - start
    return figures


class Annotator:
    """One account at one browser, on one connection as long as the server keeps it."""

    def __init__(self, port: int, session: str, figures: Figures) -> None:
        self.port, self.session, self.figures = port, session, figures
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def work(self, thinking: float, end: float, budget: Iterator[None]) -> None:
        rng = random.Random(self.session)
        if thinking:
            await asyncio.sleep(rng.uniform(0, thinking))
        page = await self.timed("/projects/1/next/", "")
        while time.perf_counter() < end and next(budget, 0) is None:
            if thinking:
                await asyncio.sleep(rng.uniform(0.5, 1.5) * thinking)
            found = re.search(rb'name="key" value="([^"]+)"', page)
            number = re.search(rb"/comparisons/(\d+)/", page)
            if not found or not number:
                self.figures.errors.append(f"no comparison: {page[:80]!r}")
                break
            verdict = rng.choice(("a-strongly", "a-slightly", "tie", "b-slightly"))
            key = found[1].decode()
            page = await self.timed(
                f"/comparisons/{int(number[1])}/", f"key={key}&verdict={verdict}&seconds=3.5&total_seconds=4"
            )
            if page:
                self.figures.acknowledged.append(key)
        if self.streams:
            self.streams[1].close()

    async def timed(self, path: str, body: str) -> bytes:
        start = time.perf_counter()
        status, page = await self.post(path, body)
        self.figures.milliseconds.append(1000 * (time.perf_counter() - start))
        if status != 200:
            self.figures.errors.append(f"{status} {path} {page[:80]!r}")
            return b""
        return page

    async def post(self, path: str, body: str) -> tuple[int, bytes]:
        request = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nHX-Request: true\r\n"
            f"Cookie: sessionid={self.session}; csrftoken={SECRET}\r\nX-CSRFToken: {SECRET}\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        for _ in range(2):  # the server may have closed a connection that was kept
            reader, writer = self.streams or await asyncio.open_connection("127.0.0.1", self.port)
            self.streams = (reader, writer)
            try:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                self.streams = None
                continue
            length = re.search(rb"(?i)content-length: (\d+)", head)
            page = await reader.readexactly(int(length[1])) if length else b""
            if b"connection: close" in head.lower():
                self.streams = None
            return int(head.split(b" ", 2)[1]), page
        return 0, b""


if __name__ == "__main__":
    import django

    django.setup()
    if sys.argv[1] == "prepare":
        sys.stdout.write(json.dumps(prepare(int(sys.argv[2]), int(sys.argv[3]))))
    else:
        sys.stdout.write(json.dumps(faults()))
