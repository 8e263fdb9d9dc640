"""Writes: judging in the browser, importing files, simulated annotators, the demonstration project.

Judging is leased: `lease_next` takes a place at a comparison before it is shown, `record_judgment` turns the lease
into a judgment, `skip_comparison` gives the place back. Places are counted by conditional updates of
`Comparison.num_taken`; row locks (PostgreSQL) or the one writer (SQLite) only spare the losers of a race a retry.
Lock order everywhere: standing, lease, comparison. Other writes stand beside this module: `people`, `gold`, `review`,
`guidance` and `live`.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Unpack
from uuid import UUID, uuid5

from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F, Q, QuerySet, Value
from django.db.models.functions import Greatest
from django.forms import model_to_dict
from django.utils import timezone
from django.utils.translation import gettext as _

from annotate.answers import Answer, Edit, Submission, Told, check_answer
from annotate.bulk import ImportReport, store_rows
from annotate.demonstration.annotator import judge
from annotate.demonstration.quality import is_known, quality
from annotate.demonstration.recipes import demonstration_rows
from annotate.distribution import (
    give_up_places,
    lease_place,
    lease_shown,
    lock_standing,
    next_lease,
    reap,
    take_place,
)
from annotate.errors import BadProject, NotLeased, NotRevisable, UnknownQuality
from annotate.formats import read_file, read_row
from annotate.formats.rows import Row
from annotate.identity import response_digest
from annotate.models import (
    OVERALL,
    Annotator,
    Comparison,
    Draft,
    Flag,
    Judgment,
    Lease,
    Project,
    Prompt,
    Response,
    Revision,
    Skip,
    Standing,
)
from annotate.stats.gold import gold_score

DEMONSTRATION = Path(__file__).parent / "demonstration"
NUM_REVISABLE = 20
MAX_NOTE = 2000  # characters


@transaction.atomic
def annotator_for(*, user: User) -> Annotator:
    person = {"kind": Annotator.Kind.PERSON, "name": user.get_username()}
    return Annotator.objects.get_or_create(user=user, defaults=person)[0]


def lease_next(
    *, project: Project, annotator: Annotator, besides: Collection[int] = (), now: datetime | None = None
) -> Lease | None:
    """The comparison this annotator should judge next, held for them; none if there is nothing left for them.

    What they hold already comes first, the oldest before the newer, except the comparisons in `besides`: those are
    on the page, and the one after them is wanted. Nobody holds more than MAX_HELD at once.
    """
    now = now or timezone.now()
    reap(project, now)
    with transaction.atomic():
        return next_lease(lock_standing(project.pk, annotator), project, annotator, besides, now)


@transaction.atomic
def record_judgment(*, comparison: Comparison, annotator: Annotator, **answer: Unpack[Submission]) -> Judgment:
    """Store one annotator's ranking of response ids, best first, ties as groups, and what they say of each aspect.

    The same submit again, or another one for the same comparison and aspect, returns what is stored. A judgment
    that comes after its lease ran out takes a free place, or is kept as an extra one.

    Raises:
        BadRanking: the ranking is no partition of the comparison's responses, or what goes with it does not fit it.
        NotLeased: the comparison was never shown to this annotator.
    """
    return _record(lock_standing(comparison.project_id, annotator), comparison, annotator, answer)


def record_and_lease_next(
    *,
    comparison: Comparison,
    annotator: Annotator,
    besides: Collection[int] = (),
    now: datetime | None = None,
    **answer: Unpack[Submission],
) -> tuple[Judgment, Lease | None]:
    """`record_judgment` and `lease_next` in one transaction, which is what a submit from the page costs."""
    now, project = now or timezone.now(), comparison.project
    reap(project, now)
    with transaction.atomic():
        standing = lock_standing(project.pk, annotator)
        judgment = _record(standing, comparison, annotator, answer)
        return judgment, next_lease(standing, project, annotator, besides, now)


@transaction.atomic
def revise_judgment(
    *,
    judgment: Judgment,
    answer: Answer,
    aspects: Mapping[str, Answer] | None = None,
    edit: Edit | None = None,
    **told: Unpack[Told],
) -> Judgment:
    """Put another answer in the place of one of the annotator's last judgments; what it said before is kept.

    Raises:
        BadRanking: as `record_judgment` does.
        NotRevisable: newer judgments have put it out of reach, or it is somebody else's kind of judgment.
    """
    annotator, comparison = judgment.annotator, judgment.comparison
    lock_standing(judgment.project_id, annotator)
    if not revisable(judgment.project, annotator).filter(pk=judgment.pk).exists():
        raise NotRevisable(_("Only your last %(number)s judgments can be changed.") % {"number": NUM_REVISABLE})
    response_ids = list(comparison.options.values_list("response_id", flat=True))
    answers = {OVERALL: answer, **(aspects or {})}
    for each in answers.values():
        check_answer(each, response_ids, comparison.project)
    edited = _store_edit(comparison, annotator, edit) if edit else None
    mine = comparison.judgments.select_for_update().filter(annotator=annotator, repeat=0)
    by_aspect = {stored.aspect: stored for stored in mine}
    for name, each in answers.items():
        said = {**_said(each, comparison.project, edited), **_told(told)}
        if name in by_aspect:
            _revise(by_aspect[name], said)
        else:
            _add_aspect(judgment, name, said)
    Draft.objects.filter(comparison=comparison, annotator=annotator).delete()
    judgment.refresh_from_db()
    return judgment


def revisable(project: Project, annotator: Annotator) -> QuerySet[Judgment]:
    """The annotator's last judgments of this project, newest first: those that they can go back to."""
    mine = Judgment.objects.filter(project=project, annotator=annotator, aspect=OVERALL)
    newest = mine.exclude(source=Judgment.Source.IMPORT).order_by("-pk").values("pk")[:NUM_REVISABLE]
    return mine.filter(pk__in=list(newest.values_list("pk", flat=True))).order_by("-pk")


@transaction.atomic
def skip_comparison(*, comparison: Comparison, annotator: Annotator, reason: str = "", note: str = "") -> None:
    """Give the comparison back and never offer it to this annotator again."""
    lock_standing(comparison.project_id, annotator)
    if _give_up_lease(comparison, annotator):
        give_up_places(Comparison.objects.filter(pk=comparison.pk))
    Draft.objects.filter(comparison=comparison, annotator=annotator).delete()
    Skip.objects.get_or_create(
        comparison=comparison, annotator=annotator, defaults={"reason": reason, "note": note[:MAX_NOTE]}
    )


@transaction.atomic
def flag_comparison(*, comparison: Comparison, annotator: Annotator, reason: str, note: str = "") -> Flag:
    """Tell the leads about a comparison. The same reason again puts the newer note in the place of the older."""
    said = {"project_id": comparison.project_id, "note": note[:MAX_NOTE], "resolved_at": None, "resolved_by": None}
    return Flag.objects.update_or_create(comparison=comparison, annotator=annotator, reason=reason, defaults=said)[0]


@transaction.atomic
def save_draft(*, comparison: Comparison, annotator: Annotator, values: dict[str, Any]) -> bool:
    """Keep what was entered, and renew the lease. False if the comparison is not the annotator's to judge any more."""
    is_held = renew_lease(comparison=comparison, annotator=annotator)
    if is_held or revisable(comparison.project, annotator).filter(comparison=comparison).exists():
        Draft.objects.update_or_create(comparison=comparison, annotator=annotator, defaults={"values": values})
        return True
    return False


@transaction.atomic
def renew_lease(*, comparison: Comparison, annotator: Annotator, now: datetime | None = None) -> bool:
    """Hold a comparison for longer; one whose lease ran out is taken again if its place is still free."""
    now = now or timezone.now()
    project = comparison.project
    expires_at = now + timedelta(minutes=project.lease_minutes)
    if Lease.objects.filter(comparison=comparison, annotator=annotator).update(expires_at=expires_at):
        return True
    lock_standing(project.pk, annotator)
    if not Comparison.objects.filter(pk=comparison.pk).open_to(annotator).exists() or not take_place(comparison):
        return False
    lease_place(comparison, project, annotator, now)
    return True


@transaction.atomic
def set_overlap(*, project: Project, overlap: int) -> None:
    """Ask for that many judgments of every comparison, new and old, but of trials; a place that is taken stays."""
    project.overlap = overlap
    project.save(update_fields=["overlap"])
    ordinary = project.comparisons.filter(is_gold=False, gold=None, is_trial=False)
    ordinary.update(num_wanted=Greatest(F("num_taken"), Value(overlap)))


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


def _record(standing: Standing, comparison: Comparison, annotator: Annotator, submission: "Submission") -> Judgment:
    aspect, key = submission.get("aspect", OVERALL), submission["key"]
    held = Lease.objects.filter(comparison=comparison, annotator=annotator)
    lease = submission.get("lease") or held.first()
    if not lease and (stored := _stored_judgment(comparison, annotator, aspect, key)):
        return stored
    lease = lease or lease_shown(comparison, annotator, key)
    answers = {aspect: _answer(submission), **(submission.get("aspects") or {})}
    for answer in answers.values():
        check_answer(answer, lease.shown_order, comparison.project)
    was_held = bool(held.delete()[0])  # then there is no judgment yet: nobody holds what they have judged
    if not was_held and (stored := _stored_judgment(comparison, annotator, aspect, key)):
        return stored
    edit = submission.get("edit")
    edited = _store_edit(comparison, annotator, edit) if edit else None
    common = {
        **_told(submission),
        "is_extra": not was_held and not take_place(comparison),
        "shown_order": lease.shown_order,
        "mirror": lease.mirror,
        "guidelines_version": lease.guidelines_version or None,
        "is_random": lease.is_random,
        "source": submission["source"],
    }
    judgments = [
        Judgment(
            comparison=comparison,
            project_id=comparison.project_id,
            annotator=annotator,
            aspect=name,
            key=key if name == aspect else uuid5(key, name),
            **_said(answer, comparison.project, edited),
            **common,
        )
        for name, answer in answers.items()
    ]
    Judgment.objects.bulk_create(judgments)
    Draft.objects.filter(comparison=comparison, annotator=annotator).delete()
    _move_on(standing, comparison, judgments[0].ranking)
    return judgments[0]


def _answer(submission: "Submission") -> Answer:
    return Answer(
        ranking=submission["ranking"],
        strength=submission.get("strength"),
        bad=tuple(submission.get("bad", ())),
        is_all_bad=submission.get("is_all_bad", False),
        ratings=submission.get("ratings"),
    )


def _give_up_lease(comparison: Comparison, annotator: Annotator) -> Lease | None:
    """The lease that was held, deleted; none if there was none, or if it was just taken away."""
    lease = Lease.objects.filter(comparison=comparison, annotator=annotator).first()
    was_held = lease is not None and Lease.objects.filter(pk=lease.pk).delete()[0]
    return lease if was_held else None


def _store_edit(comparison: Comparison, annotator: Annotator, edit: Edit) -> Response | None:
    """An annotator's better answer as a response of the prompt; none if it says what is there already."""
    if comparison.responses.filter(content=edit.text).exists():
        return None
    return Response.objects.get_or_create(
        prompt_id=comparison.prompt_id,
        digest=response_digest(edit.text, "", 0),
        defaults={"content": edit.text, "author": annotator, "edited_from_id": edit.response_id},
    )[0]


def _said(answer: Answer, project: Project, edited: Response | None) -> dict[str, Any]:
    return {
        "kind": project.kind,
        "ranking": [[edited.pk], *answer.ranking] if edited else answer.ranking,
        "strength": answer.strength,
        "is_all_bad": answer.is_all_bad,
        "bad": list(answer.bad),
        "ratings": {str(pk): rating for pk, rating in answer.ratings.items()} if answer.ratings else None,
        "edited_response": edited,
    }


def _told(told: Told) -> dict[str, Any]:
    """What goes with an answer. No answer is refused because a clock is wrong: such a time becomes unknown."""
    times = {"seconds": told.get("seconds"), "total_seconds": told.get("total_seconds")}
    said: dict[str, Any] = {name: told[name] for name in ("rationale", "highlights", "placement") if name in told}
    return {**said, **{name: time if _is_time(time) else None for name, time in times.items()}}


def _is_time(seconds: float | None) -> bool:
    return seconds is not None and math.isfinite(seconds) and seconds >= 0


def _revise(judgment: Judgment, said: dict[str, Any]) -> None:
    before = model_to_dict(judgment, fields=said.keys())
    after = {**before, **said, "edited_response": said["edited_response"] and said["edited_response"].pk}
    if after == before:
        return
    Revision.objects.create(judgment=judgment, values=before)
    for name, value in said.items():
        setattr(judgment, name, value)
    judgment.num_revisions += 1
    judgment.save(update_fields=[*said, "num_revisions"])


def _add_aspect(judgment: Judgment, aspect: str, said: dict[str, Any]) -> None:
    """An aspect that is asked now and was not when the comparison was judged."""
    same = model_to_dict(
        judgment, fields=("shown_order", "mirror", "guidelines_version", "is_random", "source", "is_extra")
    )
    Judgment.objects.create(
        comparison_id=judgment.comparison_id,
        project_id=judgment.project_id,
        annotator_id=judgment.annotator_id,
        aspect=aspect,
        key=uuid5(judgment.key, aspect),
        **same,
        **said,
    )


def _move_on(standing: Standing, comparison: Comparison, ranking: list[list[int]]) -> None:
    """Count a judgment where its annotator stands; a gold one says whether they are qualified."""
    standing.num_judged += 1
    standing.last_comparison = standing.last_comparison if comparison.is_gold else comparison
    if comparison.is_gold:
        standing.num_gold += 1
        standing.gold_score += gold_score(ranking, comparison.gold.ranking)
        _qualify(standing, comparison.project)
    standing.save()


def _qualify(standing: Standing, project: Project) -> None:
    if standing.qualified_at or standing.failed_at or standing.num_gold < (project.qualification_size or math.inf):
        return
    if standing.gold_score / standing.num_gold >= project.qualification_accuracy:
        standing.qualified_at = timezone.now()
    else:
        standing.failed_at = timezone.now()


def _stored_judgment(comparison: Comparison, annotator: Annotator, aspect: str, key: UUID) -> Judgment | None:
    same = Q(key=key) | Q(comparison=comparison, annotator=annotator, aspect=aspect, repeat=0)
    stored = Judgment.objects.filter(same).order_by("pk").first()
    if stored and stored.annotator_id != annotator.pk:
        raise NotLeased("This page belongs to somebody else.")
    return stored


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
