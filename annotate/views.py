"""The annotators' pages. Looking changes nothing; a comparison is leased by pressing a button.

Every address answers the page's script with the fragment `#comparison` alone and everybody else with a page or a
redirect, so a submit brings the next comparison along, and plain forms work the same.
"""

from collections.abc import Callable
from functools import wraps
from http import HTTPStatus
from typing import Any

from django.contrib.auth.models import User
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import ValidationError
from django.forms import UUIDField
from django.http import Http404, HttpResponse, HttpResponseRedirect
from django.http import HttpRequest as PlainHttpRequest
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST, require_safe
from django_htmx.http import HttpResponseClientRedirect, push_url
from django_htmx.middleware import HtmxDetails

from annotate import figures, pages, queries, services
from annotate.distribution import lease_shown, shown_order
from annotate.errors import NotLeased
from annotate.forms import FlagForm, JudgmentForm, ReasonForm, SkipForm
from annotate.models import OVERALL, Annotator, Comparison, Judgment, Lease, Mirror, Project, Skip, Standing
from annotate.queries import ComparisonPage

NUM_VERSIONS = 50
MAX_HELD_IDS = 100  # how many comparisons a page may say that it holds


class HttpRequest(PlainHttpRequest):
    htmx: HtmxDetails
    user: User


def signed_in(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Send strangers to the sign-in page, and then back to where they were; a script must leave its page for that."""

    @wraps(view)
    @never_cache
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.user.is_authenticated:
            return view(request, *args, **kwargs)
        if request.htmx:
            came_from = request.htmx.current_url_abs_path or reverse("annotate:projects")
            return HttpResponseClientRedirect(redirect_to_login(came_from).url)
        return redirect_to_login(request.path if request.method == "GET" else reverse("annotate:projects"))

    return wrapped


# Projects


@require_GET
@signed_in
def projects(request: HttpRequest) -> HttpResponse:
    found = [
        (project, pages.qualification_words(project, queries.standing_in(project)))
        for project in queries.projects_with_progress(request.user)
    ]
    return render(request, "annotate/projects.html", {"projects": found})


@require_safe
@signed_in
def mine(request: HttpRequest, pk: int) -> HttpResponse:
    project = my_project(request, pk)
    standing = queries.standing_of(project, request.user)
    judgments = [
        (judgment, pages.title(judgment), pages.judgment_words(judgment), pages.feedback_on(judgment))
        for judgment in queries.last_judgments(project, request.user)
    ]
    context = {"project": project, "standing": standing, "judgments": judgments, "number": services.NUM_REVISABLE}
    own = figures.own_row(project, request.user) if judgments else None
    return render(request, "annotate/mine.html", {**context, "own": own})


@require_safe
@signed_in
def guidelines(request: HttpRequest, pk: int) -> HttpResponse:
    project = my_project(request, pk)
    versions = list(project.guidelines_texts.order_by("-version")[:NUM_VERSIONS])
    asked = request.GET.get("version", "")
    shown = next((each for each in versions if str(each.version) == asked), None)
    if asked and shown is None:
        raise Http404("There is no such version.")
    context = {
        "project": project,
        "text": shown.text if shown else project.guidelines,
        "version": shown.version if shown else project.guidelines_version,
        "versions": versions,
        "aspects": queries.asked_aspects(project),
        "examples": [pages.example(gold, texts) for gold, texts in queries.example_pages(project)],
    }
    return render(request, "annotate/guidelines.html", context)


@require_POST
@signed_in
def next_comparison(request: HttpRequest, pk: int) -> HttpResponse:
    """The next comparison; with `besides` the one after those that the page holds, or nothing at all."""
    project, besides = my_project(request, pk), held_by_page(request)
    annotator = services.annotator_for(user=request.user)
    lease = services.lease_next(project=project, annotator=annotator, besides=besides)
    if besides and lease is None:
        return HttpResponse(status=HTTPStatus.NO_CONTENT)
    return show_lease(request, project, lease)


@require_GET
@signed_in
def done(request: HttpRequest, pk: int) -> HttpResponse:
    return show_done(request, my_project(request, pk))


# One comparison


@require_http_methods(["GET", "HEAD", "POST"])
@signed_in
def compare(request: HttpRequest, pk: int) -> HttpResponse:
    comparison, annotator, lease = find(request, pk)
    if request.method == "POST":
        return (revise if request.POST.get("revises") else submit)(request, comparison, annotator, lease)
    if lease:
        return show_comparison(request, queries.comparison_page(lease, comparison.project))
    if judgment := queries.revisable_judgment(comparison, annotator):
        return show_comparison(request, queries.revision_page(judgment, comparison.project))
    return show_past(request, comparison, annotator)


@require_POST
@signed_in
def skip(request: HttpRequest, pk: int) -> HttpResponse:
    comparison, annotator, lease = find(request, pk)
    lease = shown_lease(request, comparison, annotator, lease)
    form = SkipForm(request.POST)
    if not form.is_valid():
        return show_invalid(request, queries.comparison_page(lease, comparison.project), reasons=form)
    services.skip_comparison(comparison=comparison, annotator=annotator, **without_key(form))
    project, besides = comparison.project, held_by_page(request)
    following = services.lease_next(project=project, annotator=annotator, besides=besides)
    response = show_lease(request, project, following)
    response["X-Skipped"] = str(comparison.pk)
    return response


@require_POST
@signed_in
def flag(request: HttpRequest, pk: int) -> HttpResponse:
    """The comparison stays with its annotator, to be judged or skipped."""
    comparison, annotator, lease = find(request, pk)
    page = page_shown(request, comparison, annotator, lease)
    form = FlagForm(request.POST)
    if not form.is_valid():
        return show_invalid(request, page, reasons=form)
    services.flag_comparison(comparison=comparison, annotator=annotator, **without_key(form))
    if request.htmx:
        return HttpResponse(status=HTTPStatus.NO_CONTENT)
    return HttpResponseRedirect(f"{comparison_url(pk)}?flagged=1", status=HTTPStatus.SEE_OTHER)


@require_POST
@signed_in
def draft(request: HttpRequest, pk: int) -> HttpResponse:
    """Keeps what was entered and the lease alive; 410 where the comparison has gone to somebody else."""
    comparison, annotator, lease = find(request, pk)
    is_revising = lease is None and queries.revisable_judgment(comparison, annotator) is not None
    if lease is None and not is_revising and not was_shown(request, comparison, annotator):
        return HttpResponse(status=HTTPStatus.GONE)
    if request.POST.get("alive"):
        is_held = is_revising or services.renew_lease(comparison=comparison, annotator=annotator)
    else:
        entered = posted_form(request, comparison).draft()
        is_held = services.save_draft(comparison=comparison, annotator=annotator, values=entered)
    return HttpResponse(status=HTTPStatus.NO_CONTENT if is_held else HTTPStatus.GONE)


def submit(request: HttpRequest, comparison: Comparison, annotator: Annotator, held: Lease | None) -> HttpResponse:
    lease = shown_lease(request, comparison, annotator, held)
    form, order = posted_form(request, comparison), lease.shown_order
    if not form.is_valid():
        return show_invalid(request, queries.comparison_page(lease, comparison.project), form)
    answers = form.answers(order)
    overall = answers.pop(OVERALL)
    judgment, following = services.record_and_lease_next(
        comparison=comparison,
        annotator=annotator,
        besides=held_by_page(request),
        ranking=overall.ranking,
        strength=overall.strength,
        bad=overall.bad,
        is_all_bad=overall.is_all_bad,
        ratings=overall.ratings,
        aspects=answers,
        edit=form.better_answer(order),
        key=lease.key,
        source=Judgment.Source.BROWSER,
        lease=lease,
        **form.told(order),
    )
    return saved(request, comparison, judgment, following)


def revise(request: HttpRequest, comparison: Comparison, annotator: Annotator, held: Lease | None) -> HttpResponse:
    judgment = queries.revisable_judgment(comparison, annotator)
    if judgment is None:
        response = show_past(request, comparison, annotator)
        response.status_code = HTTPStatus.CONFLICT
        return response
    project = comparison.project
    page = queries.revision_page(judgment, project)
    form = posted_form(request, comparison)
    if not form.is_valid():
        return show_invalid(request, page, form)
    answers = form.answers(page.order)
    told = {**form.told(page.order), "total_seconds": judgment.total_seconds}  # how long it took at first
    services.revise_judgment(
        judgment=judgment,
        answer=answers.pop(OVERALL),
        aspects=answers,
        edit=form.better_answer(page.order),
        **told,
    )
    following = services.lease_next(project=project, annotator=annotator, besides=held_by_page(request))
    return saved(request, comparison, judgment, following)


# What requests say


def my_project(request: HttpRequest, pk: int) -> Project:
    return get_object_or_404(Project.objects.for_user(request.user), pk=pk)


def find(request: HttpRequest, pk: int) -> tuple[Comparison, Annotator, Lease | None]:
    """The comparison, for members of its project who have begun; with the lease if they hold it."""
    if lease := queries.held_lease(request.user, pk):
        return lease.comparison, lease.annotator, lease
    mine = Comparison.objects.for_user(request.user).select_related("project", "prompt")
    return get_object_or_404(mine, pk=pk), get_object_or_404(Annotator, user=request.user), None


def posted_form(request: HttpRequest, comparison: Comparison) -> JudgmentForm:
    project = comparison.project
    aspects = queries.asked_aspects(project)
    return JudgmentForm(request.POST, project=project, num_responses=comparison.num_responses, aspects=aspects)


def posted_key(request: HttpRequest) -> Any:
    try:
        return UUIDField(required=False).clean(request.POST.get("key"))
    except ValidationError:
        return None


def shown_lease(request: HttpRequest, comparison: Comparison, annotator: Annotator, held: Lease | None) -> Lease:
    """The lease under which the page was shown, also when it has run out since: the page's key proves it.

    A comparison that was taken anew after its lease ran out may be held under the mirrored order by now; the page
    still means the order that it shows.
    """
    key = posted_key(request)
    if held and key in (None, held.key):
        return held
    for mirror in Mirror.values if held else ():
        if held and key == Lease.key_for(comparison.pk, annotator.pk, mirror):
            held.mirror = mirror
            held.shown_order = shown_order(comparison, annotator, held.shown_order, mirror)
            return held
    try:
        return lease_shown(comparison, annotator, key)
    except NotLeased as error:
        raise Http404("This comparison was not shown to you.") from error


def page_shown(
    request: HttpRequest, comparison: Comparison, annotator: Annotator, held: Lease | None
) -> ComparisonPage:
    """The page that was shown, of a comparison still to be judged or of one that can be revised."""
    if held is None and (judgment := queries.revisable_judgment(comparison, annotator)):
        return queries.revision_page(judgment, comparison.project)
    return queries.comparison_page(shown_lease(request, comparison, annotator, held), comparison.project)


def was_shown(request: HttpRequest, comparison: Comparison, annotator: Annotator) -> bool:
    """Whether the page's key proves that this annotator held the comparison once."""
    try:
        lease_shown(comparison, annotator, posted_key(request))
    except NotLeased:
        return False
    return True


def held_by_page(request: HttpRequest) -> set[int]:
    """Comparisons that the page holds already, and that are not wanted again."""
    given = request.POST.getlist("besides")[:MAX_HELD_IDS]
    return {int(pk) for pk in given if pk.isascii() and pk.isdigit() and len(pk) < 19}


def without_key(form: ReasonForm) -> dict[str, Any]:
    return {name: form.cleaned_data[name] for name in ("reason", "note")}


# What is answered


def comparison_url(pk: int) -> str:
    return reverse("annotate:comparison", args=[pk])


def saved(request: HttpRequest, comparison: Comparison, judgment: Judgment, following: Lease | None) -> HttpResponse:
    """The next comparison, with what is to be said of the answer before."""
    feedback = pages.feedback_on(judgment) if comparison.is_gold else None
    response = show_lease(request, comparison.project, following, feedback=feedback)
    if feedback and not request.htmx:
        response["Location"] += f"?judged={judgment.pk}"
    response["X-Saved"] = str(judgment.pk)
    return response


def show_lease(
    request: HttpRequest, project: Project, lease: Lease | None, feedback: pages.Feedback | None = None
) -> HttpResponse:
    url = comparison_url(lease.comparison_id) if lease else reverse("annotate:done", args=[project.pk])
    if not request.htmx:
        return HttpResponseRedirect(url, status=HTTPStatus.SEE_OTHER)
    if lease is None:
        return push_url(show_done(request, project, feedback), url)
    return push_url(show_comparison(request, queries.comparison_page(lease, project), feedback=feedback), url)


def show_comparison(
    request: HttpRequest,
    page: ComparisonPage,
    form: JudgmentForm | None = None,
    *,
    feedback: pages.Feedback | None = None,
    reasons: ReasonForm | None = None,
) -> HttpResponse:
    form = form or pages.judgment_form(page)
    context = {
        "page": page,
        "form": form,
        "reasons": reasons,
        "cards": pages.cards(page, form),
        "heading": pages.heading(form.kind, page.project, page.num_responses),
        "history": pages.history(page),
        "max_note": services.MAX_NOTE,
        "skip_reasons": pages.SKIP_REASONS,
        "flag_reasons": pages.FLAG_REASONS,
    }
    return show(request, page.standing, "annotate/_comparison.html", context, feedback)


def show_invalid(
    request: HttpRequest,
    page: ComparisonPage,
    form: JudgmentForm | None = None,
    *,
    reasons: ReasonForm | None = None,
) -> HttpResponse:
    response = show_comparison(request, page, form, reasons=reasons)
    response.status_code = HTTPStatus.UNPROCESSABLE_ENTITY
    return response


def show_past(request: HttpRequest, comparison: Comparison, annotator: Annotator) -> HttpResponse:
    """What was a comparison for this annotator once: judged too long ago to be revised, or skipped."""
    judgment = Judgment.objects.filter(comparison=comparison, annotator=annotator, aspect=OVERALL).first()
    if judgment:
        title, words = _("Already judged"), _("You have judged this comparison, and your answer is stored.")
    elif Skip.objects.filter(comparison=comparison, annotator=annotator).exists():
        title, words = _("Skipped"), _("You have skipped this comparison; it is left to others.")
    else:
        raise Http404("This comparison was not shown to you.")
    context = {"title": title, "words": words, "has_more": True}
    feedback = pages.feedback_on(judgment) if judgment else None
    standing = queries.standing_of(comparison.project, request.user)
    return show(request, standing, "annotate/_finished.html", context, feedback)


def show_done(request: HttpRequest, project: Project, feedback: pages.Feedback | None = None) -> HttpResponse:
    words = _("Nothing in this project is open to you now. What others leave comes back to the queue.")
    context = {"title": _("All done for now"), "words": words}
    return show(request, queries.standing_of(project, request.user), "annotate/_finished.html", context, feedback)


def show(
    request: HttpRequest,
    standing: Standing,
    fragment: str,
    context: dict[str, Any],
    feedback: pages.Feedback | None = None,
) -> HttpResponse:
    project = standing.project
    context = {
        **context,
        "project": project,
        "num_judged": standing.num_judged,
        "qualification": pages.qualification_words(project, standing),
        "has_failed": standing.failed_at is not None and standing.qualified_at is None,
        "feedback": feedback or judged_before(request, project),
        "fragment": fragment,
    }
    return render(request, fragment if request.htmx else "annotate/compare.html", context)


def judged_before(request: HttpRequest, project: Project) -> pages.Feedback | None:
    """Feedback on the answer whose plain form led to this page."""
    pk = request.GET.get("judged", "")
    if not project.gold_feedback or not pk.isdecimal() or len(pk) > 18:
        return None
    judgment = queries.judgment_on_gold(project, request.user, int(pk))
    return pages.feedback_on(judgment) if judgment else None
