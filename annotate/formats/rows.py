"""The one record that every format is read into, and the checks that every format shares."""

from dataclasses import dataclass, field
from typing import Any, NoReturn

from annotate.errors import BadRow
from annotate.formats import jsonl

ROLES = ("system", "user", "assistant", "tool")
SOURCES = ("browser", "api", "import", "simulation")
STRENGTHS = (1, 2)
MIN_RESPONSES, MAX_RESPONSES = 2, 24
MAX_ID, MAX_MODEL, MAX_ANNOTATOR, MAX_ASPECT = 200, 200, 200, 100
MAX_SECONDS = 10**9
NOT_TOLD = "not told "  # how annotators whom a file does not name are called, with a number

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt with its responses as (content, model), and what one annotator said of them, if anybody did."""

    line: int
    id: str
    messages: Messages
    responses: list[tuple[str, str]]
    ranking: list[list[int]] | None
    annotator: str | None = None
    aspect: str = "overall"
    strength: int | None = None
    is_all_bad: bool = False
    source: str = "import"
    shown_order: list[int] | None = None
    seconds: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """An object of a file with its line number: reads fields, and refuses them by name."""

    line: int
    values: dict[str, Any]

    def refuse(self, field: str, message: str) -> NoReturn:
        raise BadRow(self.line, field, message)

    def text(self, name: str, *, maximum: int) -> str:
        """A short text; empty where it is absent or null."""
        value = self.values.get(name)
        return "" if value is None else self.check_text(name, value, maximum=maximum)

    def check_text(self, field: str, value: Any, *, maximum: int | None = None) -> str:
        if not isinstance(value, str):
            self.refuse(field, "must be text")
        if maximum is not None and len(value) > maximum:
            self.refuse(field, f"must have at most {maximum} characters")
        return value

    def check_list(self, field: str, value: Any, of: str) -> list[Any]:
        if not isinstance(value, list):
            self.refuse(field, f"must be a list of {of}")
        return value

    def check_messages(self, field: str, value: Any) -> Messages:
        """A conversation; text counts as what the user said."""
        if isinstance(value, str):
            value = [{"role": "user", "content": value}]
        messages = self.check_list(field, value, "messages, or text")
        return [self._message(f"{field}[{place}]", message) for place, message in enumerate(messages)]

    def _message(self, field: str, message: Any) -> dict[str, str]:
        if not isinstance(message, dict):
            self.refuse(field, 'must be an object {"role", "content"}')
        if message.get("role") not in ROLES:
            self.refuse(f"{field}.role", f"must be one of {', '.join(ROLES)}")
        content = self.check_text(f"{field}.content", message.get("content"))
        self.check_keys(field, message, ("role", "content"))
        return {"role": message["role"], "content": content}

    def check_keys(self, field: str, value: dict[str, Any], known: tuple[str, ...]) -> None:
        for key, item in value.items():
            if key not in known and item is not None:
                self.refuse(f"{field}.{key}", f"is not understood here; only {', '.join(known)} are")

    def check_prompt(self, field: str, messages: Messages) -> Messages:
        if not messages or not messages[-1]["content"].strip():
            self.refuse(field, "must not be empty")
        if messages[-1]["role"] == "assistant":
            self.refuse(field, "must end with what the assistant has to answer, not with the assistant")
        return messages

    def check_order(self, field: str, value: Any, size: int) -> list[int]:
        """Indices 0 to size - 1, each once."""
        indices = self.check_list(field, value, "indices")
        for place, index in enumerate(indices):
            self.check_index(f"{field}[{place}]", index, size)
        if sorted(indices) != list(range(size)):
            self.refuse(field, f"must hold each index from 0 to {size - 1} once")
        return indices

    def check_index(self, field: str, index: Any, size: int) -> int:
        if not isinstance(index, int) or isinstance(index, bool):
            self.refuse(field, "must be the index of a response, a whole number")
        if not 0 <= index < size:
            self.refuse(field, f"must be an index from 0 to {size - 1}, since there are {size} responses")
        return index


def row(record: Record, messages: Messages, responses: list[tuple[str, str]], ranking: list[list[int]] | None) -> Row:
    """The row whose core is given and whose other fields, common to all formats, stand in the record."""
    meta = _meta(record)
    return Row(
        line=record.line,
        id=_id(record),
        messages=messages,
        responses=_with_models(record, responses, meta),
        ranking=ranking,
        annotator=_annotator(record),
        aspect=record.text("aspect", maximum=MAX_ASPECT) or "overall",
        strength=_strength(record, ranking),
        is_all_bad=_is_all_bad(record),
        source=_source(record, meta),
        shown_order=_shown_order(record, len(responses)),
        seconds=_seconds(record),
        meta=meta,
    )


def _id(record: Record) -> str:
    value = record.values.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return "" if value is None else record.check_text("id", value, maximum=MAX_ID)


def _annotator(record: Record) -> str | None:
    name = record.text("annotator", maximum=MAX_ANNOTATOR)
    if name.startswith(NOT_TOLD):
        record.refuse("annotator", f"must not begin with {NOT_TOLD!r}; null stands for an annotator who is not told")
    return name or None


def _strength(record: Record, ranking: list[list[int]] | None) -> int | None:
    value = record.values.get("strength")
    if value is None or _is_unknown(value):
        return None
    if isinstance(value, bool) or value not in STRENGTHS:
        record.refuse("strength", "must be 1 (slightly better) or 2 (strongly better)")
    if ranking is None or [len(group) for group in ranking] != [1, 1]:
        record.refuse("strength", "belongs to a pair with a better response only")
    return int(value)


def _is_all_bad(record: Record) -> bool:
    value = record.values.get("all_bad")
    if not isinstance(value, bool | None):
        record.refuse("all_bad", "must be true or false")
    return bool(value)


def _source(record: Record, meta: dict[str, Any]) -> str:
    """How the judgment came to be; any other text names a data set, and is kept in `meta`."""
    value = record.text("source", maximum=MAX_ID)
    if value in SOURCES:
        return value
    if value:
        meta.setdefault("source", value)
    return "import"


def _shown_order(record: Record, size: int) -> list[int] | None:
    value = record.values.get("shown_order")
    if value is None or value == [] or (isinstance(value, list) and _is_unknown(value[0])):
        return None
    return record.check_order("shown_order", value, size)


def _seconds(record: Record) -> float | None:
    value = record.values.get("seconds")
    if value is None or _is_unknown(value):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_SECONDS:
        record.refuse("seconds", f"must be a number from 0 to {MAX_SECONDS}")
    return float(value)


def _is_unknown(value: Any) -> bool:
    """-1 stands for not known in files that Arrow has to read: one type a column, never null."""
    return value == -1 and not isinstance(value, bool)


def _meta(record: Record) -> dict[str, Any]:
    """An object, or the text of one (as the rankings format writes it)."""
    value = record.values.get("meta")
    if isinstance(value, str):
        value = jsonl.parse(record.line, "meta", value) if value else None
    if value is None:
        return {}
    if not isinstance(value, dict):
        record.refuse("meta", "must be an object")
    if not _is_shallow(value, jsonl.MAX_DEPTH):
        record.refuse("meta", f"is nested deeper than {jsonl.MAX_DEPTH} levels")
    return dict(value)


def _is_shallow(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    items = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_shallow(item, levels - 1) for item in items)


def _with_models(record: Record, responses: list[tuple[str, str]], meta: dict[str, Any]) -> list[tuple[str, str]]:
    """Responses that name no model have the one that `meta.models` lists at their place."""
    models = meta.get("models")
    if not isinstance(models, list):
        return responses
    if len(models) != len(responses):
        record.refuse("meta.models", f"must name a model for each of the {len(responses)} responses")
    told = [_model(record, f"meta.models[{place}]", model) for place, model in enumerate(models)]
    return [(content, model or other) for (content, model), other in zip(responses, told, strict=True)]


def _model(record: Record, field: str, value: Any) -> str:
    return "" if value is None else record.check_text(field, value, maximum=MAX_MODEL)
