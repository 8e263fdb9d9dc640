"""Pairs for TRL's trainers: {"prompt", "chosen", "rejected"}, conversational, one for each strictly ordered pair."""

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any

from annotate.formats import jsonl


def write(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Lines for rows of `annotate.queries.judgment_rows`; responses that tie make no pair."""
    for values in rows:
        said = [[_message(values["responses"][index]) for index in group] for group in values["ranking"]]
        for better, worse in combinations(said, 2):
            for chosen in better:
                for rejected in worse:
                    yield jsonl.to_line({"prompt": values["prompt"], "chosen": [chosen], "rejected": [rejected]})


def _message(response: dict[str, str]) -> dict[str, str]:
    return {"role": "assistant", "content": response["content"]}
