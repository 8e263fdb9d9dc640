"""The live page: an annotator writes a prompt, models answer, and the answers become a comparison."""

from http import HTTPStatus
from typing import Any
from uuid import uuid4

from django import forms
from django.http import Http404, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_GET, require_http_methods
from django_htmx.http import HttpResponseClientRedirect

from annotate import live, services
from annotate.errors import NoBattle
from annotate.models import Battle, Project
from annotate.views import HttpRequest, signed_in


class PromptForm(forms.Form):
    """What the annotator asks. `key` is drawn by the page, so that a prompt sent twice is answered once."""

    key = forms.UUIDField(widget=forms.HiddenInput)
    text = forms.CharField(
        label=_("Your prompt"),
        max_length=live.MAX_PROMPT,
        widget=forms.Textarea(attrs={"rows": 5, "dir": "auto"}),
        error_messages={"required": _("Write a prompt first.")},
    )


@require_http_methods(["GET", "HEAD", "POST"])
@signed_in
def live_prompt(request: HttpRequest, pk: int) -> HttpResponse:
    project = get_object_or_404(Project.objects.for_user(request.user), pk=pk)
    if not live.can_battle(project):
        raise Http404
    form = PromptForm(request.POST or None, initial={"key": uuid4()})
    if request.method == "POST" and form.is_valid():
        try:
            battle = live.start_battle(
                project=project, annotator=services.annotator_for(user=request.user), **form.cleaned_data
            )
        except NoBattle as error:
            form.add_error("text", str(error))
        else:
            return HttpResponseRedirect(reverse("annotate:battle", args=[battle.pk]), status=HTTPStatus.SEE_OTHER)
    return render(request, "annotate/live.html", {"project": project, "form": form})


@require_GET
@signed_in
def battle(request: HttpRequest, pk: int) -> HttpResponse:
    """A battle as far as it is; the page asks again until the comparison is there."""
    mine = Battle.objects.select_related("project", "annotator", "comparison").prefetch_related("answers")
    found = get_object_or_404(
        mine, pk=pk, annotator__user=request.user, project__in=Project.objects.for_user(request.user)
    )
    live.finish_battle(battle=found)
    if found.comparison_id:
        url = reverse("annotate:comparison", args=[found.comparison_id])
        return HttpResponseClientRedirect(url) if request.htmx else HttpResponseRedirect(url)
    context: dict[str, Any] = {
        "battle": found,
        "project": found.project,
        "texts": list(zip("ABCD", live.texts_so_far(found), strict=False)),
        "has_failed": live.has_failed(found),
    }
    return render(request, "annotate/_battle.html" if request.htmx else "annotate/battle.html", context)
