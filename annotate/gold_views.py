"""Managers' pages about comparisons with a known answer."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from annotate import gold as services
from annotate import gold_queries
from annotate.errors import AnnotateError
from annotate.gold_forms import GoldForm, NewGoldForm
from annotate.models import Comparison, Gold
from annotate.people_views import get_or_post, managed
from annotate.views import HttpRequest, signed_in


@require_safe
@signed_in
def gold_list(request: HttpRequest, pk: int) -> HttpResponse:
    project = managed(request, pk)
    page = gold_queries.gold_page(project, request.GET.get("page"))
    return render(request, "annotate/gold/list.html", {"project": project, "page": page})


@get_or_post
@signed_in
def add_gold(request: HttpRequest, pk: int) -> HttpResponse:
    """A comparison by its number, with a place for each response; the annotators' consensus is filled in."""
    project = managed(request, pk)
    comparison = _asked(request, pk)
    if comparison is None:
        messages.error(request, _("There is no comparison of that number in this project."))
        return redirect("annotate:gold", pk)
    form = NewGoldForm(
        request.POST or None,
        responses=gold_queries.responses_of(comparison),
        ranking=gold_queries.agreed_ranking(comparison),
    )
    if form.is_valid() and _made(form, comparison):
        messages.success(request, _("Comparison %(number)s has a known answer now.") % {"number": comparison.pk})
        return redirect("annotate:gold", pk)
    context = {"project": project, "comparison": comparison, "form": form}
    return render(request, "annotate/gold/add.html", context)


@get_or_post
@signed_in
def change_gold(request: HttpRequest, pk: int, gold_pk: int) -> HttpResponse:
    project = managed(request, pk)
    gold = get_object_or_404(Gold.objects.select_related("comparison__prompt"), project=project, pk=gold_pk)
    form = GoldForm(request.POST or None, instance=gold)
    if form.is_valid() and _changed(form, gold):
        return redirect("annotate:gold", pk)
    context = {"project": project, "gold": gold, "order": gold_queries.known_order(gold), "form": form}
    return render(request, "annotate/gold/change.html", context)


@require_POST
@signed_in
def remove_gold(request: HttpRequest, pk: int, gold_pk: int) -> HttpResponse:
    gold = get_object_or_404(Gold, project=managed(request, pk), pk=gold_pk)
    try:
        services.remove_gold(gold=gold)
    except AnnotateError as error:
        messages.error(request, str(error))
    return redirect("annotate:gold", pk)


def _asked(request: HttpRequest, pk: int) -> Comparison | None:
    number = request.GET.get("comparison", "")
    if not number.isdecimal() or len(number) > 18:
        return None
    return Comparison.objects.select_related("prompt", "project").filter(project=pk, pk=number).first()


def _made(form: NewGoldForm, comparison: Comparison) -> bool:
    try:
        services.make_gold(comparison=comparison, ranking=form.ranking, **form.cleaned_values)
    except AnnotateError as error:
        form.add_error(None, str(error))
        return False
    return True


def _changed(form: GoldForm, gold: Gold) -> bool:
    try:
        services.change_gold(gold=gold, **form.cleaned_values)
    except AnnotateError as error:
        form.add_error(None, str(error))
        return False
    return True
