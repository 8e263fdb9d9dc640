"""An off-the-shelf language model as a reward, behind an OpenAI-compatible server.

The question is that of `training.alignment.judging`. A server that tells probabilities is read from these, as local
weights are; any other is asked for JSON of a fixed form, as strictly as it can be held to it. What is not exactly such
an answer is missing, and counted by its reason: a number that stands somewhere in a reply is not the judge's rating.

A question that was answered is never asked again. The key comes from the environment and goes nowhere but to the
server: it is in no message, log, file or representation.
"""

import itertools
import json
import math
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import openai

from training.alignment.config import ConfigError
from training.alignment.judging import VERDICTS, Answer, Judging, KnownAnswers, Question
from training.alignment.member_config import ServedJudgeMember
from training.alignment.preferences import PromptedResponses
from training.alignment.reward import Scored
from training.alignment.score_cache import ScoreCache

DIGITS = (0, 9)
"""The scale that is asked for where ratings are read from the first token, of which "10" may have two."""
REPLY_TOKENS = 1024
REASONING_TOKENS = 4096
TOP = 20
"""Probabilities that OpenAI tells of a token; vLLM does not tell more unless it is set up to."""
FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0
LONGEST_RETRY_AFTER = 600.0
NO_KEY = "none"
"""What is sent as the key where there is none: the client wants one, and local servers take any."""
GIVE_UP = 20
"""Questions in a row for which a server had no answer in spite of all retries."""
HOPELESS = {401: "key_variable", 402: "key_variable", 404: "model"}
"""What no question will ever get past, and the field that is wrong."""
UNSUITED = {400, 422}
TEMPORARY = {408, 409, 429}
THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
FENCE = re.compile(r"\A```(?:json)?\n(.*)\n```\Z", re.DOTALL)


class ServerFailed(OSError):
    """The server does not answer any more. What it answered is kept, so that the same run goes on from there."""


def load(config: ServedJudgeMember, folder: Path, device: Any = None, cache: ScoreCache | None = None) -> "ServedJudge":
    """The judge that a member describes; nothing is asked of the server yet. It has no use for folder and device."""
    return ServedJudge(config, cache)


@dataclass
class Usage:
    """What a server was asked for."""

    num_requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    """No less than what it charges: a request that may have been served, and about which nothing is known, counts as
    the most that it can cost."""


class ServedJudge:
    """Scores responses by what a served language model thinks of them.

    Args:
        cache: of scores, in which each answer is stored as it arrives.
        wait, clock: seconds to sleep, and seconds that have passed.
    """

    def __init__(
        self,
        config: ServedJudgeMember,
        cache: ScoreCache | None = None,
        *,
        wait: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        is_short = config.mode == "pointwise" and config.has_logprobs and config.highest > DIGITS[1]
        self.judging = Judging(config, is_json=not config.has_logprobs, scale=DIGITS if is_short else None)
        self.failures: Counter[str] = Counter()
        """Why questions went unanswered, and how many."""
        self._known = KnownAnswers(self._server, cache)
        self._budget = _Budget(config)
        self._pace = _Pace(config.requests_per_minute, wait, clock)
        self._wait = wait
        self._dialect = 0
        self._num_failed = 0
        self._asking, self._counting = threading.Lock(), threading.Lock()
        self._key = os.environ.get(config.key_variable) or NO_KEY
        self._client = openai.OpenAI(base_url=config.base_url, api_key=self._key, timeout=config.timeout, max_retries=0)

    @property
    def is_listwise(self) -> bool:
        return self.judging.is_pairwise

    @property
    def aspects(self) -> tuple[str, ...]:
        return (self.config.aspect,)

    @property
    def digest(self) -> str:
        return self.judging.digest(self._server)

    @property
    def usage(self) -> Usage:
        return self._budget.usage

    @property
    def _server(self) -> str:
        return json.dumps([self.config.base_url.rstrip("/"), self.config.model, self.config.has_logprobs])

    def log_odds(self, aspect: str | None = None) -> float:
        """1: what a step of a rating or of a verdict is worth is not known."""
        return 1.0

    def score_prompts(self, prompts: Sequence[PromptedResponses], aspect: str | None = None) -> list[Scored]:
        """The scores of all prompts' responses: ratings, or strengths with mean 0 in each list.

        Raises:
            ConfigError: the server takes neither the key nor the model.
            ServerFailed: it has not answered for `GIVE_UP` questions in a row.
        """
        return self.judging.score_prompts(self.ask, prompts)

    def sent(self, question: Question) -> str:
        """The text of the message that a question becomes."""
        return question.text

    def close(self) -> None:
        self._client.close()

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """The answers, each question asked once however often and from however many threads it comes."""
        with self._asking:
            keys = [self._known.key(question) for question in questions]
            found = self._known.get(list(dict.fromkeys(keys)))
            unknown = {key: question for key, question in zip(keys, questions, strict=True) if key not in found}
            with ThreadPoolExecutor(self.config.concurrency) as pool:
                futures = {key: pool.submit(self._ask_one, key, question) for key, question in unknown.items()}
                try:
                    found |= {key: future.result() for key, future in futures.items()}
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)
        return [found[key] for key in keys]

    def _ask_one(self, key: bytes, question: Question) -> Answer:
        try:
            answer = self._in_some_dialect(question)
        except _Unanswered as unanswered:
            answer = Answer(math.nan, failure=str(unanswered))
        self._known.put({key: answer})
        if answer.failure:
            with self._counting:
                self.failures[answer.failure] += 1
        return answer

    def _in_some_dialect(self, question: Question) -> Answer:
        """Asked in the first way that the server takes, and in that one from then on."""
        dialects = _dialects(question)
        for number in range(self._dialect, len(dialects)):
            try:
                completion = self._send({"messages": question.messages, **dialects[number]})
            except _Unsuited:
                continue
            self._dialect = max(self._dialect, number)
            return self._read(completion, question)
        raise self._unanswered("refused by the server")

    def _send(self, request: dict[str, Any]) -> Any:
        """The server's reply.

        Raises:
            _Unanswered: there is none, in spite of all retries.
            _Unsuited: the server does not take such a request.
        """
        for attempt in itertools.count():
            reserved = self._budget.reserve(request)
            self._pace.take()
            try:
                completion = self._client.chat.completions.create(model=self.config.model, **request)
            except openai.APIConnectionError as error:
                self._budget.settle(reserved, reserved)
                self._delay(error, attempt)
            except openai.APIStatusError as error:
                self._budget.settle(reserved, 0.0)
                self._heed(error)
                self._delay(error, attempt)
            except (openai.OpenAIError, ValueError):  # a body that is not JSON
                self._budget.settle(reserved, reserved)
                raise self._unanswered("malformed") from None
            else:
                self._budget.settle_by(completion, reserved)
                self._num_failed = 0
                return completion
        raise AssertionError

    def _heed(self, error: openai.APIStatusError) -> None:
        """Raise what a refusal means, unless it may pass. Its own words may repeat the key, and go no further."""
        status = error.status_code
        if status in HOPELESS:
            told = f"{HOPELESS[status]}: {self.config.base_url} answers {status} to model {self.config.model!r}: "
            if status == 404:
                raise ConfigError(f"{told}it has no such model, or speaks another protocol there") from None
            is_taken = "is not set" if self._key == NO_KEY else "is not taken"
            raise ConfigError(
                f"{told}the key in the environment variable {self.config.key_variable} {is_taken}"
            ) from None
        if status in UNSUITED:
            raise _Unsuited from None
        if status not in TEMPORARY and status < 500:
            raise self._unanswered(_reason(error)) from None

    def _delay(self, error: openai.APIError, attempt: int) -> None:
        """Wait before another attempt: as long as the server asks for, or ever longer, and each for another time."""
        asked = _retry_after(error)
        if attempt >= self.config.max_retries or asked > LONGEST_RETRY_AFTER:
            raise self._unanswered(_reason(error)) from None
        if asked:
            self._pace.hold(asked)
        longest = min(LONGEST_DELAY, FIRST_DELAY * 2**attempt)
        self._wait(max(asked, random.uniform(longest / 2, longest)))

    def _unanswered(self, reason: str) -> "_Unanswered":
        """To be raised; a server that goes on like this is asked nothing more."""
        with self._counting:
            self._num_failed += 1
            if self._num_failed >= GIVE_UP:
                raise ServerFailed(
                    f"{self.config.base_url}: no answer to {GIVE_UP} questions in a row: {reason}"
                ) from None
        return _Unanswered(reason)

    def _read(self, completion: Any, question: Question) -> Answer:
        try:
            choice = completion.choices[0]
            if self.config.has_logprobs:
                return self._read_probabilities(choice)
            reply = choice.message.content
            if choice.message.refusal or choice.finish_reason == "content_filter":
                return Answer(math.nan, reply=reply, failure="refused by the model")
            if choice.finish_reason == "length":
                return Answer(math.nan, reply=reply, failure="truncated")
            return _read_reply(reply, question)
        except (AttributeError, IndexError, TypeError):  # the client hands on whatever the server sends
            return Answer(math.nan, failure="malformed")

    def _read_probabilities(self, choice: Any) -> Answer:
        """From those of the reply's first token. An option that is not among them has at most the least of them.

        That bound stands for one of two options; of a rating it would weigh next to nothing, and is left out.
        """
        reply = choice.message.content
        if choice.logprobs is None or not choice.logprobs.content:
            return Answer(math.nan, reply=reply, failure="no probabilities")
        told = choice.logprobs.content[0].top_logprobs
        probabilities = dict.fromkeys(self.judging.options, 0.0)
        for one in told:
            if one.token.strip() in probabilities:
                probabilities[one.token.strip()] += math.exp(min(0.0, one.logprob))
        if not any(probabilities.values()):
            return Answer(math.nan, reply=reply, failure="malformed")
        least = math.exp(min(one.logprob for one in told))
        bounded = {option: share or least for option, share in probabilities.items()}
        value = self.judging.value(bounded if self.is_listwise else probabilities)
        return Answer(value, probabilities, reply, None if math.isfinite(value) else "malformed")


class _Unsuited(Exception):
    """The server does not take a request of this form."""


class _Unanswered(Exception):
    """A question has no answer; the message is the reason that is counted."""


class _Pace:
    """Lets requests begin: no more in a minute than allowed, and none while the server asks for rest."""

    def __init__(self, requests_per_minute: int, wait: Callable[[float], None], clock: Callable[[], float]) -> None:
        self._interval = 60 / requests_per_minute if requests_per_minute else 0.0
        self._wait, self._clock = wait, clock
        self._next = -math.inf
        self._lock = threading.Lock()

    def take(self) -> None:
        """Wait for a turn."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._interval
        if turn > now:
            self._wait(turn - now)

    def hold(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)


@dataclass
class _Budget:
    """Lets a request begin only if all that are under way, at their most, stay within the limit."""

    config: ServedJudgeMember
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._open: list[float] = []

    def reserve(self, request: dict[str, Any]) -> float:
        """The most that a request can cost: a token has at least one byte.

        Raises:
            _Unanswered: it could pass the limit, and no request is under way that may turn out cheaper.
        """
        num_bytes = len(json.dumps(request, ensure_ascii=False).encode("utf-8", "replace"))
        num_written = request.get("max_tokens") or request["max_completion_tokens"]
        most = self._price(num_bytes, num_written)
        with self._changed:
            while self._is_over(most) and self._open:
                self._changed.wait()
            if self._is_over(most):
                raise _Unanswered("cost limit")
            self._open.append(most)
            self.usage.num_requests += 1
        return most

    def settle(self, reserved: float, cost: float, tokens_in: int = 0, tokens_out: int = 0) -> None:
        with self._changed:
            self._open.remove(reserved)
            self.usage.cost += cost
            self.usage.tokens_in += tokens_in
            self.usage.tokens_out += tokens_out
            self._changed.notify_all()

    def settle_by(self, completion: Any, reserved: float) -> None:
        """By what a reply tells of itself."""
        told = getattr(completion, "usage", None)
        tokens_in, tokens_out = (getattr(told, name, None) for name in ("prompt_tokens", "completion_tokens"))
        if isinstance(tokens_in, int) and isinstance(tokens_out, int):
            self.settle(reserved, self._price(tokens_in, tokens_out), tokens_in, tokens_out)
        else:
            self.settle(reserved, reserved)

    def _is_over(self, most: float) -> bool:
        limit = self.config.max_cost or math.inf
        return self.usage.cost + math.fsum(self._open) + most > limit

    def _price(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.config.price_in + tokens_out * self.config.price_out) / 1e6


def _dialects(question: Question) -> list[dict[str, Any]]:
    """Ways to ask, the strictest first: servers take some or others, and models that reason refuse some."""
    usual = {"max_tokens": REPLY_TOKENS, "temperature": 0}
    reasoning = {"max_completion_tokens": REASONING_TOKENS}
    if not question.is_json:
        # at temperature 1 the probabilities are the model's own; the token that is drawn does not matter
        told = {"logprobs": True, "temperature": 1}
        limits = ({"max_tokens": 1}, {"max_completion_tokens": 1})
        return [{**told, "top_logprobs": top, **limit} for top in (TOP, 5) for limit in limits]
    options = [int(option) for option in question.options] if question.field == "rating" else list(question.options)
    schema = {
        "type": "object",
        "properties": {
            question.field: {"enum": options, "type": "integer" if question.field == "rating" else "string"}
        },
        "required": [question.field],
        "additionalProperties": False,
    }
    strict = {"type": "json_schema", "json_schema": {"name": question.field, "schema": schema, "strict": True}}
    return [
        {"response_format": strict, **usual},
        {"response_format": strict, **reasoning},
        {"response_format": {"type": "json_object"}, **usual},
        usual,
        reasoning,
    ]


def _read_reply(reply: str, question: Question) -> Answer:
    """A rating or a verdict, if the reply is nothing else: JSON of the form asked for, or the option itself."""
    text = THOUGHTS.sub("", reply).strip()
    fenced = FENCE.match(text)
    try:
        told = text if text in question.options else json.loads(fenced.group(1) if fenced else text)
    except (ValueError, RecursionError):
        return Answer(math.nan, reply=reply, failure="malformed")
    said = told.get(question.field) if isinstance(told, dict) else told
    if isinstance(said, str) and said in question.options:
        return Answer(VERDICTS[said] if said in VERDICTS else float(said), reply=reply)
    if question.field == "verdict" or isinstance(said, bool) or not isinstance(said, int | float):
        return Answer(math.nan, reply=reply, failure="malformed")
    if not float(question.options[0]) <= said <= float(question.options[-1]):
        return Answer(math.nan, reply=reply, failure="out of scale")
    return Answer(float(said), reply=reply)


def _reason(error: openai.APIError) -> str:
    if isinstance(error, openai.APITimeoutError):
        return "timeout"
    return f"status {error.status_code}" if isinstance(error, openai.APIStatusError) else "no connection"


def _retry_after(error: openai.APIError) -> float:
    """Seconds that the server asks to wait, in numbers or until a date; 0 where it asks for none."""
    if not isinstance(error, openai.APIStatusError):
        return 0.0
    told = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, float(told))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    except ValueError:
        return 0.0
