"""Rankings and preferences as records, and as tokens: the one place where a conversation is rendered for a tokenizer.

A conversation becomes tokens by the tokenizer's own chat template, applied to prompt and response together, so that
no token is lost or split where they meet; a tokenizer without a template gets a plain one. Text that spells a special
token stays text: nobody ends a turn or begins another by writing so into a prompt.

The papers' *completion* is a `response` here.
"""

import dataclasses
import gzip
import hashlib
import json
import random
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from training.alignment.config import KINDS, ConfigError

Messages = Sequence[Mapping[str, str]]
ROLES = ("system", "user", "assistant", "tool")
STRENGTHS = {1: "slightly", 2: "strongly"}
ANY = "all"
Row = TypeVar("Row")
Value = TypeVar("Value")
CUTS = 16
GZIP, BYTE_ORDER_MARK = b"\x1f\x8b", b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RankedResponses:
    """One annotator's ranking of the K responses to a prompt."""

    prompt: Messages
    responses: tuple[str, ...]
    ranking: tuple[tuple[int, ...], ...]
    """Groups of positions in `responses`, best group first; those in one group are tied; a position may be missing."""
    aspect: str = "overall"
    annotator: str | None = None
    split: str | None = None
    id: str | None = None
    strength: int | None = None
    """1 slightly, 2 strongly; of a pair only."""
    all_bad: bool = False
    bad: tuple[int, ...] = ()
    """Positions of the responses that are not acceptable; where some are, they are the last group."""
    source: str | None = None
    weight: float = 1.0
    """How much the judgment counts."""
    edited: str | None = None
    """The response that the annotator wrote by changing another; it is one of the responses, ranked first."""
    is_best_only: bool = False
    """Only the best one was asked for: the last group is all the others."""

    @property
    def groups(self) -> tuple[int, ...]:
        """The number of each response's group, 0 for the best; -1 for a response that was not ranked."""
        group_of = {place: number for number, group in enumerate(self.ranking) for place in group}
        return tuple(group_of.get(place, -1) for place in range(len(self.responses)))

    @property
    def is_unsorted(self) -> tuple[bool, ...]:
        """(K,) whether each response is in a last group that nobody sorted: to stand there together is no tie.

        Such are the responses that are not acceptable, and all but the best one where no more was asked for.
        """
        last = self.ranking[-1] if self.ranking else ()
        is_unsorted = self.is_best_only or self.all_bad or set(last) <= set(self.bad)
        return tuple(is_unsorted and place in last for place in range(len(self.responses)))

    @property
    def is_decided(self) -> bool:
        """It puts at least one response above another."""
        return len(self.ranking) > 1

    def only(self, places: Sequence[int]) -> "RankedResponses":
        """The same judgment on some of the responses, in that order."""
        number = {place: new for new, place in enumerate(places)}
        ranking = (tuple(number[place] for place in group if place in number) for group in self.ranking)
        return dataclasses.replace(
            self,
            responses=tuple(self.responses[place] for place in places),
            ranking=tuple(group for group in ranking if group),
            bad=tuple(number[place] for place in self.bad if place in number),
        )

    def ordered_places(self) -> Iterator[tuple[int, int]]:
        """Positions of a better and a worse response, for each strictly ordered pair."""
        for number, better in enumerate(self.ranking):
            for worse in self.ranking[number + 1 :]:
                yield from ((one, other) for one in better for other in worse)


@dataclass(frozen=True)
class PromptedResponses:
    """A prompt with responses that nobody has ranked yet."""

    prompt: Messages
    responses: tuple[str, ...]
    id: str | None = None


@dataclass(frozen=True)
class Preference:
    """One response was put above another."""

    prompt: Messages
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids, of which the first `num_prompt_tokens` come before the response."""

    ids: list[int]
    num_prompt_tokens: int
    num_dropped: int
    """Tokens lost to the maximum length."""

    @property
    def is_truncated(self) -> bool:
        return self.num_dropped > 0


@dataclass(frozen=True)
class Scorable:
    """A conversation as the token ids that a reward model reads."""

    ids: list[int]
    num_dropped: int
    """Tokens of the prompt, and of the response where it is cut, lost to the maximum length."""
    is_cut: bool
    """The response by itself is too long, and has lost its beginning."""

    @property
    def is_truncated(self) -> bool:
        return self.num_dropped > 0


def read_rankings(path: Path, split: str | None = None, aspect: str | None = None) -> Iterator[RankedResponses]:
    """Rankings of a preference set, in the order of its lines; all of them, or those of one split or one aspect.

    Raises:
        ConfigError: a line is no ranking; the message tells the line and the field.
    """
    for ranked in read_objects(path, "preferences", _ranked):
        if split in {None, ANY, ranked.split} and aspect in {None, ranked.aspect}:
            yield ranked


def read_responses(path: Path) -> Iterator[PromptedResponses]:
    """Prompts with their "responses", or their one "response", in the order of the lines.

    Raises:
        ConfigError: a line holds none; the message tells the line and the field.
    """
    return read_objects(path, "responses", _prompted)


def read_prompts(path: Path) -> Iterator[Messages]:
    """Prompts alone, from lines of {"prompt": messages or text}, in their order; a text is one message of the user's.

    Raises:
        ConfigError: a line holds none; the message tells the line and the field.
    """
    return read_objects(path, "prompts", prompt_of)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, from 1, of a file that may be gzipped; blank ones are passed over.

    Raises:
        OSError, EOFError, zlib.error: the file is not there, or damaged.
    """
    with path.open("rb") as raw, gzip.open(raw) if raw.peek(2).startswith(GZIP) else raw as file:
        for number, line in enumerate(file, start=1):
            told = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            if told.strip():
                yield number, told


def read_objects(path: Path, field: str, read: Callable[[dict[str, Any]], Row]) -> Iterator[Row]:
    """What `read` makes of the JSON object in each line.

    Args:
        field: of the configuration, that names the file.

    Raises:
        ConfigError: the file cannot be read, or `read` raises KeyError, TypeError or ValueError; the message tells the
            line.
    """
    number = 0
    try:
        for number, line in read_lines(path):
            try:
                yield read(_object(line))
            except (KeyError, TypeError, ValueError) as error:
                wrong = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
                raise ConfigError(f"{field}: line {number}: {wrong}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{field}: is damaged after line {number}: {error}") from error
    except OSError as error:
        raise ConfigError(f"{field}: {path}: {error.strerror or error}") from error


def _object(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON at column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(row, dict):
        raise ValueError("is no object with fields")
    return row


def prompt_of(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The prompt of a row: messages, or a text, which is one message of the user's.

    Raises:
        KeyError, ValueError: it has none.
    """
    return [_message(message, "prompt") for message in _messages(row["prompt"], "user", "prompt")]


def contents(value: Any, field: str) -> tuple[str, ...]:
    """The texts in a list of texts, or of messages with such.

    Raises:
        ValueError: it is none, or an empty one.
    """
    if value == []:
        raise ValueError(f"{field}: is empty")
    return tuple(_content(one, field) if isinstance(one, dict) else _text(one, field) for one in _list(value, field))


def prompt_key(prompt: Messages) -> str:
    """What is the same for equal prompts and differs between others."""
    return json.dumps([[message["role"], message["content"]] for message in prompt])


def distinct_prompts(path: Path, split: str) -> list[Messages]:
    """The prompts of one split of a preference set, each once, in order."""
    prompts = {prompt_key(ranked.prompt): ranked.prompt for ranked in read_rankings(path, split=split)}
    return list(prompts.values())


def drawn(prompts: list[Messages], wanted: int, rng: random.Random) -> list[Messages]:
    """All prompts, or `wanted` of them drawn at random; the longest first, so that batches are of similar length."""
    found = rng.sample(prompts, wanted) if 0 < wanted < len(prompts) else prompts
    return sorted(found, key=lambda prompt: -sum(len(message["content"]) for message in prompt))


def pairs(ranked: RankedResponses) -> Iterator[Preference]:
    """Each strictly ordered pair of a ranking; tied responses make none."""
    for better, worse in ranked.ordered_places():
        yield Preference(ranked.prompt, ranked.responses[better], ranked.responses[worse])


def encode(tokenizer: PreTrainedTokenizerBase, messages: Messages, response: str, max_length: int) -> Encoded:
    """Prompt and response as the tokens a model reads, closed by the template's own end or by the EOS token.

    What exceeds `max_length` is dropped from the beginning, after the BOS token: the response's end always stays.
    Where a token spans the border of prompt and response, it counts as the response's.
    """
    ids = _render_closed(tokenizer, messages, response)
    num_prompt_tokens = _num_prompt_tokens(tokenizer, messages, ids)
    kept = _truncate(tokenizer, ids, max_length)
    num_dropped = len(ids) - len(kept)
    return Encoded(kept, max(num_prompt_tokens - num_dropped, _num_begin(tokenizer, kept)), num_dropped)


def encode_to_score(tokenizer: PreTrainedTokenizerBase, messages: Messages, response: str, max_length: int) -> Scorable:
    """Prompt and response as `encode` gives them, but a prompt that is too long is cut in steps.

    The steps are a sixteenth of `max_length`: responses of about equal length keep the same part of their prompt, which
    is then computed once for all of them, and how much each keeps does not depend on the others. Only a response that
    is too long by itself loses its own beginning.
    """
    ids = _render_closed(tokenizer, messages, response)
    excess = len(ids) - max_length
    if excess <= 0:
        return Scorable(ids, 0, is_cut=False)
    num_begin = _num_begin(tokenizer, ids)
    droppable = _num_prompt_tokens(tokenizer, messages, ids) - num_begin
    step = max(1, max_length // CUTS)
    num_dropped = max(excess, min(droppable, -(-excess // step) * step))
    return Scorable(ids[:num_begin] + ids[num_begin + num_dropped :], num_dropped, is_cut=excess > droppable)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages, max_length: int, **options: Any) -> list[int]:
    """A prompt as the tokens after which a model writes its response; a longer one loses its beginning.

    Args:
        options: what the tokenizer's own chat template takes, such as `enable_thinking`; others leave it unread.
    """
    return _truncate(tokenizer, _render(tokenizer, messages, add_generation_prompt=True, **options), max_length)


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template, or a plain one: a line "Role: text" for each turn, EOS after each response."""
    if tokenizer.chat_template:
        return tokenizer.get_chat_template()
    begins = tokenizer("")["input_ids"][:1]
    begin = next((name for name in ("bos", "cls") if begins == [getattr(tokenizer, f"{name}_token_id")]), None)
    end = next((name for name in ("eos", "sep") if getattr(tokenizer, f"{name}_token_id") is not None), None)
    return (
        (f"{{{{ {begin}_token }}}}" if begin else "")
        + "{% for message in messages %}{{ '' if loop.first else '\\n\\n' }}"
        + "{{ message['role'] | capitalize }}: {{ message['content'] }}"
        + (f"{{{{ {end}_token if message['role'] == 'assistant' else '' }}}}" if end else "")
        + "{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
    )


def closing_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """A chat template that closes a response as `encode` does, for programs that know the template only."""
    template = chat_template(tokenizer)
    asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    if tokenizer.eos_token_id is None or _is_closed(tokenizer, _render(tokenizer, asked)):
        return template
    return template + "{% if messages[-1]['role'] == 'assistant' %}{{ eos_token }}{% endif %}"


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256, in hex, of all that makes tokens of a conversation.

    A tokenizer keeps besides how it padded and cut texts last, and forgets how it was saved: that does not count here.
    """
    told = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = json.dumps([told, tokenizer.chat_template, special], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()


def _ranked(row: dict[str, Any]) -> RankedResponses:
    if "chosen" in row:
        row = _from_pair(row)
    meta = _meta(row.get("meta"))
    prompt, responses = prompt_of(row), contents(row["responses"], "responses")
    ranked = RankedResponses(
        prompt=prompt,
        responses=responses,
        ranking=tuple(_group(group) for group in _list(row["ranking"], "ranking")),
        aspect=_optional_text(row, "aspect") or "overall",
        annotator=_optional_text(row, "annotator") or None,
        split=_optional_text(row, "split"),
        id=None if row.get("id") is None else _without_surrogates(str(row["id"])),
        strength=_strength(row),
        all_bad=_optional(row, "all_bad", bool) or False,
        bad=_bad(meta, len(responses)),
        source=_optional_text(row, "source") or _optional_text(row, "subset"),
        weight=_weight(row.get("weight", 1.0)),
        edited=_optional_text(row, "edited") or _edited(meta, responses),
        is_best_only=meta.get("kind") == "best",
    )
    ranked_places = [place for group in ranked.ranking for place in group]
    if len(set(ranked_places)) < len(ranked_places) or not set(ranked_places) <= set(range(len(ranked.responses))):
        raise ValueError(f"ranking: {row['ranking']} does not hold each of {len(ranked.responses)} responses once")
    if not all(ranked.ranking):
        raise ValueError("ranking: a group is empty")
    return ranked


def _prompted(row: dict[str, Any]) -> PromptedResponses:
    given = row.get("id")
    return PromptedResponses(
        prompt=prompt_of(row),
        responses=contents([row["response"]] if "response" in row else row["responses"], "responses"),
        id=_without_surrogates(given) if isinstance(given, str) else given,
    )


def _from_pair(row: dict[str, Any]) -> dict[str, Any]:
    """A row of prompt, chosen and rejected, as RewardBench and TRL write it: texts, or conversations.

    RewardBench 2 has a list of texts for each: those that were chosen stand above all others, whom nobody sorted.
    """
    if all(_are_texts(row[name]) for name in ("chosen", "rejected")):
        places = range(len(row["chosen"]) + len(row["rejected"]))
        return {
            **row,
            "responses": [*row["chosen"], *row["rejected"]],
            "ranking": [[*places[: len(row["chosen"])]], [*places[len(row["chosen"]) :]]],
            "meta": {"kind": "best"},
        }
    prompt, chosen = _response_of(row, "chosen")
    other_prompt, rejected = _response_of(row, "rejected")
    if prompt != other_prompt:
        raise ValueError("rejected: does not answer what chosen answers")
    return {**row, "prompt": prompt, "responses": [chosen, rejected], "ranking": [[0], [1]]}


def _response_of(row: dict[str, Any], field: str) -> tuple[list[dict[str, str]], str]:
    """What was answered, and the answer: the last message of a conversation, that may begin with the row's prompt."""
    conversation = [_message(message, field) for message in _messages(row[field], "assistant", field)]
    if conversation[-1]["role"] != "assistant":
        raise ValueError(f"{field}: the last message is of {conversation[-1]['role']}, not of assistant")
    *history, answer = conversation
    if row.get("prompt") is None and history:
        return history, answer["content"]
    prompt = prompt_of(row)
    if conversation[0]["role"] == "assistant":  # it goes on where the prompt ends
        return [*prompt, *history], answer["content"]
    begin = 0 if prompt[0]["role"] == "system" else sum(1 for _ in takewhile(_is_systems, history))
    if history[begin : begin + len(prompt)] != prompt:
        raise ValueError(f"{field}: does not begin with the prompt")
    return history, answer["content"]


def _is_systems(message: Mapping[str, str]) -> bool:
    return message["role"] == "system"


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _messages(value: Any, role: str, field: str) -> list[Any]:
    """A conversation, of which at least one message is there; a text is one message of that role."""
    messages = [{"role": role, "content": value}] if isinstance(value, str) else _list(value, field)
    if not messages:
        raise ValueError(f"{field}: is empty")
    return messages


def _message(message: Any, field: str) -> dict[str, str]:
    content = _content(message, field)
    if message.get("role") not in ROLES:  # a template may put the role's name into a special token
        raise ValueError(f"{field}: {message.get('role')!r} is not one of {', '.join(ROLES)}")
    return {"role": message["role"], "content": content}


def _content(message: Any, field: str) -> str:
    if not isinstance(message, dict):
        raise ValueError(f"{field}: {message!r} is no message")
    if "content" not in message:
        raise ValueError(f"{field}: content is missing")
    return _text(message["content"], field)


def _meta(value: Any) -> dict[str, Any]:
    """An object, or the text of one as `export_data` writes it; other programs keep in it what they like."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _strength(row: dict[str, Any]) -> int | None:
    """None where it is not told, which `export_data` writes as -1."""
    value = _optional(row, "strength", int)
    if value not in {*STRENGTHS, None, -1}:
        raise ValueError(f"strength: {value} is not 1 (slightly better) or 2 (strongly better)")
    return None if value == -1 else value


def _bad(meta: dict[str, Any], num_responses: int) -> tuple[int, ...]:
    """The places of bad responses, where it is these that "bad" holds."""
    bad: Any = meta.get("bad")
    return tuple(bad) if _are_places(bad) and set(bad) <= set(range(num_responses)) else ()


def _edited(meta: dict[str, Any], responses: Sequence[str]) -> str | None:
    place = meta.get("edited_response")
    return responses[place] if type(place) is int and 0 <= place < len(responses) else None


def _group(value: Any) -> tuple[int, ...]:
    if not _are_places(value):
        raise ValueError(f"ranking: a group {value!r} is no list of whole numbers")
    return tuple(value)


def _are_places(value: Any) -> bool:
    return isinstance(value, list) and all(type(place) is int for place in value)


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{field}: {value!r} is no list")
    return value


def _optional(row: dict[str, Any], field: str, kind: type[Value]) -> Value | None:
    value = row.get(field)
    if value is not None and type(value) is not kind:
        raise ValueError(f"{field}: {value!r} is not {KINDS[kind]}")
    return value


def _optional_text(row: dict[str, Any], field: str) -> str | None:
    value = _optional(row, field, str)
    return None if value is None else _without_surrogates(value)


def _weight(value: Any) -> float:
    if type(value) not in {int, float} or not 0 <= value <= sys.float_info.max:
        raise ValueError(f"weight: {value!r} is not a number from 0 on")
    return float(value)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{field}: must be text, not {value!r}")
    return _without_surrogates(value)


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, add_generation_prompt: bool = False, **options: Any
) -> list[int]:
    try:
        ids = tokenizer.apply_chat_template(
            [{"role": message["role"], "content": _without_surrogates(message["content"])} for message in messages],
            chat_template=chat_template(tokenizer),
            add_generation_prompt=add_generation_prompt,
            sanitize_control_tokens=True,
            return_dict=False,
            **options,
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ConfigError(f"the tokenizer's chat template refuses a conversation of {roles}: {error}") from error
    return list(ids)


def _render_closed(tokenizer: PreTrainedTokenizerBase, messages: Messages, response: str) -> list[int]:
    ids = _render(tokenizer, [*messages, {"role": "assistant", "content": response}])
    if tokenizer.eos_token_id is not None and not _is_closed(tokenizer, ids):
        ids.append(tokenizer.eos_token_id)
    return ids


def _num_prompt_tokens(tokenizer: PreTrainedTokenizerBase, messages: Messages, ids: Sequence[int]) -> int:
    prompt = _render(tokenizer, messages, add_generation_prompt=True)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, prompt, strict=False)))


def _without_surrogates(text: str) -> str:
    """JSON may smuggle in lone surrogates, which no tokenizer takes, nor any file in UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _is_closed(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """The last token that is not white space is a special one: the template has marked the turn's end."""
    last = next((token for token in reversed(ids) if not str(tokenizer.decode([token])).isspace()), None)
    return last in tokenizer.all_special_ids


def _truncate(tokenizer: PreTrainedTokenizerBase, ids: list[int], max_length: int) -> list[int]:
    if len(ids) <= max_length:
        return ids
    num_begin = _num_begin(tokenizer, ids)
    return ids[:num_begin] + ids[len(ids) - max_length + num_begin :]


def _num_begin(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    """How many tokens stand for the beginning: models lean on the BOS token, so it stays when a prompt is cut."""
    return int(len(ids) > 0 and ids[0] in {tokenizer.bos_token_id, tokenizer.cls_token_id})
