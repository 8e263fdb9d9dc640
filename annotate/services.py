"""Writes: judging in the browser, importing files, simulated annotators, the demonstration project.

Judging is leased: `lease_next` takes a place at a comparison before it is shown, `record_judgment` turns the lease
into a judgment, `skip_comparison` gives the place back. Places are counted by conditional updates of
`Comparison.num_taken`; row locks (PostgreSQL) or the one writer (SQLite) only spare the losers of a race a retry.
Lock order everywhere: annotator, lease, comparison.
"""

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F, Q, Subquery, Value
from django.db.models.functions import Coalesce, Greatest
from django.utils import timezone

from annotate.bulk import ImportReport, store_rows
from annotate.demonstration.annotator import judge
from annotate.demonstration.quality import is_known, quality
from annotate.demonstration.recipes import demonstration_rows
from annotate.errors import BadProject, BadRanking, NotLeased, UnknownQuality
from annotate.formats import read_file, read_row
from annotate.formats.rows import Row
from annotate.models import OVERALL, Annotator, Comparison, Judgment, Lease, Project, Prompt, Response, Skip

DEMONSTRATION = Path(__file__).parent / "demonstration"
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


@transaction.atomic
def set_overlap(*, project: Project, overlap: int) -> None:
    """Ask for that many judgments of every comparison, new and old; a place that is taken stays."""
    project.overlap = overlap
    project.save(update_fields=["overlap"])
    project.comparisons.update(num_wanted=Greatest(F("num_taken"), Value(overlap)))


def check_file(path: Path) -> int:
    """Read a file to its end and refuse what cannot be imported; nothing is stored. Returns the number of rows.

    Raises:
        BadRow: a row cannot be imported; the message names its line and field.
        BadFile: the file cannot be read.
    """
    return sum(1 for _ in read_file(path))


def import_file(*, project: Project, path: Path, progress: Callable[[int], None] | None = None) -> ImportReport:
    """Store all rows of a file, or none. What is there already is left as it is.

    The file is checked before the transaction begins, so that a large one keeps others waiting no longer than needed.

    Raises:
        BadRow: a row cannot be imported; the message names its line and field.
        BadFile: the file cannot be read.
    """
    check_file(path)
    return import_rows(project=project, rows=read_file(path), progress=progress)


@transaction.atomic
def import_rows(
    *, project: Project, rows: Iterable[Row], progress: Callable[[int], None] | None = None
) -> ImportReport:
    Project.objects.select_for_update(no_key=True).values_list("pk").get(pk=project.pk)  # one import at a time
    return store_rows(project, rows, progress)


def import_into(
    *, name: str, path: Path, overlap: int | None = None, is_closed: bool = False
) -> tuple[Project, ImportReport]:
    """Import a file into the project called `name`, which is made with these settings unless it is there.

    Raises:
        BadRow, BadFile: nothing is stored, and no project is made.
        BadProject: the name cannot be one, or the project that is there has other settings.
    """
    check_file(path)
    with transaction.atomic():
        project = _project(name, overlap, is_closed)
        return project, import_rows(project=project, rows=read_file(path))


def simulate_judgments(
    *,
    project: Project,
    num_judgments: int,
    noise: float,
    num_annotators: int = 5,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Let simulated annotators judge in turn, through the services that the browser uses, until nothing is left.

    They rank by the quality that `annotate.demonstration` knows, seen with Gaussian noise of standard deviation
    `noise`. The same seed gives the same judgment of the same comparison by the same annotator. Returns how many
    judgments were made; `progress` hears it after each.

    Raises:
        UnknownQuality: the project has a prompt that is none of the demonstration's; nothing is judged.
    """
    _check_quality_is_known(project)
    annotators = deque(_simulated_annotators(project, num_annotators))
    num_made = 0
    while annotators and num_made < num_judgments:
        annotator = annotators.popleft()
        if lease := lease_next(project=project, annotator=annotator):
            _judge(lease, annotator, noise, seed)
            annotators.append(annotator)
            num_made += 1
            if progress:
                progress(num_made)
    return num_made


@transaction.atomic
def seed_demonstration() -> Project:
    """The demonstration project, made at the first call, whatever it is called by now."""
    if project := Project.objects.filter(is_demonstration=True).first():
        return project
    project = Project.objects.create(
        name="cooking",
        description="Recipes of known, varied quality. Written for trying things out; judge a few yourself.",
        guidelines=(DEMONSTRATION / "guidelines.md").read_text(encoding="utf-8"),
        overlap=2,
        is_demonstration=True,
    )
    rows = (read_row(line, values) for line, values in enumerate(demonstration_rows(), start=1))
    import_rows(project=project, rows=rows)
    return project


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


def _project(name: str, overlap: int | None, is_closed: bool) -> Project:
    if project := Project.objects.filter(name=name).first():
        if overlap not in {None, project.overlap} or (is_closed and project.is_open):
            raise BadProject(f"The project {name!r} is there already and has other settings; change them in the admin.")
        return project
    project = Project(name=name, overlap=1 if overlap is None else overlap, is_open=not is_closed)
    try:
        project.full_clean()
    except ValidationError as error:
        raise BadProject(" ".join(error.messages)) from error
    project.save()
    return project


def _check_quality_is_known(project: Project) -> None:
    for prompt in project.prompts.only("messages").iterator():
        if not is_known(prompt.messages):
            raise UnknownQuality(
                f"Simulated annotators know the demonstration's questions only, and {str(prompt)!r} is none of them."
            )


def _simulated_annotators(project: Project, number: int) -> list[Annotator]:
    kind = Annotator.Kind.SIMULATED
    names = [f"simulated {place}" for place in range(1, number + 1)]
    return [Annotator.objects.get_or_create(project=project, kind=kind, name=name)[0] for name in names]


def _judge(lease: Lease, annotator: Annotator, noise: float, seed: int) -> None:
    comparison = lease.comparison
    responses = dict(Response.objects.filter(pk__in=lease.shown_order).values_list("pk", "content"))
    response_ids = sorted(responses)
    messages = Prompt.objects.values_list("messages", flat=True).get(pk=comparison.prompt_id)
    qualities = [quality(messages, responses[pk]) for pk in response_ids]
    verdict = judge(qualities, noise, random.Random(f"{seed} {annotator.name} {comparison.digest}"))
    record_judgment(
        comparison=comparison,
        annotator=annotator,
        ranking=[[response_ids[place] for place in group] for group in verdict.ranking],
        strength=verdict.strength,
        is_all_bad=verdict.is_all_bad,
        key=lease.key,
        source=Judgment.Source.SIMULATION,
    )
