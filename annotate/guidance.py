"""Guiding annotation: reward models' scores become priorities of open comparisons, and new pairs to ask.

This app knows nothing of training. It hands out prompts with their responses, and takes the scores of an ensemble's
members back, in nats. A score belongs to a response, so a response that stands in many comparisons is scored once.
The share that is asked at random is the queue's to keep (`Project.random_share`), not the priorities'.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from django.db import connection, transaction
from django.db.models import Count, Exists, F, Max, OuterRef

from annotate.identity import comparison_digest
from annotate.insert import insert
from annotate.models import OPEN, Comparison, Option, Project, Prompt, Response
from annotate.stats.selection import BALD, Candidates, asking_order, pairs_of, priorities

T = TypeVar("T")
PROMPTS_AT_ONCE = 500
ROWS_AT_ONCE = 500
CONSIDERED_PER_PAIR = 20  # pairs kept for each one wanted, from which a diverse batch is chosen


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt's responses with the score that each member gives them, in nats."""

    prompt: int
    scores: Mapping[int, Sequence[float]]


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt, by their ids."""

    prompt: int
    responses: tuple[int, int]


@dataclass(frozen=True)
class Asked:
    """What became of pairs that somebody wants judged; each counts once.

    New comparisons, old ones that had all their judgments and now take one more, and those that were open anyway.
    """

    num_new: int
    num_further: int
    num_open: int


def prompts_to_score(project: Project, *, is_only_open: bool = True) -> Iterator[dict[str, Any]]:
    """Prompts with an open comparison, or all that have two responses, as rows: id, prompt and responses with ids."""
    prompts = Prompt.objects.filter(project=project)
    if is_only_open:
        prompts = prompts.filter(Exists(Comparison.objects.filter(OPEN, prompt=OuterRef("pk"))))
    else:
        prompts = prompts.annotate(num=Count("responses")).filter(num__gte=2)
    for prompt in prompts.order_by("pk").prefetch_related("responses").iterator(chunk_size=PROMPTS_AT_ONCE):
        responses = sorted(prompt.responses.all(), key=lambda response: response.pk)
        yield {
            "id": prompt.pk,
            "prompt": prompt.messages,
            "responses": [{"id": response.pk, "content": response.content} for response in responses],
        }


# Priorities


def accept_scores(
    *,
    project: Project,
    scores: Iterable[ScoredPrompt],
    strategy: str = BALD,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> int:
    """Give open comparisons their priorities, the most informative the highest; return how many.

    A comparison with a response that has no score keeps its priority, and so does one of a trial: which of those have
    been asked by now must not depend on what a model makes of them. `progress` is called now and then.

    Raises:
        ValueError: an unknown strategy, fewer than two members, or a score that is no finite number.
    """
    comparisons: list[int] = []
    parts: list[Candidates] = []
    for batch in _batches(scores, PROMPTS_AT_ONCE):
        for of_one_length in _open_comparisons(project, batch).values():
            comparisons += of_one_length
            parts.append(Candidates.from_scores(np.stack(list(of_one_length.values()), axis=1), strategy))
    if not parts:
        return 0
    order = asking_order(Candidates.joined(parts), np.random.default_rng(seed))
    num_written = 0
    for chunk in _batches(zip(comparisons, priorities(order).tolist(), strict=True), ROWS_AT_ONCE):
        num_written += _write(dict(chunk))
        progress()
    return num_written


def _open_comparisons(project: Project, batch: list[ScoredPrompt]) -> dict[int, dict[int, np.ndarray]]:
    """By their number of responses, open comparisons of these prompts: their (M, K) scores."""
    scores = {response: own for scored in batch for response, own in scored.scores.items()}
    found_open = Comparison.objects.filter(OPEN, is_trial=False, prompt__in=[scored.prompt for scored in batch])
    # a condition on the project would have the database look through all of its open comparisons
    own = [pk for pk, owner in found_open.values_list("pk", "project_id") if owner == project.pk]
    responses: dict[int, list[int]] = defaultdict(list)
    for chunk in _batches(own, ROWS_AT_ONCE):
        options = Option.objects.filter(comparison__in=chunk).order_by("comparison", "position")
        for comparison, response in options.values_list("comparison", "response"):
            responses[comparison].append(response)
    found: dict[int, dict[int, np.ndarray]] = defaultdict(dict)
    for comparison, listed in responses.items():
        if all(response in scores for response in listed):
            found[len(listed)][comparison] = np.array([scores[response] for response in listed]).T
    return found


@transaction.atomic
def _write(new: dict[int, float], *, is_trial: bool = False) -> int:
    """Change the priorities of comparisons that are still open; return how many.

    What somebody is just taking is left as it is: nobody waits for anybody. By plain statements: `bulk_update`
    makes one of CASEs, which takes thirty times as long.
    """
    own = Comparison.objects.filter(OPEN, pk__in=new, is_trial=is_trial)
    still_open = own.select_for_update(no_key=True, skip_locked=True)
    changed = [(new[pk], pk) for pk in still_open.values_list("pk", flat=True)]
    table = connection.ops.quote_name(Comparison._meta.db_table)
    with connection.cursor() as cursor:
        cursor.executemany(f"UPDATE {table} SET priority = %s WHERE id = %s", changed)  # noqa: S608 -- our own table
    return len(changed)


# Pairs


def propose_pairs(
    *,
    project: Project,
    scores: Iterable[ScoredPrompt],
    number: int,
    strategy: str = BALD,
    seed: int = 0,
) -> int:
    """Make comparisons of the most informative pairs of responses to one prompt; return how many.

    A pair that is compared already is left out. The new ones have no priority yet: `accept_scores` gives them one
    among all open comparisons.

    Raises:
        ValueError: as `accept_scores`.
    """
    pairs: list[Pair] = []
    candidates: list[Candidates] = []
    generator = np.random.default_rng(seed)
    for batch in _batches(scores, PROMPTS_AT_ONCE):
        compared = _compared(batch)
        for scored in batch:
            new = [pair for pair in _pairs(scored) if pair.responses not in compared]
            if new:
                pairs += new
                candidates.append(Candidates.from_scores(_scores_of(new, scored), strategy))
        pairs, candidates = _best(pairs, candidates, CONSIDERED_PER_PAIR * number)
    if not pairs:
        return 0
    order = asking_order(candidates[0], generator, num_diverse=number)
    chosen = (pairs[place] for place in order[:number])
    return sum(_make(project, _by_digest(chunk)) for chunk in _batches(chosen, ROWS_AT_ONCE))


def _pairs(scored: ScoredPrompt) -> Iterator[Pair]:
    responses = sorted(scored.scores)
    for first, second in pairs_of(len(responses)):
        yield Pair(scored.prompt, (responses[first], responses[second]))


def _scores_of(pairs: list[Pair], scored: ScoredPrompt) -> np.ndarray:
    """(M, N, 2)"""
    return np.array([[scored.scores[response] for response in pair.responses] for pair in pairs]).transpose(2, 0, 1)


def _compared(batch: list[ScoredPrompt]) -> set[tuple[int, ...]]:
    """Pairs of responses to these prompts that are a comparison of their own."""
    options = Option.objects.filter(
        comparison__prompt__in=[scored.prompt for scored in batch], comparison__num_responses=2
    )
    responses: dict[int, list[int]] = defaultdict(list)
    for comparison, response in options.values_list("comparison", "response"):
        responses[comparison].append(response)
    return {tuple(sorted(own)) for own in responses.values()}


def _best(pairs: list[Pair], candidates: list[Candidates], number: int) -> tuple[list[Pair], list[Candidates]]:
    """Those of highest value, as one: memory does not grow with the number of prompts."""
    if not pairs:
        return pairs, candidates
    joined = Candidates.joined(candidates)
    kept = np.argsort(-joined.values, kind="stable")[:number]
    return [pairs[place] for place in kept], [
        Candidates(joined.values[kept], joined.vectors[kept], joined.weights[kept])
    ]


@transaction.atomic
def ask_first(*, project: Project, pairs: Sequence[Pair], is_trial: bool = False) -> Asked:
    """Put these pairs before annotators next, in this order; the same pairs again find them open and add nothing.

    A pair whose answer is known stands outside the queue and stays there. Whoever has judged a pair is not asked again.
    A trial's pairs are for the trial alone to ask (`is_trial`).
    """
    wanted = _by_digest(pairs)
    num_new = _make(project, wanted)
    own = Comparison.objects.filter(project=project, digest__in=wanted, is_gold=False, gold=None)
    if is_trial:
        own.update(is_trial=True, is_closed=False)
    own = own.filter(is_trial=is_trial)
    num_further = own.filter(num_taken__gte=F("num_wanted")).update(num_wanted=F("num_taken") + 1)
    found = dict(own.values_list("digest", "pk"))
    order = [found[digest] for digest in wanted if digest in found]
    highest = Comparison.objects.filter(OPEN, project=project).aggregate(found=Max("priority"))["found"] or 0.0
    _write({pk: highest + len(order) - place for place, pk in enumerate(order)}, is_trial=is_trial)
    return Asked(num_new, num_further, num_open=len(order) - num_new - num_further)


def _by_digest(pairs: Sequence[Pair]) -> dict[str, Pair]:
    """Pairs by the digest that their comparison has."""
    prompt_digests = dict(Prompt.objects.filter(pk__in={pair.prompt for pair in pairs}).values_list("pk", "digest"))
    responses = {response for pair in pairs for response in pair.responses}
    digests = dict(Response.objects.filter(pk__in=responses).values_list("pk", "digest"))
    return {
        comparison_digest(prompt_digests[pair.prompt], [digests[response] for response in pair.responses]): pair
        for pair in pairs
    }


@transaction.atomic
def _make(project: Project, wanted: dict[str, Pair]) -> int:
    """Store those comparisons that are not there yet; return how many."""
    Project.objects.select_for_update(no_key=True).values_list("pk").get(pk=project.pk)  # two may store the same
    there = set(Comparison.objects.filter(project=project, digest__in=wanted).values_list("digest", flat=True))
    new = {digest: pair for digest, pair in wanted.items() if digest not in there}
    rows = [(project.pk, pair.prompt, digest, 2, project.overlap) for digest, pair in new.items()]
    ids = insert(Comparison, ("project", "prompt", "digest", "num_responses", "num_wanted"), rows)
    options = [
        (comparison, response, position)
        for comparison, pair in zip(ids, new.values(), strict=True)
        for position, response in enumerate(pair.responses)
    ]
    insert(Option, ("comparison", "response", "position"), options)
    return len(new)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
