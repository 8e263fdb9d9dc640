"""Reads: the list of projects, the page of one comparison, the judgments of a project as rows."""

from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.contrib.auth.models import User
from django.db.models import Case, Exists, F, OuterRef, Prefetch, Q, QuerySet, Subquery, When, prefetch_related_objects
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.crypto import salted_hmac

from annotate.formats.rows import NOT_TOLD
from annotate.models import (
    OVERALL,
    Annotator,
    Aspect,
    Comparison,
    Draft,
    Endpoint,
    Figures,
    Gold,
    Judgment,
    Lease,
    Membership,
    Option,
    Project,
    Revision,
    Skip,
    Standing,
)
from annotate.services import revisable

ROWS_AT_ONCE = 500
NUM_EXAMPLES = 20
LEADS = (Membership.Role.REVIEWER, Membership.Role.MANAGER)


def projects_with_progress(user: User) -> QuerySet[Project]:
    """This user's projects with what the list of projects says of each.

    num_judged and num_gold (by me), qualified_at and failed_at, has_open (something that I can judge), can_battle
    (models answer prompts there), is_led and is_managed (by me). What is open is never counted: there may be a million.
    """
    annotator = Annotator.objects.filter(user=user).first()
    here = OuterRef("pk")
    standing = Standing.objects.filter(project=here, annotator=annotator)
    qualification = Q(qualification_size__gt=0, qualified_at__isnull=True)
    return (
        Project.objects.for_user(user)
        .annotate(
            num_judged=Coalesce(Subquery(standing.values("num_judged")), 0),
            num_gold=Coalesce(Subquery(standing.values("num_gold")), 0),
            qualified_at=Subquery(standing.values("qualified_at")),
            failed_at=Subquery(standing.values("failed_at")),
            can_battle=Exists(Endpoint.objects.filter(project=here, is_active=True)[1:2]),  # at least two
            is_led=Exists(Project.objects.led_by(user, *LEADS).filter(pk=here)),
            is_managed=Exists(Project.objects.led_by(user, Membership.Role.MANAGER).filter(pk=here)),
        )
        .annotate(
            has_open=Case(
                When(Exists(Lease.objects.filter(project=here, annotator=annotator)), then=True),
                When(qualification & Q(failed_at__isnull=False), then=False),
                When(qualification, then=Exists(_qualification(here, annotator))),
                When(Exists(_ahead(here, annotator, standing)), then=True),
                When(Exists(_open(here, annotator)), then=True),
                default=Exists(_left_behind(here, annotator)),
            )
        )
    )


def standing_of(project: Project, user: User) -> Standing:
    """Where this user stands in the project; at the very beginning if they never began."""
    standing = Standing.objects.filter(project=project, annotator__user=user).first() or Standing()
    standing.project = project
    return standing


def standing_in(project: Any) -> Standing:
    """The same from what `projects_with_progress` knows of the project."""
    names = ("num_judged", "num_gold", "qualified_at", "failed_at")
    return Standing(project=project, **{name: getattr(project, name) for name in names})


def revisable_judgment(comparison: Comparison, annotator: Annotator) -> Judgment | None:
    """The annotator's judgment of this comparison, while they can change it.

    One whose known answer they have been told is left as it is: else it would measure nothing.
    """
    project = comparison.project
    if comparison.is_gold and project.gold_feedback:
        return None
    mine = revisable(project, annotator).filter(comparison=comparison)
    return mine.select_related("annotator", "project", "comparison__prompt").first()


def last_judgments(project: Project, user: User) -> list[Judgment]:
    """This user's last judgments of the project, newest first."""
    annotator = Annotator.objects.filter(user=user).first()
    if annotator is None:
        return []
    return list(
        revisable(project, annotator).select_related("comparison__project", "comparison__prompt", "comparison__gold")
    )


def judgment_on_gold(project: Project, user: User, pk: int) -> Judgment | None:
    mine = Judgment.objects.filter(project=project, annotator__user=user, aspect=OVERALL, comparison__is_gold=True)
    return mine.select_related("comparison__project", "comparison__gold").filter(pk=pk).first()


def held_lease(user: User, comparison_id: int) -> Lease | None:
    """The lease under which this user judges a comparison, with all that its page needs; none for who left."""
    mine = Lease.objects.filter(comparison=comparison_id, annotator__user=user)
    held = mine.select_related("annotator", "comparison__project", "comparison__prompt").first()
    if held is None or held.comparison.project.is_open:
        return held
    return held if Project.objects.for_user(user).filter(pk=held.project_id).exists() else None


@dataclass(frozen=True)
class ShownResponse:
    """A response as an annotator sees it: no model name."""

    id: int
    content: str


@dataclass(frozen=True)
class ComparisonPage:
    """What the page of one comparison shows, and the key that its form sends back.

    `judgment` is what the annotator has judged already and may revise, with what it said before, oldest first.
    """

    project: Project
    comparison: Comparison
    messages: list[dict[str, str]]
    responses: list[ShownResponse]
    aspects: list[Aspect]
    key: UUID
    standing: Standing
    draft: dict[str, str]
    judgment: Judgment | None = None
    by_aspect: dict[str, Judgment] = field(default_factory=dict)
    revisions: list[Revision] = field(default_factory=list)

    @property
    def order(self) -> list[int]:
        return [response.id for response in self.responses]

    @property
    def num_responses(self) -> int:
        return len(self.responses)


def comparison_page(lease: Lease, project: Project) -> ComparisonPage:
    standing, draft = _standing_and_draft(lease, project)
    return ComparisonPage(
        project=project,
        comparison=lease.comparison,
        messages=lease.comparison.prompt.messages,
        responses=[ShownResponse(pk, lease.contents[pk]) for pk in lease.shown_order],
        aspects=asked_aspects(project),
        key=lease.key,
        standing=standing,
        draft=draft,
    )


def revision_page(judgment: Judgment, project: Project) -> ComparisonPage:
    """The page of a comparison that its annotator has judged, in the order in which it was shown to them."""
    comparison = judgment.comparison
    contents = dict(comparison.responses.order_by("options__position").values_list("pk", "content"))
    mine = comparison.judgments.filter(annotator=judgment.annotator, repeat=0).select_related("edited_response")
    by_aspect = {each.aspect: each for each in mine}
    standing, draft = _read_standing_and_draft(comparison, project, judgment.annotator)
    return ComparisonPage(
        project=project,
        comparison=comparison,
        messages=comparison.prompt.messages,
        responses=[ShownResponse(pk, contents[pk]) for pk in judgment.shown_order or contents],
        aspects=asked_aspects(project),
        key=judgment.key,
        standing=standing,
        draft=draft,
        judgment=by_aspect[OVERALL],
        by_aspect=by_aspect,
        revisions=list(judgment.revisions.all()),
    )


def asked_aspects(project: Any) -> list[Aspect]:
    """Read once for the same object: a submit and the comparison that follows it ask for the same ones."""
    asked = Prefetch("aspects", Aspect.objects.filter(is_asked=True), to_attr="asked_aspects")
    prefetch_related_objects([project], asked)
    return list(project.asked_aspects)


def example_pages(project: Project) -> list[tuple[Gold, dict[int, str]]]:
    """The worked examples of the guidelines, each with the texts of its responses."""
    examples = list(
        Gold.objects.filter(project=project, use=Gold.Use.EXAMPLE)
        .select_related("comparison__prompt")
        .order_by("pk")[:NUM_EXAMPLES]
    )
    texts: dict[int, dict[int, str]] = defaultdict(dict)
    options = Option.objects.filter(comparison__in=[example.comparison_id for example in examples])
    for comparison_id, pk, content in options.values_list("comparison", "response", "response__content"):
        texts[comparison_id][pk] = content
    return [(example, texts[example.comparison_id]) for example in examples]


def _standing_and_draft(lease: Lease, project: Project) -> tuple[Standing, dict[str, str]]:
    if standing := lease.fresh_standing:
        standing.project = project
        return standing, {}
    return _read_standing_and_draft(lease.comparison, project, lease.annotator)


def _read_standing_and_draft(
    comparison: Comparison, project: Project, annotator: Annotator
) -> tuple[Standing, dict[str, str]]:
    drafts = Draft.objects.filter(comparison=comparison, annotator=annotator)
    standings = Standing.objects.filter(project=project, annotator=annotator)
    standing: Any = standings.annotate(draft=Subquery(drafts.values("values"))).first() or Standing()
    standing.project = project
    return standing, getattr(standing, "draft", None) or {}


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
        "meta": {**judgment.meta, **_told(judgment, index), **known},
    }


def _told(judgment: Judgment, index: dict[int, int]) -> dict[str, Any]:
    """What else was said and how, as far as there is anything; responses by their place in the row."""
    ratings = {str(index[int(pk)]): rating for pk, rating in (judgment.ratings or {}).items()}
    told = {
        "kind": judgment.kind if judgment.kind != Project.Kind.RANKING else "",
        "bad": sorted(index[pk] for pk in judgment.bad),
        "ratings": ratings,
        "rationale": judgment.rationale,
        "highlights": [{**each, "response": index[each["response"]]} for each in judgment.highlights],
        "edited_response": index[judgment.edited_response_id] if judgment.edited_response_id else None,
        "placement": judgment.placement,
        "mirror": judgment.mirror,
        "asked_by_chance": judgment.is_random,
        "guidelines_version": judgment.guidelines_version,
        "total_seconds": judgment.total_seconds,
        "num_revisions": judgment.num_revisions,
    }
    return {name: value for name, value in told.items() if value}


def _indices(ranking: list[list[int]], index: dict[int, int]) -> list[list[int]]:
    return [sorted(index[pk] for pk in group) for group in ranking]


def judgment_weights(project: Project) -> dict[str | None, float]:
    """What a judgment of each annotator is worth, by pseudonym: from 0 at a coin's accuracy to 1, by the figures.

    Nothing where the figures do not tell; an annotator whom they do not know is as good as the others are on average.
    """
    figures = Figures.objects.filter(project=project).first()
    rows = figures.values.get("annotators", []) if figures else []
    worth = {row["id"]: max(0.0, 2 * row["accuracy"] - 1) for row in rows if row["accuracy"] is not None}
    if not worth:
        return {}
    usual = sum(worth.values()) / len(worth)
    annotators = Annotator.objects.filter(judgments__project=project).distinct()
    return {_pseudonym(one, project.pk): round(worth.get(one.pk, usual), 4) for one in annotators}


def _pseudonym(annotator: Annotator, project_id: int) -> str | None:
    """The same person has the same one within a project and another one elsewhere; no user name leaves."""
    if annotator.kind != Annotator.Kind.PERSON:
        return None if annotator.name.startswith(NOT_TOLD) else annotator.name
    mac = salted_hmac("annotate.pseudonym", f"{project_id} {annotator.pk}", algorithm="sha256")
    return f"annotator-{mac.hexdigest()[:8]}"


def _open(project: OuterRef, annotator: Annotator | None) -> QuerySet[Comparison]:
    """Comparisons of the ordinary queue that I could judge."""
    comparisons = Comparison.objects.filter(project=project, is_gold=False)
    return comparisons.open_to(annotator) if annotator else comparisons.filter(num_taken__lt=F("num_wanted"))


def _ahead(project: OuterRef, annotator: Annotator | None, standing: QuerySet[Standing]) -> QuerySet[Comparison]:
    """Those after the one judged last: looking there first saves going over all that I have judged."""
    return _open(project, annotator).filter(pk__gt=Coalesce(Subquery(standing.values("last_comparison")), 0))


def _qualification(project: OuterRef, annotator: Annotator | None) -> QuerySet[Comparison]:
    golds = Comparison.objects.filter(project=project, is_gold=True, gold__use=Gold.Use.QUALIFICATION)
    return golds.open_to(annotator) if annotator else golds


def _left_behind(project: OuterRef, annotator: Annotator | None) -> QuerySet[Lease]:
    """Expired leases that fill a comparison which I could judge; `lease_next` frees their places."""
    expired = Lease.objects.filter(
        project=project,
        expires_at__lte=timezone.now(),
        comparison__num_taken=F("comparison__num_wanted"),
        comparison__is_gold=False,
    )
    for rows in (Judgment.objects, Skip.objects, Lease.objects):
        mine = rows.filter(annotator=annotator, comparison=OuterRef("comparison"))
        expired = expired.filter(~Exists(mine))
    return expired
