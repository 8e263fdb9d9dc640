"""Which comparison an annotator gets next, and its lease.

Places are counted by conditional updates of `Comparison.num_taken`. Whoever calls `next_lease` holds the annotator's
standing locked, so that one annotator gets one comparison at a time.
"""

import random
from collections import Counter
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Case, F, QuerySet, When
from django.utils.translation import gettext as _

from annotate.errors import NotLeased
from annotate.models import Annotator, Comparison, Gold, Lease, Mirror, Project, Response, Standing

REAPED_AT_ONCE = 100  # expired leases given back by one call: its cost stays flat after a long break
MAX_HELD = 2  # the comparison on the page, and the one that the page has fetched ahead

# In words of the database: putting this query together by Django takes longer than all else that a submit reads.
FREE = """
    SELECT comparison.* FROM annotate_comparison AS comparison
    WHERE comparison.project_id = %(project)s
      AND NOT comparison.is_gold AND comparison.num_taken < comparison.num_wanted {beyond}
      AND NOT EXISTS (SELECT 1 FROM annotate_judgment AS mine
                      WHERE mine.comparison_id = comparison.id AND mine.annotator_id = %(annotator)s)
      AND NOT EXISTS (SELECT 1 FROM annotate_skip AS mine
                      WHERE mine.comparison_id = comparison.id AND mine.annotator_id = %(annotator)s)
      AND NOT EXISTS (SELECT 1 FROM annotate_lease AS mine
                      WHERE mine.comparison_id = comparison.id AND mine.annotator_id = %(annotator)s)
      AND NOT EXISTS (SELECT 1 FROM annotate_option AS option
                      JOIN annotate_response AS response ON response.id = option.response_id
                      WHERE option.comparison_id = comparison.id AND response.author_id = %(annotator)s)
    ORDER BY {order} LIMIT 1 {lock}
"""
SHUFFLE_OF_LAST = "SELECT last.shuffle FROM annotate_comparison AS last WHERE last.id = %(last)s"


def reap(project: Project, now: datetime) -> None:
    """Give back what expired leases hold, in a transaction of its own: it locks comparisons that callers do not."""
    expired = Lease.objects.filter(project=project, expires_at__lte=now)
    if expired.exists():
        _free_places(expired)


@transaction.atomic
def _free_places(expired: QuerySet[Lease]) -> None:
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
        give_up_places(Comparison.objects.filter(pk__in=emptied), num_places)


def lock_standing(project_id: int, annotator: Annotator) -> Standing:
    """One thing at a time for each annotator: two tabs, or a submit sent twice, come one after the other."""
    here = {"project_id": project_id, "annotator": annotator}
    standing = Standing.objects.select_for_update(no_key=True).filter(**here).first()
    if standing is None:
        Standing.objects.bulk_create([Standing(**here)], ignore_conflicts=True)
        standing = Standing.objects.select_for_update(no_key=True).get(**here)
    return standing


def next_lease(
    standing: Standing, project: Project, annotator: Annotator, besides: Collection[int], now: datetime
) -> Lease | None:
    mine = Lease.objects.filter(annotator=annotator, project=project, expires_at__gt=now)
    held = list(mine.select_related("comparison__prompt").order_by("pk"))
    for lease in held:
        if lease.comparison_id not in besides:
            return lease
    if len(held) >= MAX_HELD:
        return None
    comparison, is_random = _next_comparison(project, annotator, standing)
    if comparison is None or not take_place(comparison):
        return None
    lease = lease_place(comparison, project, annotator, now, is_random=is_random)
    lease.fresh_standing = standing
    return lease


def lease_shown(comparison: Comparison, annotator: Annotator, key: UUID | None) -> Lease:
    """The lease under which a page was shown, also when it has run out since: then the page's key proves it.

    Raises:
        NotLeased: the page was never shown to this annotator.
    """
    lease = Lease.objects.filter(comparison=comparison, annotator=annotator).first()
    if lease and key in {None, lease.key}:
        return lease
    for mirror in Mirror.values:
        if key == Lease.key_for(comparison.pk, annotator.pk, mirror):
            response_ids = comparison.options.values_list("response_id", flat=True)
            order = shown_order(comparison, annotator, response_ids, mirror)
            if lease is None:
                return Lease(comparison=comparison, annotator=annotator, shown_order=order, mirror=mirror)
            lease.shown_order, lease.mirror = order, mirror  # taken again since the page was shown
    if lease:
        return lease
    raise NotLeased(_("This comparison was not shown to you."))


def _next_comparison(project: Project, annotator: Annotator, standing: Standing) -> tuple[Comparison | None, bool]:
    """What to ask next, and whether it was drawn by chance."""
    if project.qualification_size and not standing.qualified_at:
        is_over = standing.failed_at is not None
        return None if is_over else _gold_comparison(project, annotator, Gold.Use.QUALIFICATION), False
    if project.gold_rate and random.random() < project.gold_rate:
        gold = _gold_comparison(project, annotator, Gold.Use.MIXED)
        if gold is not None:
            return gold, False
    is_informative = project.strategy == Project.Strategy.INFORMATIVE
    by_chance = is_informative and random.random() < project.random_share
    comparison = _free_comparison(project, annotator, standing, by_chance=by_chance)
    return comparison, by_chance or project.strategy == Project.Strategy.RANDOM


def _gold_comparison(project: Project, annotator: Annotator, use: str) -> Comparison | None:
    golds = Comparison.objects.filter(project=project, is_gold=True, gold__use=use).open_to(annotator)
    return golds.order_by("shuffle").first()


def _free_comparison(
    project: Project, annotator: Annotator, standing: Standing, *, by_chance: bool
) -> Comparison | None:
    """An open comparison in the project's order; locked where rows can be locked.

    Where the order stays as it is, the search goes on from the comparison judged last and then from the first: that
    keeps it short for somebody who is far ahead of everybody else.
    """
    order, ahead = _in_order(project, by_chance=by_chance)
    searches = (
        *([(ahead, True)] if ahead and standing.last_comparison_id else []),
        ("", True),
        ("", False),  # others are at all that is left: wait for what they leave
    )
    for beyond, skip_locked in searches:
        sql = FREE.format(beyond=beyond, order=order, lock=_lock(skip_locked=skip_locked))
        values = {"project": project.pk, "annotator": annotator.pk, "last": standing.last_comparison_id}
        if found := list(Comparison.objects.raw(sql, values)):
            return found[0]
    return None


def _in_order(project: Project, *, by_chance: bool) -> tuple[str, str]:
    """The order to ask in, and what comes after the comparison judged last, where that can be said."""
    if project.strategy == Project.Strategy.IN_ORDER:
        return "comparison.id", "AND comparison.id > %(last)s"
    if project.strategy == Project.Strategy.RANDOM:
        return "comparison.shuffle, comparison.id", f"AND comparison.shuffle >= ({SHUFFLE_OF_LAST})"
    return ("comparison.shuffle, comparison.id" if by_chance else "comparison.priority DESC, comparison.shuffle"), ""


def _lock(*, skip_locked: bool) -> str:
    if not connection.features.has_select_for_update_skip_locked:
        return ""  # SQLite: there is one writer
    return f"FOR NO KEY UPDATE OF comparison{' SKIP LOCKED' if skip_locked else ''}"


def lease_place(
    comparison: Comparison, project: Project, annotator: Annotator, now: datetime, *, is_random: bool = False
) -> Lease:
    """The lease on a place that has been taken."""
    responses = Response.objects.filter(options__comparison=comparison)
    contents = dict(responses.values_list("pk", "content"))
    mirror = _mirror(comparison, project)
    lease = Lease(
        comparison=comparison,
        project=project,
        annotator=annotator,
        shown_order=shown_order(comparison, annotator, contents, mirror),
        mirror=mirror,
        guidelines_version=project.guidelines_version,
        is_random=is_random,
        leased_at=now,
        expires_at=now + timedelta(minutes=project.lease_minutes),
    )
    lease.contents = contents
    lease.save(force_insert=True)
    return lease


def _mirror(comparison: Comparison, project: Project) -> str:
    """A share of comparisons is shown to every second annotator as the mirror image of what the others see."""
    if comparison.is_gold or random.Random(f"mirror {comparison.pk}").random() >= project.mirror_share:
        return Mirror.OWN
    return Mirror.MIRRORED if comparison.num_taken % 2 else Mirror.STRAIGHT


def take_place(comparison: Comparison) -> bool:
    free = Comparison.objects.filter(pk=comparison.pk, num_taken__lt=F("num_wanted"))
    return free.update(num_taken=F("num_taken") + 1) == 1


def give_up_places(comparisons: QuerySet[Comparison], num_places: int = 1) -> None:
    """Free so many places of each for somebody else; those of closed comparisons are gone."""
    gone = Case(When(is_closed=True, then=num_places), default=0)
    comparisons.update(num_taken=F("num_taken") - num_places, num_wanted=F("num_wanted") - gone)


def shown_order(
    comparison: Comparison, annotator: Annotator, response_ids: Iterable[int], mirror: str = Mirror.OWN
) -> list[int]:
    """The order from left to right, drawn once for ever for this annotator and comparison."""
    order = sorted(response_ids)
    seed = f"{annotator.pk} {comparison.pk}" if mirror == Mirror.OWN else f"{comparison.pk}"
    random.Random(seed).shuffle(order)
    return order[::-1] if mirror == Mirror.MIRRORED else order
