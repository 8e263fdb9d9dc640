"""The lead's pages: what the judgments are worth and who made them, from a snapshot (see `annotate.figures`)."""

from dataclasses import dataclass
from datetime import date
from http import HTTPStatus
from typing import Any

from django.core.paginator import Paginator
from django.db.models import Count, QuerySet
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_GET, require_POST

from annotate import figures, lead_words
from annotate.models import OVERALL, Figures, Flag, Membership, Project, Skip
from annotate.views import HttpRequest, signed_in

LEADS = (Membership.Role.REVIEWER, Membership.Role.MANAGER)
ROWS_ON_PAGE = 50
MAX_COUNTED = 1000
NUM_SHADES = 9
MIN_DAYS = 7


@require_GET
@signed_in
def overview(request: HttpRequest, pk: int) -> HttpResponse:
    """Progress with a forecast, and what the labels are worth in a sentence each."""
    project, kept = _led(request, pk)
    context = {
        **_context(request, project, kept),
        "flags": _flags_words(_open_flags(project)[:MAX_COUNTED].count()),
        "skips": _skip_reasons(project),
    }
    if kept.pk:
        context |= _overview(kept)
    return render(request, "annotate/lead/overview.html", context)


def _overview(kept: Figures) -> dict[str, Any]:
    values = kept.values
    overall = values["aspects"].get(OVERALL)
    shown = _since_work_began(values["days"])
    days = [(date_format(date.fromisoformat(day), "MONTH_DAY_FORMAT"), num) for day, num in shown]
    return {
        "forecast": lead_words.forecast(values, timezone.localdate(kept.computed_at)),
        "time": lead_words.time_per_judgment(values["seconds"]),
        "worth": [lead_words.agreement(overall), lead_words.ceiling(overall and overall["ceiling"])],
        "biases": [
            lead_words.position(values["position"]),
            lead_words.length(values["length"]),
            lead_words.mirrored(values["mirrored"]),
        ],
        "days": [(day, num) for day, num in reversed(days) if num],
        "chart": _chart("bar", _("Judgments"), [day for day, _num in days], [{"value": num} for _day, num in days]),
    }


def _since_work_began(days: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Without the days before the first judgment, but at least a week."""
    first = next((place for place, (_day, num) in enumerate(days) if num), len(days))
    return days[min(first, len(days) - MIN_DAYS) :]


@require_GET
@signed_in
def agreement(request: HttpRequest, pk: int) -> HttpResponse:
    """Every measure of agreement, for each aspect."""
    project, kept = _led(request, pk)
    found = sorted(kept.values.get("aspects", {}).items(), key=lambda named: (named[0] != OVERALL, named[0]))
    aspects = [_aspect(name, values) for name, values in found]
    return render(request, "annotate/lead/agreement.html", {**_context(request, project, kept), "aspects": aspects})


def _aspect(name: str, found: dict[str, Any]) -> dict[str, Any]:
    rows = lead_words.measures(found)
    points = [{"value": row.value, "low": row.low, "high": row.high} for row in rows]
    return {
        "title": _("Overall") if name == OVERALL else name,
        "found": found,
        "words": [lead_words.agreement(found), lead_words.ceiling(found["ceiling"])],
        "rows": rows,
        "chart": _chart("interval", _("Value"), [row.name for row in rows], points),
    }


@require_GET
@signed_in
def annotators(request: HttpRequest, pk: int) -> HttpResponse:
    """Who judged, how far each can be relied on, and whose work should be looked at."""
    project, kept = _led(request, pk)
    rows, reliability = kept.values.get("annotators", []), kept.values.get("reliability", {})
    page = Paginator(rows, ROWS_ON_PAGE).get_page(request.GET.get("page"))
    suspicious = [row for row in rows if row["suspicions"]]
    liars, by_chance = reliability.get("liars", []), reliability.get("by_chance", [])
    told = [row["id"] for row in [*page, *suspicious[:ROWS_ON_PAGE]]]
    names = figures.names_of([*told, *liars[: lead_words.MAX_NAMED], *by_chance[: lead_words.MAX_NAMED]])
    context = {
        **_context(request, project, kept),
        "page": page,
        "rows": [(names[row["id"]], row, row["id"] in liars, row["id"] in by_chance) for row in page],
        "reliability": lead_words.reliability(reliability, names),
        "is_refused": reliability.get("is_refused", False),
        "num_suspicious": len(suspicious),
        "suspicious": [
            (names[row["id"]], [lead_words.suspicion(found) for found in row["suspicions"]])
            for row in suspicious[:ROWS_ON_PAGE]
        ],
    }
    return render(request, "annotate/lead/annotators.html", context)


@require_GET
@signed_in
def models(request: HttpRequest, pk: int) -> HttpResponse:
    """The models that responses came from: their strengths, who beat whom, and which answers tell who wrote them."""
    project, kept = _led(request, pk)
    board = kept.values.get("leaderboard")
    rows = board["rows"] if board else []
    points = [{"value": row["strength"], "low": row["low"], "high": row["high"]} for row in rows]
    context = {
        **_context(request, project, kept),
        "board": board,
        "matrix": [(row["model"], [_cell(share) for share in row["against"]]) for row in rows],
        "chart": _chart("interval", _("Strength"), [row["model"] for row in rows], points),
        "giveaways": kept.values.get("giveaways", []),
    }
    return render(request, "annotate/lead/models.html", context)


@require_GET
@signed_in
def flags(request: HttpRequest, pk: int) -> HttpResponse:
    """What annotators want a lead to look at, and what they did not judge."""
    project, kept = _led(request, pk)
    resolved = project.flags.filter(resolved_at__isnull=False).select_related("annotator", "resolved_by")
    skips = Skip.objects.filter(comparison__project=project).select_related("annotator")
    context = {
        **_context(request, project, kept),
        "flags": _open_flags(project).select_related("annotator", "comparison__prompt")[:ROWS_ON_PAGE],
        "resolved": resolved.order_by("-resolved_at")[:ROWS_ON_PAGE],
        "reasons": _skip_reasons(project),
        "skips": skips.order_by("-pk")[:ROWS_ON_PAGE],
    }
    return render(request, "annotate/lead/flags.html", context)


@require_POST
@signed_in
def resolve_flag(request: HttpRequest, pk: int, flag_pk: int) -> HttpResponse:
    """A flag was looked at; who pressed first is kept."""
    flag = get_object_or_404(Flag, project=_project(request, pk), pk=flag_pk)
    Flag.objects.filter(pk=flag.pk, resolved_at=None).update(resolved_at=timezone.now(), resolved_by=request.user)
    return HttpResponseRedirect(reverse("annotate:lead_flags", args=[pk]), status=HTTPStatus.SEE_OTHER)


@require_GET
@signed_in
def fresh(request: HttpRequest, pk: int) -> HttpResponse:
    """What a page with old figures asks until a worker has counted: nothing, or that there are new ones."""
    kept = Figures.objects.filter(project=_project(request, pk)).first()
    if kept is None or _version(kept) == request.GET.get("version"):
        return HttpResponse(status=HTTPStatus.NO_CONTENT)
    return render(request, "annotate/lead/_fresh.html")


def _project(request: HttpRequest, pk: int) -> Project:
    """The project, for its reviewers and managers; for everybody else there is none."""
    return get_object_or_404(Project.objects.led_by(request.user, *LEADS), pk=pk)


def _led(request: HttpRequest, pk: int) -> tuple[Project, Figures]:
    project = _project(request, pk)
    return project, figures.refresh_if_stale(project) or Figures(project=project)


def _context(request: HttpRequest, project: Project, kept: Figures) -> dict[str, Any]:
    is_manager = Project.objects.led_by(request.user, Membership.Role.MANAGER).filter(pk=project.pk).exists()
    return {
        "project": project,
        "kept": kept,
        "values": kept.values,
        "for_reviewer": not is_manager,
        "is_waiting": not kept.pk or figures.is_stale(kept),
        "version": _version(kept),
    }


def _version(kept: Figures) -> str:
    return kept.computed_at.isoformat() if kept.pk else ""


# Flags and skips


def _open_flags(project: Project) -> QuerySet[Flag]:
    return project.flags.filter(resolved_at=None).order_by("pk")


def _flags_words(num: int) -> str:
    if num == 0:
        return _("No flag is open.")
    if num == MAX_COUNTED:
        return _("%(num)s or more flags are open.") % {"num": num}
    return ngettext("%(num)s flag is open.", "%(num)s flags are open.", num) % {"num": num}


def _skip_reasons(project: Project) -> list[tuple[Any, int]]:
    counted = Skip.objects.filter(comparison__project=project).order_by().values("reason").annotate(num=Count("pk"))
    labels = dict(Skip.Reason.choices)
    return sorted(((labels[row["reason"]], row["num"]) for row in counted), key=lambda found: -found[1])


# Pictures


@dataclass(frozen=True)
class Cell:
    """A share of wins, and which of NUM_SHADES shades it has; 0 where the two never met."""

    text: str
    shade: int


def _cell(share: float | None) -> Cell:
    if share is None:
        return Cell("", 0)
    return Cell(lead_words.percent(share), 1 + min(int(share * NUM_SHADES), NUM_SHADES - 1))


def _chart(kind: str, label: str, labels: list[str], points: list[dict[str, float]]) -> dict[str, Any]:
    """What static/annotate/lead.js draws: columns, or points with their intervals."""
    return {"kind": kind, "label": label, "labels": labels, "points": points}
