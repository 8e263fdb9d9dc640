"""TRL's preference format: {"prompt", "chosen", "rejected"}, as text or as conversations.

A conversation may stand in `chosen` and `rejected` alone; its prompt is then what both begin with. Only one message
of the assistant may follow the prompt, because that is what a response is here.
"""

from itertools import takewhile

from annotate.formats.rows import Messages, Record, Row, row


def read(record: Record) -> Row:
    """
    Raises:
        BadRow: a field is missing or wrong.
    """
    chosen, rejected = _conversation(record, "chosen"), _conversation(record, "rejected")
    if record.values.get("prompt") is not None:
        prompt = record.check_prompt("prompt", record.check_messages("prompt", record.values["prompt"]))
    else:
        prompt = record.check_prompt("chosen", _common_beginning(record, chosen, rejected))
    contents = [_response(record, "chosen", chosen, prompt), _response(record, "rejected", rejected, prompt)]
    return row(record, prompt, [(content, "") for content in contents], [[0], [1]])


def _conversation(record: Record, name: str) -> Messages:
    value = record.values.get(name)
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return record.check_messages(name, value)


def _common_beginning(record: Record, chosen: Messages, rejected: Messages) -> Messages:
    if isinstance(record.values["chosen"], str) or isinstance(record.values["rejected"], str):
        record.refuse("prompt", "is missing; where chosen and rejected are text, it must stand by itself")
    pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    prompt = [mine for mine, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    if not prompt:
        record.refuse("prompt", "is missing, and chosen and rejected begin with no message in common")
    return prompt


def _response(record: Record, name: str, conversation: Messages, prompt: Messages) -> str:
    """The one assistant message after the prompt, which the conversation may repeat."""
    start = len(prompt) if conversation[: len(prompt)] == prompt else 0
    answer = conversation[start:]
    if len(answer) != 1:
        record.refuse(name, f"must hold one message after the prompt, not {len(answer)}")
    if answer[0]["role"] != "assistant":
        record.refuse(f"{name}[{start}].role", "must be assistant")
    return answer[0]["content"]
