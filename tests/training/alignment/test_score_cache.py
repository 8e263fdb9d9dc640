import math
import multiprocessing
import os
import signal
import sqlite3
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import permutations

import pytest

from training.alignment import score_cache
from training.alignment.preferences import PromptedResponses
from training.alignment.reward import Scored
from training.alignment.score_cache import Cached, ScoreCache, score_key

NUM_TOGETHER = 40


def key(number: int) -> bytes:
    return number.to_bytes(32)


def asking(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def prompted(prompt: str, *responses: str) -> PromptedResponses:
    return PromptedResponses(asking(prompt), responses, prompt)


@pytest.fixture
def cache(tmp_path) -> ScoreCache:
    return ScoreCache(tmp_path / "home" / "scores.sqlite3")


# The file


def test_what_was_put_is_got(cache):
    cache.put({key(1): (0.1, 2.0), key(2): (), key(3): (-1e300, 5e-324)})

    assert cache.get([key(3), key(2), key(1), key(9), key(1)]) == {
        key(1): (0.1, 2.0),
        key(2): (),
        key(3): (-1e300, 5e-324),
    }
    assert ScoreCache(cache.path).get([key(1)]) == {key(1): (0.1, 2.0)}
    assert cache.get([]) == {}


def test_what_is_not_finite_is_not_kept(cache):
    cache.put({key(1): (math.nan, 0.0), key(2): (1.0, math.nan), key(3): (math.inf,), key(4): (4.0,)})

    assert cache.get([key(number) for number in range(9)]) == {key(4): (4.0,)}


def test_the_first_score_stays(cache):
    cache.put({key(1): (1.0,)})
    cache.put({key(1): (2.0,), key(2): (2.0,)})

    assert cache.get([key(1), key(2)]) == {key(1): (1.0,), key(2): (2.0,)}


def test_more_keys_than_a_query_takes(cache):
    num_keys = 3 * score_cache.NUM_KEYS + 1
    cache.put({key(number): (float(number),) for number in range(0, num_keys, 2)})

    found = cache.get([key(number) for number in range(num_keys)])

    assert found == {key(number): (float(number),) for number in range(0, num_keys, 2)}


def test_the_file_is_kept_as_it_is_documented(cache):
    cache.put({key(1): (1.5, 0.0)})

    with closing(sqlite3.connect(cache.path)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("SELECT * FROM scores").fetchall() == [(key(1), struct.pack("<2d", 1.5, 0.0))]


def test_another_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "scores.sqlite3"
    path.write_text("This is no database, and long enough to tell. " * 100)

    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        ScoreCache(path)


def test_of_what_cannot_be_stored_nothing_is(cache):
    with pytest.raises(TypeError):
        cache.put({key(1): (1.0,), key(2): ("two",)})
    cache.put({key(3): (3.0,)})

    assert cache.get([key(1), key(2), key(3)]) == {key(3): (3.0,)}
    assert ScoreCache(cache.path).get([key(1), key(2), key(3)]) == {key(3): (3.0,)}


def test_many_threads_use_one_cache(cache):
    def work(number: int) -> int:
        for start in range(0, 100, 5):
            cache.put({key(100 * number + start + offset): (float(number),) for offset in range(5)})
        return len(cache.get([key(100 * number + place) for place in range(100)]))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [100] * 8


# Several processes


@pytest.fixture(scope="module")
def processes():
    """Processes that are forked from one that has loaded this module and has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def write_same_keys(path, number: int, is_ready, errors) -> None:
    """All processes make the file, and write the same keys in the same order, each its own values."""
    is_ready.wait()
    try:
        cache = ScoreCache(path)
        for start in range(0, 600, 20):
            cache.put({key(start + offset): (float(number),) * 2 for offset in range(20)})
            if len(cache.get([key(start + offset) for offset in range(20)])) < 20:
                raise RuntimeError(f"{number} does not find what it has put")
    except Exception as error:
        errors.put(repr(error))


def test_several_processes_write_the_same_keys(processes, tmp_path):
    errors, is_ready = processes.SimpleQueue(), processes.Event()
    path = tmp_path / "scores.sqlite3"
    writers = [processes.Process(target=write_same_keys, args=(path, number, is_ready, errors)) for number in range(4)]
    for writer in writers:
        writer.start()
    is_ready.set()
    for writer in writers:
        writer.join()

    assert (errors.empty(), [writer.exitcode for writer in writers]) == (True, [0] * 4)
    found = ScoreCache(path).get([key(number) for number in range(600)])
    assert len(found) == 600
    assert all(value in {(float(number),) * 2 for number in range(4)} for value in found.values())


def write_before_and_after_a_fork(path) -> None:
    cache = ScoreCache(path)
    cache.put({key(1): (1.0,)})
    child = os.fork()
    cache.put({key(2 if child else 3): (2.0,)})
    if not child:
        os._exit(0 if len(cache.get([key(1), key(3)])) == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    cache.put({key(4): (4.0,)})


def test_a_cache_serves_a_forked_child_too(processes, tmp_path):
    writer = processes.Process(target=write_before_and_after_a_fork, args=(tmp_path / "scores.sqlite3",))
    writer.start()
    writer.join()

    assert writer.exitcode == 0
    assert len(ScoreCache(tmp_path / "scores.sqlite3").get([key(number) for number in range(9)])) == 4


def write_without_end(path, told) -> None:
    cache = ScoreCache(path)
    number = 0
    while True:
        cache.put({key(number + offset): (float(number), 0.0) for offset in range(NUM_TOGETHER)})
        number += NUM_TOGETHER
        told.send(number)


@pytest.mark.parametrize("num_puts", [1, 4, 9])
def test_a_kill_loses_nothing_that_was_acknowledged_and_leaves_no_half(processes, tmp_path, num_puts):
    path = tmp_path / "scores.sqlite3"
    heard, told = processes.Pipe(duplex=False)
    writer = processes.Process(target=write_without_end, args=(path, told))
    writer.start()
    for _ in range(num_puts):
        acknowledged = heard.recv()
    writer.kill()
    writer.join()
    while heard.poll():  # told before the kill came
        acknowledged = heard.recv()

    assert writer.exitcode == -signal.SIGKILL
    found = ScoreCache(path).get([key(number) for number in range(acknowledged + 2 * NUM_TOGETHER)])
    assert len(found) in {acknowledged, acknowledged + NUM_TOGETHER}
    assert set(found) == {key(number) for number in range(len(found))}
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# Keys


def test_no_two_inputs_share_a_key():
    """Wherever the borders between the same characters are drawn."""
    inputs = [
        ("ab", "c", asking("d"), "e"),
        ("a", "bc", asking("d"), "e"),
        ("ab", "", asking("cd"), "e"),
        ("ab", "c", asking("de"), ""),
        ("ab", "c", asking("d")),
        ("ab", "c", asking("d"), "e", ""),
        ("ab", "c", asking("d"), "", "e"),
        ("ab", "c", [{"role": "system", "content": "d"}], "e"),
        ("ab", "c", [*asking("d"), {"role": "assistant", "content": "e"}]),
        ("ab", "c", [*asking(""), {"role": "user", "content": "d"}], "e"),
        ("ab", "c", [*asking("d"), {"role": "user", "content": ""}], "e"),
        ("ab", "c", [], "user", "d", "e"),
        ("ab", "c", asking("d"), "\ud800"),
        ("ab", "c", asking("d"), "\ud801"),
        ("ab", "c", asking("d"), "?"),
        *(("ab", "c", asking("d"), *some) for some in permutations(("x", "y", "xy"))),
    ]

    keys = [score_key(*some) for some in inputs]

    assert len(set(keys)) == len(keys)
    assert {len(one) for one in keys} == {32}
    assert keys == [score_key(*some) for some in inputs]


def test_a_key_stays_what_it_was():
    """Or all that was computed and paid for is lost."""
    assert score_key("0" * 64, "overall", asking("Eggs?"), "Boil them.").hex() == (
        "eef1e15047343898b7f82f351e5f294cba88f2a73b5a2fc548a12f1fe21f7167"
    )


# A reward around a reward


@dataclass
class Lengths:
    """Scores by length, truncates what is longer than five characters, and cannot read question marks."""

    digest: str = "0" * 64
    aspects: tuple[str, ...] = ("overall",)
    is_listwise: bool = False
    asked: list[tuple[str, tuple[str, ...], str | None]] = field(default_factory=list)

    def score_prompts(self, prompts, aspect=None):
        self.asked += [(one.id, one.responses, aspect) for one in prompts]
        return [
            Scored(
                [math.nan if "?" in text else float(len(text)) for text in one.responses],
                sum(len(text) > 5 for text in one.responses),
            )
            for one in prompts
        ]

    def log_odds(self, aspect=None):
        return 0.5


PROMPTS = [
    prompted("a", "one", "three", "one"),
    prompted("b", "sixteen", "", "seventeen", "no"),
    prompted("c"),
    prompted("a", "three", "one"),
]
SCORED = [
    Scored([3.0, 5.0, 3.0]),
    Scored([7.0, 0.0, 9.0, 2.0], num_truncated=2),
    Scored([]),
    Scored([5.0, 3.0]),
]


def test_a_cached_reward_answers_as_the_reward_does(cache):
    lengths = Lengths()
    cached = Cached(lengths, cache)

    assert cached.score_prompts(PROMPTS) == Lengths().score_prompts(PROMPTS) == SCORED
    assert (cached.digest, cached.aspects, cached.is_listwise, cached.log_odds()) == (
        "0" * 64,
        ("overall",),
        False,
        0.5,
    )


def test_nothing_is_computed_twice(cache):
    lengths = Lengths()

    Cached(lengths, cache).score_prompts(PROMPTS)

    once = [("a", "one"), ("a", "three"), ("b", "sixteen"), ("b", ""), ("b", "seventeen"), ("b", "no")]
    assert [(prompt, *texts) for prompt, texts, _ in lengths.asked] == once

    lengths.asked.clear()
    again = Cached(lengths, ScoreCache(cache.path)).score_prompts([*PROMPTS[::-1], prompted("a", "one", "new")])

    assert again == [*SCORED[::-1], Scored([3.0, 3.0])]
    assert [(prompt, *texts) for prompt, texts, _ in lengths.asked] == [("a", "new")]


def test_what_failed_is_missing_and_is_asked_again(cache):
    lengths = Lengths()
    cached = Cached(lengths, cache)
    for _ in range(2):
        (scored,) = cached.score_prompts([prompted("a", "one", "?", "?")])
        assert scored.scores == pytest.approx([3.0, math.nan, math.nan], nan_ok=True)

    assert [texts for _, texts, _ in lengths.asked] == [("one",), ("?",), ("?",)]


def test_rewards_and_their_aspects_are_told_apart(cache):
    first, other = (Lengths(digest=digit * 64, aspects=("helpful", "harmless")) for digit in "12")
    for lengths in (first, other):
        for aspect in (None, "helpful", "harmless", "helpful"):
            Cached(lengths, cache).score_prompts([prompted("a", "one")], aspect)
        assert [aspect for *_, aspect in lengths.asked] == [None, "helpful", "harmless"]


@dataclass
class Heads(Lengths):
    """Computes all aspects together, as a reward model with several heads does."""

    aspects: tuple[str, ...] = ("helpful", "harmless")

    def score_aspects(self, prompts, aspects):
        signs = {"helpful": 1.0, "harmless": -1.0}
        found = [self.score_prompts([one], aspect)[0] for one, aspect in zip(prompts, aspects, strict=True)]
        return [
            Scored([signs[aspect] * score for score in one.scores], one.num_truncated)
            for one, aspect in zip(found, aspects, strict=True)
        ]


def test_aspects_that_are_computed_together_are_kept_together(cache):
    heads = Heads()
    cached = Cached(heads, cache)

    assert cached.score_prompts([prompted("a", "one", "sixteen")], "harmless") == [Scored([-3.0, -7.0], 1)]
    assert len(heads.asked) == 4
    assert cached.score_prompts([prompted("a", "sixteen", "one")], "helpful") == [Scored([7.0, 3.0], 1)]
    assert len(heads.asked) == 4
    assert cached.score_prompts([prompted("a", "one")]) == [Scored([3.0])]  # by the head that the reward prefers
    assert [aspect for *_, aspect in heads.asked] == ["helpful", "helpful", "harmless", "harmless", None]


def test_a_reward_of_one_aspect_is_asked_once_whatever_for(cache):
    lengths = Lengths()
    for aspect in (None, "overall", "harmless"):
        Cached(lengths, cache).score_prompts([prompted("a", "one")], aspect)

    assert [aspect for *_, aspect in lengths.asked] == [None]


def test_a_long_call_is_stored_as_it_goes(cache, monkeypatch):
    monkeypatch.setattr(score_cache, "NUM_PROMPTS", 2)
    lengths = Lengths()
    score, prompts = lengths.score_prompts, [prompted(str(number), "one") for number in range(5)]

    def fail_later(some, aspect=None):
        if any(one.id == "4" for one in some):
            raise KeyboardInterrupt
        return score(some, aspect)

    lengths.score_prompts = fail_later
    with pytest.raises(KeyboardInterrupt):
        Cached(lengths, cache).score_prompts(prompts)
    lengths.score_prompts = score
    lengths.asked.clear()

    assert Cached(lengths, cache).score_prompts(prompts) == [Scored([3.0])] * 5
    assert [prompt for prompt, *_ in lengths.asked] == ["4"]


def test_a_listwise_reward_has_no_score_to_keep(cache):
    with pytest.raises(ValueError, match="depends on the other responses"):
        Cached(Lengths(is_listwise=True), cache)
