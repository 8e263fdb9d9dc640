"""Battles: an annotator writes a prompt, models answer it as they write, and the answers become a comparison.

Each answer is a task on the queue `live`. While it writes, the text so far stands in Redis, where the page looks
every half second; the whole answer stands in the database. So no request lasts as long as a model, and a page that
is reloaded finds its battle as far as it is.
"""

import logging
import os
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

import redis
from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _

from annotate import policy_server, shared, tasks
from annotate.distribution import lease_place, lock_standing, take_place
from annotate.errors import NoBattle
from annotate.giveaway import giveaway
from annotate.identity import comparison_digest, messages_digest
from annotate.models import Annotator, Battle, BattleAnswer, Comparison, Endpoint, Option, Project, Prompt, Response

MIN_ANSWERS, MAX_ANSWERS = 2, 4
MAX_PROMPT = 8000  # characters
ANSWER_SECONDS = 180  # from the prompt to the last word
FLUSH_SECONDS = 0.15
State = BattleAnswer.State
UNFINISHED = (State.QUEUED, State.WRITING)

log = logging.getLogger(__name__)


def can_battle(project: Project) -> bool:
    return project.endpoints.filter(is_active=True)[:MIN_ANSWERS].count() == MIN_ANSWERS


@transaction.atomic
def start_battle(*, project: Project, annotator: Annotator, text: str, key: UUID) -> Battle:
    """Ask the project's endpoints. The same key again gives the battle that is there.

    Raises:
        NoBattle: there are not enough endpoints, or an earlier prompt is still being answered.
    """
    lock_standing(project.pk, annotator)
    if battle := Battle.objects.filter(key=key, annotator=annotator).first():
        return battle
    if BattleAnswer.objects.filter(battle__annotator=annotator, battle__project=project).filter(_alive()).exists():
        raise NoBattle(_("Your last prompt is still being answered."))
    endpoints = list(project.endpoints.filter(is_active=True))
    if len(endpoints) < MIN_ANSWERS:
        raise NoBattle(_("Too few models answer in this project."))
    messages = [{"role": "user", "content": text}]
    battle = Battle.objects.create(project=project, annotator=annotator, messages=messages, key=key)
    chosen = random.sample(endpoints, min(len(endpoints), MAX_ANSWERS))
    for position, endpoint in enumerate(chosen):
        answer = BattleAnswer.objects.create(battle=battle, endpoint=endpoint, position=position)
        transaction.on_commit(lambda pk=answer.pk: tasks.write_answer.delay(pk), robust=True)  # type: ignore[misc]
    return battle


def write_answer(*, answer_id: int) -> None:
    """Let an endpoint write its answer. A second delivery finds it claimed and leaves it."""
    claimed = BattleAnswer.objects.filter(pk=answer_id, state=State.QUEUED).update(state=State.WRITING)
    if not claimed:
        return
    answer = BattleAnswer.objects.select_related("endpoint", "battle").get(pk=answer_id)
    try:
        text = _write(answer)
    except Exception as error:  # whatever a server does, the battle must come to its end
        log.warning(
            "Endpoint %s did not answer battle %s: %s", answer.endpoint_id, answer.battle_id, type(error).__name__
        )
        _end(answer, state=State.FAILED, error=_words(error, answer.endpoint))
    else:
        _end(answer, state=State.DONE, text=text)


def finish_battle(*, battle: Battle) -> Battle:
    """Make the comparison as soon as every answer is there; called by whoever looks at the battle."""
    battle.answers.filter(~_alive(), state__in=UNFINISHED).update(state=State.FAILED, error="No answer in time.")
    if battle.comparison_id is None and not battle.answers.filter(state__in=UNFINISHED).exists():
        with transaction.atomic():
            _make_comparison(battle)
    return battle


def has_failed(battle: Battle) -> bool:
    states = [answer.state for answer in battle.answers.all()]
    return states.count(State.FAILED) > len(states) - MIN_ANSWERS


def texts_so_far(battle: Battle) -> list[str]:
    """Each answer as far as it is written, in the order shown."""
    answers = list(battle.answers.all())
    try:
        with shared.connect() as connection:
            written = connection.mget([_place(answer.pk) for answer in answers])
    except redis.RedisError:
        written = [None] * len(answers)
    return [
        answer.text or (so_far.decode("utf-8", "replace") if so_far else "")
        for answer, so_far in zip(answers, written, strict=True)
    ]


def _alive() -> Q:
    return Q(state__in=UNFINISHED, battle__created_at__gt=timezone.now() - timedelta(seconds=ANSWER_SECONDS))


def _write(answer: BattleAnswer) -> str:
    text, shown_at = "", time.monotonic()
    for piece in _pieces(answer.endpoint, answer.battle.messages):
        text += piece
        if time.monotonic() - shown_at > FLUSH_SECONDS:
            _show(answer, text)
            shown_at = time.monotonic()
    if not text.strip():
        raise NoBattle("The answer is empty.")
    return text


def _show(answer: BattleAnswer, text: str) -> None:
    with suppress(redis.RedisError), shared.connect() as connection:  # without it the page waits for the whole answer
        connection.set(_place(answer.pk), text, ex=ANSWER_SECONDS)


def _pieces(endpoint: Endpoint, messages: list[dict[str, str]]) -> Iterator[str]:
    import openai  # noqa: PLC0415 -- takes a second to load, and only the live worker needs it

    key = os.environ.get(endpoint.key_variable, "") if endpoint.key_variable else "none"
    if not key:
        raise NoBattle(f"The environment variable {endpoint.key_variable} is not set.")
    url = endpoint.base_url if endpoint.kind == Endpoint.Kind.OPENAI else policy_server.base_url()
    with openai.OpenAI(base_url=url, api_key=key, timeout=ANSWER_SECONDS, max_retries=2) as client:
        stream: Iterable[Any] = client.chat.completions.create(
            model=endpoint.model,
            messages=messages,  # type: ignore[arg-type]
            max_tokens=endpoint.max_tokens,
            temperature=endpoint.temperature,
            stream=True,
        )
        for chunk in stream:
            if chunk.choices and (piece := chunk.choices[0].delta.content):
                yield piece


def _words(error: Exception, endpoint: Endpoint) -> str:
    """What went wrong, for the lead; never the key, whatever the server put into its message."""
    words = f"{type(error).__name__}: {error}"
    if key := os.environ.get(endpoint.key_variable, ""):
        words = words.replace(key, "[key]")
    return words[:300]


def _end(answer: BattleAnswer, **values: Any) -> None:
    BattleAnswer.objects.filter(pk=answer.pk, state=State.WRITING).update(**values, changed_at=timezone.now())


def _make_comparison(battle: Battle) -> None:
    lock_standing(battle.project_id, battle.annotator)
    battle.refresh_from_db()
    answers = list(battle.answers.select_related("endpoint").filter(state=State.DONE).order_by("endpoint"))
    if battle.comparison_id is not None or len(answers) < MIN_ANSWERS:
        return
    prompt, _made = Prompt.objects.get_or_create(
        project_id=battle.project_id,
        digest=messages_digest(battle.messages),
        defaults={"messages": battle.messages, "author": battle.annotator},
    )
    responses = [_response(prompt, answer) for answer in answers]
    battle.comparison = _comparison(battle.project, prompt, responses)
    battle.save(update_fields=["comparison"])
    is_open = Comparison.objects.filter(pk=battle.comparison.pk).open_to(battle.annotator).exists()
    if is_open and take_place(battle.comparison):
        lease_place(battle.comparison, battle.project, battle.annotator, timezone.now())


def _response(prompt: Prompt, answer: BattleAnswer) -> Response:
    values = {"content": answer.text, "model": answer.endpoint.name}
    response = Response(prompt=prompt, giveaway=giveaway(**values), **values)
    response.digest = response.make_digest()
    stored = Response.objects.filter(prompt=prompt, digest=response.digest).first()
    if stored is None:
        response.save()
    return stored or response


def _comparison(project: Project, prompt: Prompt, responses: list[Response]) -> Comparison:
    digest = comparison_digest(prompt.digest, [response.digest for response in responses])
    comparison, is_new = Comparison.objects.get_or_create(
        project=project,
        digest=digest,
        defaults={"prompt": prompt, "num_responses": len(responses), "num_wanted": project.overlap},
    )
    if is_new:
        Option.objects.bulk_create(
            Option(comparison=comparison, response=response, position=position)
            for position, response in enumerate(responses)
        )
    return comparison


def _place(answer_id: int) -> str:
    return f"plumbline:battle-answer:{answer_id}"
