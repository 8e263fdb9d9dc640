"""Two policies before annotators: sending pairs of their answers to a project, and closing what is left of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from annotate import guidance
from annotate.formats.rows import Row
from annotate.guidance import Asked
from annotate.identity import comparison_digest, digest, messages_digest, response_digest
from annotate.models import Comparison, Judgment, Lease, Project, Response
from annotate.services import import_rows
from annotate.stats import sequential
from training import contest_samples
from training.contest_samples import Pair
from training.models import Contest, ContestPair, TrainingRun

POWER = 0.9
PAIRS_AT_ONCE = 500


class CannotSend(Exception):
    """There is nothing to compare; the message says why."""


@dataclass(frozen=True)
class Sent:
    contest: Contest
    asked: Asked


def num_votes(aim: str, points: float) -> int:
    """Votes with which the aim is reached: an effect with a power of 90 %.

    Raises:
        ValueError: nothing can be aimed at so.
    """
    if aim == Contest.Aim.EFFECT:
        return sequential.num_votes(points / 100, POWER)
    return sequential.num_votes_for_precision(points / 100)


def send(
    *,
    run: TrainingRun,
    project: Project,
    challenger: str,
    opponent: str,
    aim: str,
    points: float,
    user: User | None = None,
) -> Sent:
    """Put pairs of two policies' answers before a project's annotators, blind, as many as the aim needs.

    The same again makes nothing new; with another aim the contest goes on with as many pairs as that one needs, and
    one that was closed is opened.

    Raises:
        CannotSend: they have no prompt in common to which they answer differently.
    """
    found = contest_samples.pairs(run, project, challenger, opponent)
    if not found.pairs:
        raise CannotSend(_nothing(found.num_identical))
    by_prompt = {messages_digest(pair.prompt): pair for pair in found.pairs}
    who = {"run": run, "project": project, "challenger": challenger, "opponent": opponent}
    told = {"aim": aim, "points": points, "num_wanted": num_votes(aim, points), "closed_at": None}
    told |= {
        "num_prompts": len(found.pairs),
        "num_identical": found.num_identical,
        **_labels(run, challenger, opponent),
    }
    return _send(who, told, by_prompt, user)


def _labels(run: TrainingRun, challenger: str, opponent: str) -> dict[str, Any]:
    """What both are called where no run is named, and which runs saved them."""
    labels, saved = contest_samples.labels(run), contest_samples.saved_by(run)
    both = {"challenger": challenger, "opponent": opponent}
    return {f"{which}_label": labels[name] for which, name in both.items()} | {
        f"{which}_run_id": saved[name].pk if name in saved else None for which, name in both.items()
    }


@transaction.atomic
def _send(who: dict[str, Any], told: dict[str, Any], by_prompt: dict[str, Pair], user: User | None) -> Sent:
    """What files say has been read by now, and how many votes it takes is known: others wait for the writes alone."""
    project: Project = who["project"]
    Project.objects.select_for_update(no_key=True).values_list("pk").get(pk=project.pk)  # of two presses, one first
    contest, _ = Contest.objects.update_or_create(**who, defaults=told, create_defaults={**told, "created_by": user})
    there = set(contest.pairs.values_list("comparison__prompt__digest", flat=True))
    new = [pair for prompt, pair in by_prompt.items() if prompt not in there]  # one pair for each prompt
    _store(contest, new[: max(0, contest.num_wanted - len(there))])
    Comparison.objects.filter(pk__in=contest.pairs.values("comparison")).update(is_trial=True, is_closed=False)
    return Sent(contest, guidance.ask_first(project=project, pairs=_unjudged(contest), is_trial=True))


def _nothing(num_identical: int) -> str:
    if num_identical:
        return f"There is nothing to judge: the two answer the same to all {num_identical} prompts."
    return "There is nothing to judge: the two have no prompt in common."


def _store(contest: Contest, pairs: Sequence[Pair]) -> None:
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        _store_some(contest, pairs[start : start + PAIRS_AT_ONCE])


def _store_some(contest: Contest, pairs: Sequence[Pair]) -> None:
    """Prompts, responses and comparisons as if they were imported; what is there already is used."""
    import_rows(project=contest.project, rows=[_row(pair) for pair in pairs])
    digests = [_digests(pair) for pair in pairs]
    own = Comparison.objects.filter(project=contest.project, digest__in=[one.comparison for one in digests])
    own.filter(num_taken=0).update(num_wanted=1)  # only first votes count, whatever the project asks of others
    comparisons = dict(own.values_list("digest", "pk"))
    answers = Response.objects.filter(
        prompt__project=contest.project, prompt__digest__in=[one.prompt for one in digests]
    )
    responses = {(prompt, digest): pk for prompt, digest, pk in answers.values_list("prompt__digest", "digest", "pk")}
    ContestPair.objects.bulk_create(
        [
            ContestPair(
                contest=contest,
                comparison_id=comparisons[one.comparison],
                challenger_id=responses[one.prompt, one.challenger],
                opponent_id=responses[one.prompt, one.opponent],
                scores=pair.scores,
            )
            for pair, one in zip(pairs, digests, strict=True)
        ],
        ignore_conflicts=True,
    )


def _row(pair: Pair) -> Row:
    """In the order of the texts: not even the numbers that the answers get on the page tell whose they are."""
    both = sorted((pair.challenger, pair.opponent), key=lambda one: digest(one.text))
    return Row(line=0, id="", messages=pair.prompt, responses=[(one.text, one.source) for one in both], ranking=None)


@dataclass(frozen=True)
class _Digests:
    prompt: str
    challenger: str
    opponent: str

    @property
    def comparison(self) -> str:
        return comparison_digest(self.prompt, [self.challenger, self.opponent])


def _digests(pair: Pair) -> _Digests:
    answers = [response_digest(one.text, one.source, 0) for one in (pair.challenger, pair.opponent)]
    return _Digests(messages_digest(pair.prompt), *answers)


def _unjudged(contest: Contest) -> list[guidance.Pair]:
    """Pairs that nobody has judged nor is just looking at, in their order."""
    touched = [model.objects.filter(project=contest.project_id).values("comparison") for model in (Judgment, Lease)]
    pairs = contest.pairs.exclude(comparison__in=touched[0]).exclude(comparison__in=touched[1])
    rows = pairs.values_list("comparison__prompt", "challenger", "opponent")
    return [guidance.Pair(prompt, (challenger, opponent)) for prompt, challenger, opponent in rows]


@transaction.atomic
def close(*, contest: Contest) -> int:
    """Ask nobody any more; what is being judged just now still counts. Return how many comparisons were open.

    A pair that another open contest has as well stays as it is.
    """
    Project.objects.select_for_update(no_key=True).values_list("pk").get(pk=contest.project_id)  # two may share pairs
    Contest.objects.filter(pk=contest.pk, closed_at=None).update(closed_at=timezone.now())
    of_others = ContestPair.objects.filter(contest__closed_at=None).exclude(contest=contest)
    own = Comparison.objects.filter(pk__in=contest.pairs.values("comparison")).exclude(
        pk__in=of_others.values("comparison")
    )
    num_open = own.filter(num_taken__lt=F("num_wanted")).count()
    own.filter(is_gold=False).update(is_closed=True, num_wanted=F("num_taken"))
    return num_open
