"""The project's own format: a prompt, K responses, and one annotator's ranking of them, a line each.

    {"id", "prompt": [{"role", "content"}, …], "responses": [{"role": "assistant", "content", "model"}, …],
     "ranking": [[best, …], …], "annotator", "aspect", "strength", "all_bad", "source", "shown_order", "seconds",
     "meta"}

Reading takes less: the prompt may be text, a response text or {"content" or "text", "model"}, and all but prompt and
responses may be absent. Writing gives every key in every row, of one type and never null, because Arrow (which
`datasets` loads with) infers the types from the first ten megabytes and refuses a file whose later rows differ: what
is not known is "" or -1, and `meta`, which has other keys from row to row, is the text of a JSON object.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from annotate.formats import jsonl
from annotate.formats.rows import MAX_MODEL, MAX_RESPONSES, MIN_RESPONSES, Record, Row, row


def read(record: Record) -> Row:
    """
    Raises:
        BadRow: a field is missing or wrong.
    """
    messages = record.check_prompt("prompt", record.check_messages("prompt", record.values.get("prompt")))
    responses = _responses(record)
    return row(record, messages, responses, _ranking(record, len(responses)))


def write(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Lines for rows of `annotate.queries.judgment_rows`."""
    for values in rows:
        yield jsonl.to_line(
            {
                **values,
                "annotator": values["annotator"] or "",
                "strength": values["strength"] or -1,
                "shown_order": values["shown_order"] or [-1],
                "seconds": -1.0 if values["seconds"] is None else values["seconds"],
                "meta": json.dumps(values["meta"], ensure_ascii=False, sort_keys=True),
            }
        )


def _responses(record: Record) -> list[tuple[str, str]]:
    responses = record.check_list("responses", record.values["responses"], "responses")
    if not MIN_RESPONSES <= len(responses) <= MAX_RESPONSES:
        message = f"must be {MIN_RESPONSES} to {MAX_RESPONSES} responses, not {len(responses)}"
        record.refuse("responses", message)
    return [_response(record, f"responses[{place}]", response) for place, response in enumerate(responses)]


def _response(record: Record, field: str, response: Any) -> tuple[str, str]:
    if isinstance(response, str):
        return response, ""
    if not isinstance(response, dict):
        record.refuse(field, 'must be text or an object {"content", "model"}')
    if response.get("role", "assistant") != "assistant":
        record.refuse(f"{field}.role", "must be assistant")
    record.check_keys(field, response, ("role", "content", "text", "model"))
    name = "text" if "text" in response and "content" not in response else "content"
    if name == "content" and response.get("text") is not None:
        record.refuse(f"{field}.text", "stands beside content; give one of them")
    model = response.get("model")
    return (
        record.check_text(f"{field}.{name}", response.get(name)),
        "" if model is None else record.check_text(f"{field}.model", model, maximum=MAX_MODEL),
    )


def _ranking(record: Record, size: int) -> list[list[int]] | None:
    groups = record.values.get("ranking")
    if groups is None:
        return None
    for place, group in enumerate(record.check_list("ranking", groups, "groups, each a list of indices")):
        for index in record.check_list(f"ranking[{place}]", group, "indices (responses that tie share one)"):
            record.check_index(f"ranking[{place}]", index, size)
        if not group:
            record.refuse(f"ranking[{place}]", "must not be empty")
    ranked = sorted(index for group in groups for index in group)
    if len(set(ranked)) < len(ranked):
        record.refuse("ranking", "holds a response twice")
    if len(ranked) < size:
        missing = ", ".join(str(index) for index in range(size) if index not in ranked)
        record.refuse("ranking", f"must place every response; {missing} is missing")
    return groups
