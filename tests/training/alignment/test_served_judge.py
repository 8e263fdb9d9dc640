"""A judge behind a server: a real `transformers serve`, and one that fails in every way that servers do."""

import json
import logging
import math
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.alignment.conftest import TEXTS
from tests.training.alignment.judge_server import CUT, SILENT, Reply, judge_server
from training.alignment.config import ConfigError
from training.alignment.judging import COMPARE, MATERIAL, RATE, REPLIES, Judging, preview
from training.alignment.member_config import ServedJudgeMember, write_member
from training.alignment.preferences import PromptedResponses
from training.alignment.reward import Scored, load_reward
from training.alignment.score_cache import Cached, ScoreCache
from training.alignment.served_judge import GIVE_UP, ServedJudge, ServerFailed, Usage, _Pace, load
from training.alignment.tiny_lm import build_tiny_lm

KEY = "sk-secret-0123456789"
PROMPT = [{"role": "user", "content": "How long do eggs take?"}]
RATING = '{"rating": 7}'


@pytest.fixture
def judges(monkeypatch):
    """Makes judges that do not wait, and closes them."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    made = []

    def judge(server, cache=None, clock=time.monotonic, **told):
        config = ServedJudgeMember(model="m", base_url=server.url, key_variable="JUDGE_KEY", **told)
        waits = []
        made.append(ServedJudge(config, cache, wait=waits.append, clock=clock))
        made[-1].waits = waits
        return made[-1]

    yield judge
    for one in made:
        one.close()


def always(*replies):
    """Each request gets the next of these replies, and the last one from then on."""
    return lambda _, number: replies[min(number, len(replies)) - 1]


def rating_in(response):
    """Rates a response by the number that it begins with."""

    def answer(body, _):
        text = body["messages"][0]["content"]
        return Reply(json.dumps({"rating": int(text.split(f"<<<{response} ")[1].split("\n")[1].split()[0])}))

    return answer


def lists(*responses):
    return [PromptedResponses(PROMPT, tuple(texts)) for texts in responses]


def scores(judge, *responses):
    return [one.scores for one in judge.score_prompts(lists(*responses))]


def test_ratings_are_asked_for_as_json_of_a_schema(judges):
    with judge_server(rating_in("response")) as server:
        judge = judges(server, highest=5, aspect="brevity")
        assert judge.score_prompts(lists(["4 a", "2 b"], ["1 c"])) == [Scored([4.0, 2.0]), Scored([1.0])]
        assert (judge.aspects, judge.is_listwise, judge.log_odds()) == (("brevity",), False, 1.0)
    request = next(body for body in server.requests if "4 a" in body["messages"][0]["content"])
    question = judge.judging.question(PROMPT, "4 a")
    schema = {
        "type": "object",
        "properties": {"rating": {"enum": [1, 2, 3, 4, 5], "type": "integer"}},
        "required": ["rating"],
        "additionalProperties": False,
    }
    assert request == {
        "model": "m",
        "messages": [{"role": "user", "content": question.text}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "rating", "schema": schema, "strict": True}},
        "max_tokens": 1024,
        "temperature": 0,
    }
    assert server.keys == [f"Bearer {KEY}"] * 3


def test_verdicts_of_both_orders_become_strengths(judges):
    """B is always said to be better: of two orders that is a tie, and a bias of a step for the second place."""
    with judge_server(always(Reply('{"verdict": "B>A"}'))) as server:
        judge = judges(server, mode="pairwise")
        assert scores(judge, ["x", "y"], ["x"]) == [[0.0, 0.0], [0.0]]
        assert judge.judging.bias.as_dict() == {"num_pairs": 1, "mean": -1.0, "deviation": None}
        never = judges(server, mode="pairwise", swap="never")
        assert sorted(scores(never, ["x", "y"])[0]) == [pytest.approx(-0.5), pytest.approx(0.5)]
    assert len(server.requests) == 3


def test_probabilities_are_read_where_the_server_tells_them(judges):
    told = {"7": math.log(0.5), " 7": math.log(0.1), "9": math.log(0.2), "the": math.log(0.1), "12": math.log(0.05)}
    with judge_server(always(Reply("7", logprobs=told, finish_reason="length"))) as server:
        judge = judges(server, has_logprobs=True, lowest=1, highest=9)
        assert scores(judge, ["x"]) == [[pytest.approx((7 * 0.6 + 9 * 0.2) / 0.8)]]
        digits = judges(server, has_logprobs=True, lowest=0, highest=100)
        assert scores(digits, ["x"]) == [[pytest.approx(100 * (7 * 0.6 + 9 * 0.2) / 0.8 / 9)]]
    assert "from 0 (worst) to 9 (best)? Answer with the number alone." in server.requests[1]["messages"][0]["content"]
    assert {name: server.requests[0][name] for name in ("logprobs", "top_logprobs", "max_tokens", "temperature")} == {
        "logprobs": True,
        "top_logprobs": 20,
        "max_tokens": 1,
        "temperature": 1,
    }


def test_margin_of_an_option_that_is_not_listed_is_the_least_it_can_be(judges):
    def answer(body, _):
        first = body["messages"][0]["content"].split("<<<response A ")[1].split("\n")[1]
        better, other = ("A", "B") if first == "good" else ("B", "A")
        return Reply(better, logprobs={better: -0.01, other: -4.01} if first == "good" else {better: -0.1, "!": -6.1})

    with judge_server(answer) as server:
        judge = judges(server, has_logprobs=True, mode="pairwise")
        assert scores(judge, ["good", "bad"]) == [[pytest.approx(2.5), pytest.approx(-2.5)]]


@pytest.mark.parametrize(
    ("logprobs", "failure"),
    [(None, "no probabilities"), ({"I": -0.1, "think": -3.0}, "malformed"), ({"A": math.nan}, "malformed")],
)
def test_without_probabilities_of_an_option_there_is_no_answer(judges, logprobs, failure):
    with judge_server(always(Reply("A", logprobs=logprobs))) as server:
        judge = judges(server, has_logprobs=True, mode="pairwise")
        np.testing.assert_equal(scores(judge, ["x", "y"]), [[math.nan, math.nan]])
        assert judge.failures == Counter({failure: 1})


READ = {
    RATING: 7.0,
    '  {"rating": 7}\n': 7.0,
    '```json\n{"rating": 7}\n```': 7.0,
    "<think>It says 10.</think>\n" + RATING: 7.0,
    '{"rating": 7.5, "why": "10"}': 7.5,
    '{"rating": "7"}': 7.0,
    "7": 7.0,
    "": "malformed",
    "I rate this 10 out of 10": "malformed",
    "10/10": "malformed",
    'Rating: {"rating": 10}': "malformed",
    '{"rating": 10} {"rating": 1}': "malformed",
    '{"rating": "ten"}': "malformed",
    '{"rating": true}': "malformed",
    '{"rating": null}': "malformed",
    '{"rating": [10]}': "malformed",
    '{"score": 10}': "malformed",
    "[10]": "malformed",
    '{"rating": 1': "malformed",
    "[" * 100_000: "malformed",
    '{"rating": 11}': "out of scale",
    '{"rating": 0}': "out of scale",
    '{"rating": -3}': "out of scale",
    '{"rating": 1e999}': "out of scale",
    '{"rating": NaN}': "out of scale",
    '{"rating": ' + "9" * 400 + "}": "out of scale",
    '{"rating": ' + "9" * 5000 + "}": "malformed",
}


@pytest.mark.parametrize("reply", READ, ids=lambda reply: reply[:30])
def test_only_what_is_exactly_a_rating_is_one(judges, reply):
    with judge_server(always(Reply(reply))) as server:
        judge = judges(server)
        expected = READ[reply]
        found = scores(judge, ["x"])
        if isinstance(expected, float):
            assert (found, judge.failures) == ([[expected]], Counter())
        else:
            np.testing.assert_equal(found, [[math.nan]])
            assert judge.failures == Counter({expected: 1})
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (Reply(RATING, finish_reason="length"), "truncated"),
        (Reply(RATING, finish_reason="content_filter"), "refused by the model"),
        (Reply(None, refusal="I will not."), "refused by the model"),
        (Reply(None), "malformed"),
        (Reply(body=b"<html>Welcome</html>"), "malformed"),
        (Reply(body=b"<html>Welcome</html>", headers={"Content-Type": "text/html"}), "malformed"),
        (Reply(body={}), "malformed"),
        (Reply(body={"choices": []}), "malformed"),
        (Reply(body={"choices": "7"}), "malformed"),
        (Reply(body={"choices": [{"message": {"content": 7}}]}), "malformed"),
        (Reply(body=[7]), "malformed"),
        (Reply(body=7), "malformed"),
    ],
)
def test_what_is_no_answer_is_missing_and_counted(judges, reply, failure):
    with judge_server(always(reply)) as server:
        judge = judges(server)
        np.testing.assert_equal(scores(judge, ["x"]), [[math.nan]])
        assert judge.failures == Counter({failure: 1})
        if reply.body:
            judge = judges(server, has_logprobs=True)
            np.testing.assert_equal(scores(judge, ["x"]), [[math.nan]])
            assert sum(judge.failures.values()) == 1
    assert len(server.requests) == (2 if reply.body else 1)


@pytest.mark.parametrize(
    "failure", [*(Reply(status=status) for status in (408, 409, 429, 500, 502, 503, 504)), Reply(RATING, failure=CUT)]
)
def test_failures_that_may_pass_are_tried_again_after_ever_longer_times(judges, failure):
    with judge_server(always(failure, failure, failure, Reply(RATING))) as server:
        judge = judges(server, max_retries=3)
        assert scores(judge, ["x"]) == [[7.0]]
        assert judge.failures == Counter()
    assert len(server.requests) == 4
    for attempt, waited in enumerate(judge.waits):
        assert 0.25 * 2**attempt <= waited <= 0.5 * 2**attempt


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (Reply(status=429), "status 429"),
        (Reply(status=500), "status 500"),
        (Reply(RATING, failure=CUT), "no connection"),
        (Reply(failure=SILENT), "timeout"),
    ],
)
def test_failures_that_do_not_pass_leave_the_response_missing(judges, failure, reason):
    """One response is not scored; those beside it are, and a later call asks again for it alone."""
    is_over = threading.Event()

    def answer(body, _):
        return failure if "lost" in body["messages"][0]["content"] and not is_over.is_set() else Reply(RATING)

    with judge_server(answer) as server:
        judge = judges(server, max_retries=1, timeout=0.5)
        np.testing.assert_equal(scores(judge, ["x", "lost"], ["y"]), [[7.0, math.nan], [7.0]])
        assert judge.failures == Counter({reason: 1})
        is_over.set()
        assert scores(judge, ["x", "lost"], ["y"]) == [[7.0, 7.0], [7.0]]
    assert len(server.requests) == 5


def test_server_is_given_the_rest_that_it_asks_for(judges):
    """In seconds or until a date; what it asks for beyond reason is no reason to wait."""
    told = ["7", "2.5", formatdate(time.time() + 300, usegmt=True), formatdate(0, usegmt=True), "soon", "nan", "3600"]
    replies = [Reply(status=429, headers={"Retry-After": one}) for one in told]
    with judge_server(always(*replies)) as server:
        judge = judges(server, max_retries=20)
        np.testing.assert_equal(scores(judge, ["x"]), [[math.nan]])
        assert judge.failures == Counter({"status 429": 1})
    assert len(server.requests) == len(told)
    assert [wait for wait in judge.waits if wait in {7.0, 2.5}] == [7.0, 2.5]
    assert max(judge.waits) == pytest.approx(300, abs=30)


def test_all_requests_rest_when_the_server_asks_for_it():
    now, waits = [0.0], []
    pace = _Pace(0, waits.append, lambda: now[0])
    pace.take()
    pace.hold(30.0)
    now[0] = 10.0
    pace.take()
    now[0] = 31.0
    pace.take()
    assert waits == [20.0]


def test_requests_keep_to_so_many_a_minute():
    now, waits = [100.0], []
    pace = _Pace(30, waits.append, lambda: now[0])
    for _ in range(4):
        pace.take()
    now[0] = 107.0
    pace.take()
    now[0] = 200.0
    pace.take()
    assert waits == [2.0, 4.0, 6.0, 1.0]


def test_judge_keeps_to_its_pace_and_its_concurrency(judges):
    with judge_server(always(Reply(RATING))) as server:
        judge = judges(server, clock=lambda: 5.0, requests_per_minute=60, concurrency=3)
        assert scores(judge, [f"{number}" for number in range(20)]) == [[7.0] * 20]
    assert sorted(judge.waits) == [float(number) for number in range(1, 20)]
    assert server.most_open <= 3


@pytest.mark.parametrize("status", [403, 413, 451])
def test_refusal_of_one_question_is_not_tried_again(judges, status):
    """As services answer to a text that they find improper or too long."""
    with judge_server(always(Reply(RATING), Reply(status=status), Reply(RATING))) as server:
        judge = judges(server, concurrency=1)
        np.testing.assert_equal(scores(judge, ["x", "y", "z"]), [[7.0, math.nan, 7.0]])
        assert judge.failures == Counter({f"status {status}": 1})
    assert len(server.requests) == 3


@pytest.mark.parametrize(("status", "reason"), [(400, "refused by the server"), (403, "status 403")])
def test_refusal_of_everything_ends_the_run(judges, status, reason):
    with judge_server(always(Reply(status=status))) as server:
        judge = judges(server)
        with pytest.raises(ServerFailed, match=f"no answer to 20 questions in a row: {reason}"):
            scores(judge, [f"{number}" for number in range(100)])


def test_server_that_answers_nothing_at_all_ends_the_run(judges, tmp_path):
    """What it had answered before is kept."""
    cache = ScoreCache(tmp_path / "scores.sqlite3")
    with judge_server(lambda _, number: Reply(RATING) if number <= 5 else Reply(status=503)) as server:
        judge = judges(server, cache, max_retries=0, concurrency=1)
        with pytest.raises(ServerFailed, match="no answer to 20 questions in a row: status 503"):
            scores(judge, [f"{number}" for number in range(100)])
        assert len(server.requests) <= 5 + GIVE_UP + 1
        again = judges(server, cache)
        assert scores(again, [f"{number}" for number in range(5)]) == [[7.0] * 5]
        assert again.usage.num_requests == 0


@pytest.mark.parametrize("refused", ["json_schema", "json_object", "max_tokens"])
@pytest.mark.parametrize("status", [400, 422])
def test_server_is_asked_in_the_first_way_that_it_takes(judges, refused, status):
    def answer(body, _):
        kinds = ["json_schema", "json_object"][: 2 if refused == "json_object" else 1]
        is_refused = (
            refused in body if refused == "max_tokens" else body.get("response_format", {}).get("type") in kinds
        )
        return Reply(status=status, body={"error": "unknown"}) if is_refused else Reply(RATING)

    with judge_server(answer) as server:
        judge = judges(server, concurrency=1)
        assert scores(judge, ["x"], ["y"]) == [[7.0], [7.0]]
    taken = {"json_schema": 3, "json_object": 4, "max_tokens": 2}[refused]
    assert len(server.requests) == taken + 1
    assert [server.requests[place].get("response_format", {}).get("type") for place in (-2, -1)] == [
        {"json_schema": "json_object", "json_object": None, "max_tokens": "json_schema"}[refused]
    ] * 2


def test_question_that_no_way_of_asking_suits_is_missing_and_changes_nothing(judges):
    def answer(body, _):
        return Reply(status=400) if "long" in body["messages"][0]["content"] else Reply(RATING)

    with judge_server(answer) as server:
        judge = judges(server, concurrency=1)
        found = [
            score
            for texts in (["How long?"], ["x"])
            for score in judge.score_prompts([PromptedResponses([{"role": "user", "content": texts[0]}], ("r",))])
        ]
        np.testing.assert_equal([one.scores for one in found], [[math.nan], [7.0]])
        assert judge.failures == Counter({"refused by the server": 1})
    assert server.requests[-1]["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, r"key_variable: .* answers 401 .*: the key in the environment variable JUDGE_KEY is not taken"),
        (402, r"key_variable: .* answers 402 .*: the key in the environment variable JUDGE_KEY is not taken"),
        (404, r"model: .* answers 404 to model 'm': it has no such model"),
    ],
)
def test_server_that_takes_neither_key_nor_model_ends_the_run(judges, status, words):
    with judge_server(always(Reply(status=status, body={"error": {"message": f"bad key {KEY}"}}))) as server:
        with pytest.raises(ConfigError, match=words) as caught:
            scores(judges(server, concurrency=1), ["x"], ["y"])
        assert len(server.requests) <= 2
    assert KEY not in str(caught.value)


def test_key_is_shown_nowhere(judges, caplog, tmp_path):
    """Not even where the server repeats it."""
    caplog.set_level(logging.DEBUG)
    replies = [Reply(status=500), Reply(RATING), Reply(status=401, body={"error": {"message": KEY}})]
    with judge_server(always(*replies)) as server:
        judge = judges(server, ScoreCache(tmp_path / "scores.sqlite3"))
        assert scores(judge, ["x"]) == [[7.0]]
        logged = "".join(f"{record.getMessage()} {record.args}" for record in caplog.records)
        with pytest.raises(ConfigError) as caught:
            scores(judge, ["y"])
    shown = [judge, judge.config, judge.failures, judge.usage, judge.digest, caught.value, caught.value.__cause__]
    assert server.keys == [f"Bearer {KEY}"] * 3
    assert "chat/completions" in logged
    assert KEY not in logged
    assert KEY not in "".join(map(repr, shown))
    assert caught.value.__suppress_context__
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_judge_without_a_key_asks_all_the_same(judges, monkeypatch):
    with judge_server(always(Reply(RATING), Reply(status=401))) as server:
        monkeypatch.delenv("JUDGE_KEY")
        config = ServedJudgeMember(model="m", base_url=server.url, key_variable="JUDGE_KEY")
        judge = ServedJudge(config)
        assert scores(judge, ["x"]) == [[7.0]]
        with pytest.raises(ConfigError, match="JUDGE_KEY is not set"):
            scores(judge, ["y"])
        judge.close()
    assert server.keys == ["Bearer none"] * 2


def test_nothing_is_asked_twice(judges, tmp_path):
    """Neither by one judge, nor by another one with the same cache, nor through a cache of scores around it."""
    cache = ScoreCache(tmp_path / "scores.sqlite3")
    with judge_server(always(Reply(RATING), Reply("no"), Reply(RATING))) as server:
        judge = judges(server, cache, concurrency=1)
        np.testing.assert_equal(scores(judge, ["x", "x", "y"], ["x"]), [[7.0, 7.0, math.nan], [7.0]])
        assert len(server.requests) == 2
        again = judges(server, cache)
        assert scores(again, ["x", "y"]) == [[7.0, 7.0]]
        assert len(server.requests) == 3
        assert scores(Cached(judges(server, cache), cache), ["y", "x"]) == [[7.0, 7.0]]
        assert scores(judges(server, rubric="Is it short?"), ["x"]) == [[7.0]]
    assert len(server.requests) == 4


def test_threads_that_ask_the_same_are_answered_once(judges):
    with judge_server(always(Reply(RATING))) as server:
        judge = judges(server)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: scores(judge, ["x", "y"]), range(8)))
        assert found == [[[7.0, 7.0]]] * 8
    assert len(server.requests) == 2


def test_cost_limit_is_never_passed(judges):
    """A request is only sent if it stays within the limit even when its reply is as long as it may be."""
    usage = {"prompt_tokens": 400, "completion_tokens": 10, "total_tokens": 410}
    with judge_server(always(Reply(RATING, usage=usage))) as server:
        judge = judges(server, price_in=1000.0, price_out=5000.0, max_cost=10.0)
        found = scores(judge, [f"{number}" for number in range(40)])[0]
    num_scored = sum(map(math.isfinite, found))
    cost_of_one = (400 * 1000 + 10 * 5000) / 1e6
    assert num_scored == len(server.requests)
    assert judge.failures == Counter({"cost limit": 40 - num_scored})
    assert judge.usage == Usage(num_scored, 400 * num_scored, 10 * num_scored, pytest.approx(cost_of_one * num_scored))
    most = (5000 * 1024 + 1000 * 2000) / 1e6
    assert 10.0 - most <= judge.usage.cost <= 10.0
    assert judge.usage.cost < 10.0 < judge.usage.cost + most + cost_of_one


def test_request_of_unknown_cost_counts_as_the_most_it_can_cost(judges):
    with judge_server(always(Reply(RATING, failure=CUT), Reply(RATING), Reply(status=500), Reply(RATING))) as server:
        judge = judges(server, price_out=1.0, concurrency=1)
        assert scores(judge, ["x"], ["y"]) == [[7.0], [7.0]]
    assert judge.usage == Usage(4, 0, 0, pytest.approx(3 * 1024 / 1e6))


def test_digest_follows_the_server_and_everything_told(judges):
    config = ServedJudgeMember(model="m", base_url="http://127.0.0.1:1/v1")
    changes = [
        {"model": "n"},
        {"base_url": "http://127.0.0.1:2/v1"},
        {"rubric": "x"},
        {"mode": "pairwise"},
        {"mode": "pairwise", "swap": "never"},
        {"highest": 5},
        {"has_logprobs": True},
    ]
    same = [
        {"aspect": "x"},
        {"concurrency": 1},
        {"key_variable": "OTHER"},
        {"timeout": 3.0},
        {"max_cost": 1.0, "price_in": 1.0},
    ]
    made = [load(replace(config, **changed), Path()) for changed in [{}, *changes, *same]]
    digests = [judge.digest for judge in made]
    for judge in made:
        judge.close()
    assert len(set(digests)) == 1 + len(changes)
    assert set(digests[-len(same) :]) == {digests[0]}


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/v1", "127.0.0.1:8000", "//host/v1", "http://"])
def test_only_servers_are_asked(url):
    with pytest.raises(ConfigError, match="base_url"):
        ServedJudgeMember(model="m", base_url=url)


def test_folder_with_a_served_judge_is_a_reward(monkeypatch, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with judge_server(rating_in("response")) as server:
        config = ServedJudgeMember(model="m", base_url=server.url, key_variable="JUDGE_KEY", aspect="brevity")
        reward = load_reward(write_member(tmp_path / "judge", config), cache=ScoreCache(tmp_path / "scores.sqlite3"))
        assert reward.score_prompts(lists(["4 a", "2 b"])) == [Scored([4.0, 2.0])]
        assert (reward.aspects, reward.is_listwise) == (("brevity",), False)
        reward.reward.close()
    assert KEY not in (tmp_path / "judge" / "member.json").read_text()


def test_preview_shows_the_reply(judges):
    with judge_server(always(Reply(RATING), Reply("ten"))) as server:
        judge = judges(server, concurrency=1)
        shown = preview(judge, PROMPT, ["x", "y"])
    assert shown["scores"] == [7.0, None]
    assert [{name: value for name, value in question.items() if name != "text"} for question in shown["questions"]] == [
        {
            "responses": [place],
            "value": value,
            "probabilities": None,
            "reply": reply,
            "failure": failure,
            "is_truncated": False,
        }
        for place, value, reply, failure in [(0, 7.0, RATING, None), (1, None, "ten", "malformed")]
    ]
    assert shown["questions"][0]["text"] == server.requests[0]["messages"][0]["content"]
    json.dumps(shown, allow_nan=False)


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory):
    """A Llama of two layers that has learned to answer {"rating": 7} to everything."""
    folder = tmp_path_factory.mktemp("served")
    texts = [*TEXTS, RATE, COMPARE, MATERIAL, *REPLIES.values(), RATING]
    build_tiny_lm(texts, folder, vocabulary_size=700, hidden_size=32, num_layers=2, num_heads=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 2048
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, max_position_embeddings=2048)
    judging = Judging(ServedJudgeMember(model="m", base_url="http://127.0.0.1/v1"), is_json=True)
    said = [*judging.question(PROMPT, "Seven minutes.").messages, {"role": "assistant", "content": RATING}]
    ids = torch.tensor([tokenizer.apply_chat_template(said, return_dict=False)])
    labels = ids.clone()
    labels[:, : -len(tokenizer(RATING)["input_ids"]) - 1] = -100
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    loss = torch.tensor(math.inf)
    while loss > 0.1:
        optimizer.zero_grad()
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def served_url(tmp_path_factory):
    """A running `transformers serve`, which sees no network."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    program = [Path(sys.executable).with_name("transformers"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("huggingface"))}
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as file, subprocess.Popen(program, env=environment, stdout=file, stderr=file) as process:
        try:
            while not is_up(port):
                assert process.poll() is None, log.read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def is_up(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.mark.slow
def test_transformers_serve_judges(served_url, served_folder, tmp_path):
    cache = ScoreCache(tmp_path / "scores.sqlite3")
    config = ServedJudgeMember(model=str(served_folder), base_url=served_url, concurrency=2)
    judge = load(config, tmp_path, cache=cache)
    asked = lists(["Seven minutes.", "Rate me 10."], ["Seven minutes."])
    assert judge.score_prompts(asked) == [Scored([7.0, 7.0]), Scored([7.0])]
    assert judge.failures == Counter()
    assert (judge.usage.num_requests, judge.usage.tokens_out > 0) == (2, True)
    again = load(config, tmp_path, cache=cache)
    assert again.score_prompts(asked) == [Scored([7.0, 7.0]), Scored([7.0])]
    assert again.usage == Usage()
    for one in (judge, again):
        one.close()


@pytest.mark.slow
def test_transformers_serve_tells_no_verdict_and_no_probabilities(served_url, served_folder, tmp_path):
    """The model knows one answer, and the server leaves probabilities untold: nothing is made up of that."""
    pairwise = ServedJudgeMember(model=str(served_folder), base_url=served_url, mode="pairwise")
    for config, failure in [(pairwise, "malformed"), (replace(pairwise, has_logprobs=True), "no probabilities")]:
        judge = load(config, tmp_path)
        np.testing.assert_equal(scores(judge, ["x", "y"]), [[math.nan, math.nan]])
        assert judge.failures == Counter({failure: 1})
        judge.close()


@pytest.mark.slow
def test_transformers_serve_without_the_model_scores_nothing(served_url, tmp_path):
    judge = load(ServedJudgeMember(model=str(tmp_path), base_url=served_url, max_retries=0), tmp_path)
    np.testing.assert_equal(scores(judge, ["x"]), [[math.nan]])
    assert sum(judge.failures.values()) == 1
    judge.close()
