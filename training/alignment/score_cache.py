"""Scores that were computed once, kept in one SQLite file for all runs, so that none is computed or paid for twice.

A score is found again by all that it depends on: the reward's digest, the aspect, the prompt and the response. The
first score that is stored for a key stays. What could not be scored is never stored, and is asked for again.

Any number of processes and threads may read and write the file at a time. A process may be killed at any moment: what
`put` has returned from is kept, and of what is on its way all or nothing. A machine that loses power may lose the last
seconds, and nothing else. The file's folder must be local, as the processes share memory by SQLite's write-ahead log.
"""

import hashlib
import math
import os
import sqlite3
import struct
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import Lock

from training.alignment.preferences import Messages, PromptedResponses
from training.alignment.reward import Reward, Scored

TIMEOUT = 60.0  # seconds to wait while others write
NUM_KEYS = 500  # in one query; SQLite may be built to take no more than 999
NUM_PROMPTS = 256  # scored before their scores are stored

Value = tuple[float, ...]


class ScoreCache:
    """A table of keys and tuples of numbers in a file.

    Any thread may use it, and after a fork the child too, which then has a connection of its own.

    Raises:
        sqlite3.DatabaseError: the file is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()
        self._connections: dict[int, sqlite3.Connection] = {}  # of this process, and of those that it was forked from
        weakref.finalize(self, _close, self._connections)
        with self._connect() as database:
            _use_log(database)
            database.execute(
                "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
            )

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Value]:
        """What is known of these keys."""
        found: dict[bytes, Value] = {}
        rest = iter(keys)
        with self._connect() as database:
            while some := list(islice(rest, NUM_KEYS)):
                places = ", ".join("?" * len(some))
                rows = database.execute(f"SELECT key, value FROM scores WHERE key IN ({places})", some)  # noqa: S608 -- question marks
                found.update((key, struct.unpack(f"<{len(value) // 8}d", value)) for key, value in rows)
        return found

    def put(self, found: Mapping[bytes, Sequence[float]]) -> None:
        """Store these, all or none, but those with a number that is not finite; what is known already stays."""
        rows = (
            (key, struct.pack(f"<{len(value)}d", *value))
            for key, value in found.items()
            if all(math.isfinite(number) for number in value)
        )
        with self._connect() as database, database:  # which commits, or takes back
            database.execute("BEGIN IMMEDIATE")  # waits for its turn here, where nothing can be lost
            database.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?)", rows)

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            database = self._connections.get(os.getpid())
            if database is None:
                database = sqlite3.connect(self.path, TIMEOUT, isolation_level=None, check_same_thread=False)
                self._connections[os.getpid()] = database
                database.execute("PRAGMA synchronous = NORMAL")  # the disk is waited for by checkpoints only
            yield database


def _close(connections: dict[int, sqlite3.Connection]) -> None:
    """SQLite wants a connection closed by the process that has opened it."""
    if database := connections.pop(os.getpid(), None):
        database.close()


def _use_log(database: sqlite3.Connection) -> None:
    """Where several processes begin with a new file, SQLite does not wait for its turn by itself."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def score_key(digest: str, aspect: str, prompt: Messages, *responses: str) -> bytes:
    """32 bytes that tell the inputs of a score from all others, in the order in which they are given.

    Args:
        digest: of the reward.
        responses: one, or those that a reward scores together.
    """
    turns = [part for message in prompt for part in (message["role"], message["content"])]
    digester = hashlib.sha256()
    for parts in ([digest, aspect], turns, responses):
        digester.update(len(parts).to_bytes(8))
        for part in parts:
            data = part.encode("utf-8", "surrogatepass")
            digester.update(len(data).to_bytes(8))
            digester.update(data)
    return digester.digest()


class Cached:
    """A reward that asks another one only for what is not in the cache, and stores what that one answers.

    Equal responses to equal prompts are asked for once, and each response by itself, so that the other reward tells of
    each whether it was truncated. Such rewards batch and share prompts over all that one call asks for.

    Raises:
        ValueError: the reward scores lists, so a response has no score of its own.
    """

    def __init__(self, reward: Reward, cache: ScoreCache) -> None:
        if reward.is_listwise:
            raise ValueError("a score that depends on the other responses cannot be kept by response")
        self.reward, self.cache = reward, cache

    is_listwise = False

    @property
    def digest(self) -> str:
        return self.reward.digest

    @property
    def aspects(self) -> tuple[str, ...]:
        return self.reward.aspects

    def log_odds(self, aspect: str | None = None) -> float:
        return self.reward.log_odds(aspect)

    def score_prompts(self, prompts: Sequence[PromptedResponses], aspect: str | None = None) -> list[Scored]:
        """The scores of all prompts' responses, computed now or before."""
        found: list[Scored] = []
        for start in range(0, len(prompts), NUM_PROMPTS):
            found += self._score_chunk(prompts[start : start + NUM_PROMPTS], aspect)
        return found

    def _score_chunk(self, prompts: Sequence[PromptedResponses], aspect: str | None) -> list[Scored]:
        keys = [[self._key(one, text, aspect) for text in one.responses] for one in prompts]
        wanted = {
            key: PromptedResponses(one.prompt, (text,), one.id)
            for one, own in zip(prompts, keys, strict=True)
            for key, text in zip(own, one.responses, strict=True)
        }
        known = self.cache.get(list(wanted))
        if unknown := [one for key, one in wanted.items() if key not in known]:
            computed = self._compute(unknown, aspect)
            self.cache.put(computed)
            known |= computed
        return [Scored([known[key][0] for key in own], sum(round(known[key][1]) for key in own)) for own in keys]

    def _compute(self, asked: Sequence[PromptedResponses], aspect: str | None) -> dict[bytes, Value]:
        """What the reward answers about single responses; of all aspects, where it computes them together."""
        together = getattr(self.reward, "score_aspects", None)
        if together is None or aspect not in self.aspects:
            names: list[str | None] = [aspect] * len(asked)
            answers = self.reward.score_prompts(asked, aspect)
        else:
            names = [name for name in self.aspects for _ in asked]
            asked = [*asked] * len(self.aspects)
            answers = together(asked, names)
        return {
            self._key(one, one.responses[0], name): (answer.scores[0], float(answer.num_truncated))
            for one, name, answer in zip(asked, names, answers, strict=True)
        }

    def _key(self, prompted: PromptedResponses, response: str, aspect: str | None) -> bytes:
        """A reward of one aspect judges by it whatever it is asked for."""
        name = self.aspects[0] if len(self.aspects) == 1 else aspect or ""
        return score_key(self.digest, name, prompted.prompt, response)
