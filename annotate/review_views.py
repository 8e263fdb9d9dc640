"""The adjudication queue, for reviewers and managers."""

from http import HTTPStatus

from django import forms
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_GET, require_POST

from annotate import figures, review, services
from annotate.models import OVERALL, Comparison, Membership, Project
from annotate.questions import LETTERS, ListQuestion, PairQuestion, Question
from annotate.services import MAX_NOTE
from annotate.views import HttpRequest, signed_in

MAX_PLACE = 10_000


class VerdictForm(forms.Form):
    """A reviewer's own order, asked as annotators are asked."""

    note = forms.CharField(
        label=_("Note"), required=False, max_length=MAX_NOTE, widget=forms.Textarea(attrs={"rows": 2, "dir": "auto"})
    )

    def __init__(self, data: object = None, *, num_responses: int) -> None:
        super().__init__(data)  # type: ignore[arg-type]
        kind = PairQuestion if num_responses == 2 else ListQuestion
        self.question: Question = kind(self, num_responses)


@require_GET
@signed_in
def review_queue(request: HttpRequest, pk: int) -> HttpResponse:
    project = reviewed(request, pk)
    figures.refresh_if_stale(project)
    return show(request, project, aspect_of(request, project), place_of(request))


@require_POST
@signed_in
def verdict(request: HttpRequest, pk: int) -> HttpResponse:
    """Keep a verdict, and show what comes next."""
    comparisons = Comparison.objects.select_related("project")
    comparison = get_object_or_404(comparisons, pk=pk)
    project = reviewed(request, comparison.project_id)
    aspect = aspect_of(request, project)
    form = VerdictForm(request.POST, num_responses=comparison.num_responses)
    reviewer = services.annotator_for(user=request.user)
    if not form.is_valid():
        return show(request, project, aspect, place_of(request), form)
    order = review.shown_order(comparison, reviewer, comparison.options.values_list("response_id", flat=True))
    review.give_verdict(
        comparison=comparison,
        reviewer=reviewer,
        ranking=form.question.answer(order).ranking,
        aspect=aspect,
        note=form.cleaned_data["note"],
    )
    return HttpResponseRedirect(address(project, aspect, place_of(request)), status=HTTPStatus.SEE_OTHER)


def reviewed(request: HttpRequest, pk: int) -> Project:
    """The project, for its reviewers and managers; for everybody else there is none."""
    roles = (Membership.Role.REVIEWER, Membership.Role.MANAGER)
    return get_object_or_404(Project.objects.led_by(request.user, *roles), pk=pk)


def show(
    request: HttpRequest, project: Project, aspect: str, place: int, form: VerdictForm | None = None
) -> HttpResponse:
    reviewer = services.annotator_for(user=request.user)
    page = review.review_page(project=project, reviewer=reviewer, aspect=aspect, place=place)
    context = {
        "project": project,
        "for_reviewer": not Project.objects.led_by(request.user, Membership.Role.MANAGER)
        .filter(pk=project.pk)
        .exists(),
        "aspect": aspect,
        "aspects": [OVERALL, *project.aspects.values_list("name", flat=True)],
        "page": page,
        "place": place,
        "later": address(project, aspect, place + 1),
        "start": address(project, aspect, 0),
    }
    if page:
        context["form"] = form or VerdictForm(num_responses=len(page.order))
        context["cards"] = list(zip(LETTERS, page.contents, strict=False))
        context["pair"] = page.contents if len(page.contents) == 2 else None
    return render(request, "annotate/review.html", context)


def aspect_of(request: HttpRequest, project: Project) -> str:
    asked = request.GET.get("aspect", OVERALL)
    return asked if asked == OVERALL or project.aspects.filter(name=asked).exists() else OVERALL


def place_of(request: HttpRequest) -> int:
    asked = request.GET.get("place", "")
    return min(int(asked), MAX_PLACE) if asked.isdecimal() and len(asked) < 9 else 0


def address(project: Project, aspect: str, place: int) -> str:
    return f"{reverse('annotate:review', args=[project.pk])}?{urlencode({'aspect': aspect, 'place': str(place)})}"
