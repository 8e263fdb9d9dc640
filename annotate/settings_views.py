"""A project's settings, for its managers. Its endpoints stay with staff: an address is what the server will call."""

from typing import Any

from django.contrib import messages
from django.db import transaction
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from annotate.downloads import export_response
from annotate.formats import FORMATS
from annotate.people_views import get_or_post, managed
from annotate.project_forms import AspectFormSet, ProjectForm
from annotate.views import HttpRequest, signed_in


@get_or_post
@signed_in
def project_settings(request: HttpRequest, pk: int) -> HttpResponse:
    project = managed(request, pk)
    form = ProjectForm(request.POST or None, instance=project)
    aspects = AspectFormSet(request.POST or None, instance=project)
    if request.method == "POST" and form.is_valid() and aspects.is_valid():
        with transaction.atomic():
            form.save()
            aspects.save()
        messages.success(request, _("The settings are saved."))
        return redirect("annotate:settings", pk)
    project.refresh_from_db()  # a form that was refused has put its values there
    context = {"project": project, "form": form, "aspects": aspects, "formats": list(FORMATS)}
    return render(request, "annotate/people/settings.html", context)


@require_safe
@signed_in
def export(request: HttpRequest, pk: int, format_name: str) -> Any:  # streamed, which is no HttpResponse
    return export_response(managed(request, pk), format_name)
