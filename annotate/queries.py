"""Reads: the list of projects, the page of one comparison, the judgments of a project as rows."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.contrib.auth.models import User
from django.db.models import Count, F, IntegerField, OuterRef, Prefetch, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.crypto import salted_hmac

from annotate.formats.rows import NOT_TOLD
from annotate.models import Annotator, Comparison, Judgment, Lease, Option, Project, Skip, Standing

ROWS_AT_ONCE = 500


def projects_with_progress(user: User) -> QuerySet[Project]:
    """This user's projects with num_comparisons, num_judged (by me) and num_open (that I could still judge)."""
    annotator = Annotator.objects.filter(user=user).first()
    here = OuterRef("pk")
    comparisons = Comparison.objects.filter(project=here, is_gold=False)
    judged = Judgment.objects.filter(project=here, annotator=annotator)
    open_to_me = comparisons.open_to(annotator) if annotator else comparisons.filter(num_taken__lt=F("num_wanted"))
    held_by_me = Lease.objects.filter(project=here, annotator=annotator)
    return Project.objects.for_user(user).annotate(
        num_comparisons=_count(comparisons, "pk"),
        num_judged=_count(judged, "comparison"),
        num_open=_count(open_to_me, "pk")
        + _count(held_by_me, "pk")
        + _count(_left_behind(here, annotator), "comparison"),
    )


def num_judged(project: Project, user: User) -> int:
    """How many comparisons of the project this user has judged."""
    standing = Standing.objects.filter(project=project, annotator__user=user).values_list("num_judged", flat=True)
    return standing.first() or 0


@dataclass(frozen=True)
class ShownResponse:
    """A response as an annotator sees it: no model name."""

    id: int
    content: str


@dataclass(frozen=True)
class ComparisonPage:
    """What the page of one comparison shows, and the key that its form sends back."""

    project: Project
    comparison: Comparison
    messages: list[dict[str, str]]
    responses: list[ShownResponse]
    key: UUID

    @property
    def num_responses(self) -> int:
        return len(self.responses)

    @property
    def is_pairwise(self) -> bool:
        return self.num_responses == 2


def comparison_page(lease: Lease, project: Project) -> ComparisonPage:
    return ComparisonPage(
        project=project,
        comparison=lease.comparison,
        messages=lease.comparison.prompt.messages,
        responses=[ShownResponse(pk, lease.contents[pk]) for pk in lease.shown_order],
        key=lease.key,
    )


def judgment_rows(
    project: Project, *, up_to_id: int | None = None, aspect: str | None = None, with_gold: bool = False
) -> Generator[dict[str, Any]]:
    """All judgments as rows of the `rankings` format, in the order they were stored, a few hundred in memory.

    Comparisons with a known answer are left out: they measure annotators, each is judged by everybody, and what comes
    out is known. With `with_gold` they come too, with the known answer in `meta` under `gold`, as a ranking is.
    """
    judgments = Judgment.objects.filter(project=project)
    if not with_gold:
        judgments = judgments.filter(comparison__is_gold=False)
    if aspect is not None:
        judgments = judgments.filter(aspect=aspect)
    if up_to_id is not None:
        judgments = judgments.filter(pk__lte=up_to_id)
    options = Option.objects.select_related("response").order_by("position")
    related = ("comparison__prompt", "annotator", "edited_response", *(["comparison__gold"] if with_gold else []))
    shaped = judgments.select_related(*related).prefetch_related(Prefetch("comparison__options", queryset=options))
    for judgment in shaped.order_by("pk").iterator(chunk_size=ROWS_AT_ONCE):
        yield _row(judgment, with_gold and judgment.comparison.is_gold)


def _row(judgment: Judgment, is_gold: bool) -> dict[str, Any]:
    responses = [option.response for option in judgment.comparison.options.all()]
    responses += [judgment.edited_response] if judgment.edited_response else []
    index = {response.pk: position for position, response in enumerate(responses)}
    known = {"gold": _indices(judgment.comparison.gold.ranking, index)} if is_gold else {}
    return {
        "id": judgment.row_id or (judgment.import_key or judgment.key.hex)[:16],
        "prompt": judgment.comparison.prompt.messages,
        "responses": [
            {"role": "assistant", "content": response.content, "model": response.model} for response in responses
        ],
        "ranking": _indices(judgment.ranking, index),
        "annotator": _pseudonym(judgment.annotator, judgment.project_id),
        "aspect": judgment.aspect,
        "strength": judgment.strength,
        "all_bad": judgment.is_all_bad,
        "source": judgment.source,
        "shown_order": [index[pk] for pk in judgment.shown_order or []],
        "seconds": judgment.seconds,
        "meta": {**judgment.meta, **known},
    }


def _indices(ranking: list[list[int]], index: dict[int, int]) -> list[list[int]]:
    return [sorted(index[pk] for pk in group) for group in ranking]


def _pseudonym(annotator: Annotator, project_id: int) -> str | None:
    """The same person has the same one within a project and another one elsewhere; no user name leaves."""
    if annotator.kind != Annotator.Kind.PERSON:
        return None if annotator.name.startswith(NOT_TOLD) else annotator.name
    mac = salted_hmac("annotate.pseudonym", f"{project_id} {annotator.pk}", algorithm="sha256")
    return f"annotator-{mac.hexdigest()[:8]}"


def _left_behind(project: OuterRef, annotator: Annotator | None) -> QuerySet[Lease]:
    """Expired leases that fill a comparison which I could judge; `lease_next` frees their places."""
    expired = Lease.objects.filter(
        project=project, expires_at__lte=timezone.now(), comparison__num_taken=F("comparison__num_wanted")
    )
    for rows in (Judgment.objects, Skip.objects, Lease.objects):
        expired = expired.exclude(comparison__in=rows.filter(annotator=annotator).values("comparison"))
    return expired


def _count(rows: QuerySet[Any], field: str) -> Coalesce:
    counted = rows.order_by().values("project").annotate(num=Count(field, distinct=field != "pk")).values("num")
    return Coalesce(Subquery(counted, output_field=IntegerField()), 0)
