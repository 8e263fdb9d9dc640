"""Writes: judging in the browser, importing files, simulated annotators, the demonstration project.

Judging is leased: `lease_next` takes a place at a comparison before it is shown, `record_judgment` turns the lease
into a judgment, `skip_comparison` gives the place back. Places are counted by conditional updates of
`Comparison.num_taken`; row locks (PostgreSQL) or the one writer (SQLite) only spare the losers of a race a retry.
Lock order everywhere: annotator, lease, comparison.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import F, Q, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone

from annotate.errors import BadRanking, NotLeased
from annotate.models import OVERALL, Annotator, Comparison, Judgment, Lease, Option, Project, Skip

REAPED_AT_ONCE = 100  # expired leases given back by one call: its cost stays flat after a long break


@transaction.atomic
def annotator_for(*, user: User) -> Annotator:
    person = {"kind": Annotator.Kind.PERSON, "name": user.get_username()}
    return Annotator.objects.get_or_create(user=user, defaults=person)[0]


def lease_next(*, project: Project, annotator: Annotator, now: datetime | None = None) -> Lease | None:
    """The comparison this annotator should judge next, held for them; none if there is nothing left for them."""
    now = now or timezone.now()
    expired = Lease.objects.filter(project=project, expires_at__lte=now)
    if expired.exists():
        _reap(expired)  # its own transaction: it locks other comparisons than the one about to be taken
    return _lease_next(project, annotator, now)


@transaction.atomic
def _lease_next(project: Project, annotator: Annotator, now: datetime) -> Lease | None:
    _lock(annotator)
    mine = Lease.objects.filter(annotator=annotator, project=project, expires_at__gt=now)
    if lease := mine.select_related("comparison").first():
        return lease
    comparison = _free_comparison(project, annotator)
    if comparison is None or not _take_place(comparison):
        return None
    response_ids = comparison.options.values_list("response_id", flat=True)
    return Lease.objects.create(
        comparison=comparison,
        project=project,
        annotator=annotator,
        shown_order=shown_order(comparison, annotator, response_ids),
        leased_at=now,
        expires_at=now + timedelta(minutes=project.lease_minutes),
    )


@transaction.atomic
def record_judgment(
    *,
    comparison: Comparison,
    annotator: Annotator,
    ranking: list[list[int]],
    key: UUID,
    source: str,
    strength: int | None = None,
    is_all_bad: bool = False,
    aspect: str = OVERALL,
    seconds: float | None = None,
) -> Judgment:
    """Store one annotator's ranking of response ids, best first, ties as groups.

    The same submit again, or another one for the same comparison and aspect, returns what is stored. A judgment
    that comes after its lease ran out takes a free place, or is kept as an extra one.

    Raises:
        BadRanking: the ranking is no partition of the comparison's responses, or the strength does not fit it.
        NotLeased: the comparison was never shown to this annotator.
    """
    _lock(annotator)
    if stored := _stored_judgment(comparison, annotator, aspect, key):
        return stored
    response_ids = list(comparison.options.values_list("response_id", flat=True))
    check_ranking(ranking, response_ids, strength)
    was_held, _ = Lease.objects.filter(comparison=comparison, annotator=annotator).delete()
    if not was_held and key != Lease.key_for(comparison.pk, annotator.pk):
        raise NotLeased("This comparison was not shown to you.")
    return Judgment.objects.create(
        comparison=comparison,
        project_id=comparison.project_id,
        annotator=annotator,
        aspect=aspect,
        ranking=ranking,
        strength=strength,
        is_all_bad=is_all_bad,
        is_extra=not was_held and not _take_place(comparison),
        shown_order=shown_order(comparison, annotator, response_ids),
        seconds=seconds if seconds is not None and math.isfinite(seconds) and seconds >= 0 else None,
        source=source,
        key=key,
    )


@transaction.atomic
def skip_comparison(*, comparison: Comparison, annotator: Annotator) -> None:
    """Give the comparison back and never offer it to this annotator again."""
    _lock(annotator)
    was_held, _ = Lease.objects.filter(comparison=comparison, annotator=annotator).delete()
    if was_held:
        Comparison.objects.filter(pk=comparison.pk).update(num_taken=F("num_taken") - 1)
    Skip.objects.get_or_create(comparison=comparison, annotator=annotator)


def check_ranking(ranking: list[list[int]], items: Iterable[int], strength: int | None) -> None:
    """Refuse a ranking that is no partition of `items`, or a strength that nothing is stronger by.

    Raises:
        BadRanking: says which.
    """
    if not all(ranking) or sorted(item for group in ranking for item in group) != sorted(items):
        raise BadRanking("The ranking must hold each response of the comparison exactly once.")
    if strength is not None and (
        strength not in Judgment.Strength.values or [len(group) for group in ranking] != [1, 1]
    ):
        raise BadRanking("Only a pair with a better response has a strength: 1 slightly, 2 strongly.")


def _lock(annotator: Annotator) -> None:
    """One thing at a time for each annotator: two tabs, or a submit sent twice, come one after the other."""
    Annotator.objects.select_for_update(no_key=True).values_list("pk").get(pk=annotator.pk)


def _free_comparison(project: Project, annotator: Annotator) -> Comparison | None:
    """An open comparison, from the one judged last onwards, then from the first; locked where rows can be locked.

    Going on from the last one keeps the search short for somebody who is far ahead of everybody else.
    """
    mine = Judgment.objects.filter(project=project, annotator=annotator).order_by("-pk")
    last = Coalesce(Subquery(mine.values("comparison_id")[:1]), 0)
    open_comparisons = Comparison.objects.filter(project=project).open_to(annotator).order_by("pk")
    searches = (
        (open_comparisons.filter(pk__gt=last), True),
        (open_comparisons, True),
        (open_comparisons, False),  # others are at all that is left: wait for what they leave
    )
    for candidates, skip_locked in searches:
        if comparison := candidates.select_for_update(no_key=True, skip_locked=skip_locked).first():
            return comparison
    return None


def _take_place(comparison: Comparison) -> bool:
    free = Comparison.objects.filter(pk=comparison.pk, num_taken__lt=F("num_wanted"))
    return free.update(num_taken=F("num_taken") + 1) == 1


def shown_order(comparison: Comparison, annotator: Annotator, response_ids: Iterable[int]) -> list[int]:
    """The order from left to right, drawn once for ever for this annotator and comparison."""
    order = sorted(response_ids)
    random.Random(f"{annotator.pk} {comparison.pk}").shuffle(order)
    return order


def _stored_judgment(comparison: Comparison, annotator: Annotator, aspect: str, key: UUID) -> Judgment | None:
    same = Q(key=key) | Q(comparison=comparison, annotator=annotator, aspect=aspect, repeat=0)
    stored = Judgment.objects.filter(same).order_by("pk").first()
    if stored and stored.annotator_id != annotator.pk:
        raise NotLeased("This page belongs to somebody else.")
    return stored


@transaction.atomic
def _reap(expired: Any) -> None:
    """Delete expired leases and free their places; leases that another call is reaping are left to it."""
    leases = expired.select_for_update(skip_locked=True).order_by("pk")[:REAPED_AT_ONCE]
    held = dict(leases.values_list("pk", "comparison_id"))
    list(
        Comparison.objects.select_for_update(no_key=True).filter(pk__in=held.values()).order_by("pk").values_list("pk")
    )
    Lease.objects.filter(pk__in=held).delete()
    places = Counter(held.values())
    for num_places in set(places.values()):
        emptied = [pk for pk, count in places.items() if count == num_places]
        Comparison.objects.filter(pk__in=emptied).update(num_taken=F("num_taken") - num_places)
