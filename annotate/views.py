"""The annotators' pages. Looking changes nothing; a comparison is leased by pressing a button.

Every address answers htmx with the fragment `#comparison` alone and everybody else with a page or a redirect, so a
submit brings the next comparison along, and plain forms work the same.
"""

from collections.abc import Callable
from functools import wraps
from http import HTTPStatus
from typing import Any, NamedTuple

from django.contrib.auth.models import User
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import ValidationError
from django.forms import BoundField, UUIDField
from django.http import Http404, HttpResponse, HttpResponseRedirect
from django.http import HttpRequest as PlainHttpRequest
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from django_htmx.http import HttpResponseClientRedirect, push_url
from django_htmx.middleware import HtmxDetails

from annotate import queries, services
from annotate.distribution import lease_shown
from annotate.errors import NotLeased
from annotate.forms import LETTERS, ListwiseForm, PairwiseForm, judgment_form
from annotate.models import Annotator, Comparison, Judgment, Lease, Project, Skip


class HttpRequest(PlainHttpRequest):
    htmx: HtmxDetails
    user: User


class Card(NamedTuple):
    """A response where it is shown, with the field for its place in a list."""

    letter: str
    content: str
    place: BoundField | None


def signed_in(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Send strangers to the sign-in page, and then back to the page they were on; htmx must leave its page for that."""

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


@require_GET
@signed_in
def projects(request: HttpRequest) -> HttpResponse:
    return render(request, "annotate/projects.html", {"projects": queries.projects_with_progress(request.user)})


@require_POST
@signed_in
def next_comparison(request: HttpRequest, pk: int) -> HttpResponse:
    project = get_object_or_404(Project.objects.for_user(request.user), pk=pk)
    return show_next(request, project, services.annotator_for(user=request.user))


@require_GET
@signed_in
def done(request: HttpRequest, pk: int) -> HttpResponse:
    project = get_object_or_404(Project.objects.for_user(request.user), pk=pk)
    return show_done(request, project)


@require_http_methods(["GET", "HEAD", "POST"])
@signed_in
def compare(request: HttpRequest, pk: int) -> HttpResponse:
    comparison = get_object_or_404(Comparison.objects.for_user(request.user).select_related("project"), pk=pk)
    annotator = get_object_or_404(Annotator, user=request.user)
    if request.method == "POST":
        return submit(request, comparison, annotator)
    mine = Lease.objects.filter(comparison=comparison, annotator=annotator)
    if lease := mine.select_related("comparison__prompt").first():
        return show_comparison(request, comparison.project, lease)
    return show_past(request, comparison, annotator)


@require_POST
@signed_in
def skip(request: HttpRequest, pk: int) -> HttpResponse:
    comparison = get_object_or_404(Comparison.objects.for_user(request.user).select_related("project"), pk=pk)
    annotator = get_object_or_404(Annotator, user=request.user)
    shown_lease(request, comparison, annotator)
    services.skip_comparison(comparison=comparison, annotator=annotator)
    return show_next(request, comparison.project, annotator)


def submit(request: HttpRequest, comparison: Comparison, annotator: Annotator) -> HttpResponse:
    lease = shown_lease(request, comparison, annotator)
    form = judgment_form(comparison.num_responses, request.POST)
    if not form.is_valid():
        return show_comparison(request, comparison.project, lease, form)
    _judgment, following = services.record_and_lease_next(
        comparison=comparison,
        annotator=annotator,
        ranking=[[lease.shown_order[position] for position in group] for group in form.ranking],
        strength=form.strength,
        is_all_bad=form.is_all_bad,
        seconds=form.cleaned_data["seconds"],
        key=lease.key,
        source=Judgment.Source.BROWSER,
        lease=lease if lease.pk else None,
    )
    return show_lease(request, comparison.project, following)


def shown_lease(request: HttpRequest, comparison: Comparison, annotator: Annotator) -> Lease:
    """The lease under which the page was shown, also when it has run out since: the page's key proves it."""
    try:
        return lease_shown(comparison, annotator, UUIDField().clean(request.POST.get("key")))
    except (NotLeased, ValidationError) as error:
        raise Http404("This comparison was not shown to you.") from error


def show_next(request: HttpRequest, project: Project, annotator: Annotator) -> HttpResponse:
    return show_lease(request, project, services.lease_next(project=project, annotator=annotator))


def show_lease(request: HttpRequest, project: Project, lease: Lease | None) -> HttpResponse:
    if lease:
        url = reverse("annotate:comparison", args=[lease.comparison_id])
    else:
        url = reverse("annotate:done", args=[project.pk])
    if not request.htmx:
        return HttpResponseRedirect(url, status=HTTPStatus.SEE_OTHER)
    return push_url(show_comparison(request, project, lease) if lease else show_done(request, project), url)


def show_comparison(
    request: HttpRequest, project: Project, lease: Lease, form: PairwiseForm | ListwiseForm | None = None
) -> HttpResponse:
    page = queries.comparison_page(lease, project)
    form = form or judgment_form(page.num_responses, initial={"key": page.key})
    places = form.places if isinstance(form, ListwiseForm) else [None, None]
    contents = [response.content for response in page.responses]
    cards = [Card(*card) for card in zip(LETTERS, contents, places, strict=False)]
    return show(request, page.project, "annotate/_comparison.html", {"page": page, "form": form, "cards": cards})


def show_past(request: HttpRequest, comparison: Comparison, annotator: Annotator) -> HttpResponse:
    """What was a comparison for this annotator once: judged, or skipped."""
    mine = {"comparison": comparison, "annotator": annotator}
    if Judgment.objects.filter(**mine).exists():
        words = {"title": "Already judged", "words": "You have judged this comparison, and your answer is stored."}
    elif Skip.objects.filter(**mine).exists():
        words = {"title": "Skipped", "words": "You have skipped this comparison; it is left to others."}
    else:
        raise Http404("This comparison was not shown to you.")
    return show(request, comparison.project, "annotate/_finished.html", {**words, "has_more": True})


def show_done(request: HttpRequest, project: Project) -> HttpResponse:
    words = "Nothing in this project is open to you now. What others leave comes back to the queue."
    return show(request, project, "annotate/_finished.html", {"title": "All done for now", "words": words})


def show(request: HttpRequest, project: Project, fragment: str, context: dict[str, Any]) -> HttpResponse:
    num_judged = queries.num_judged(project, request.user)
    context = {**context, "project": project, "num_judged": num_judged, "fragment": fragment}
    return render(request, fragment if request.htmx else "annotate/compare.html", context)
