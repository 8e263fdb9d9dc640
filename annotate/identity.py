"""Digests by which the same prompt, response, comparison or row is recognised again.

Standard library only. A digest is the SHA-256 of canonical JSON, so it does not depend on the database, on the
order of import or on how a file spelled its JSON.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    # surrogatepass: JSON may smuggle in lone surrogates, which UTF-8 cannot carry
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def messages_digest(messages: list[dict[str, str]]) -> str:
    return digest([[message["role"], message["content"]] for message in messages])


def response_digest(content: str, model: str, copy: int) -> str:
    return digest([content, model, copy])


def comparison_digest(prompt_digest: str, response_digests: Iterable[str]) -> str:
    """The same prompt with the same set of responses is the same comparison, in whatever order they are listed."""
    return digest([prompt_digest, sorted(response_digests)])
