"""The registry of rewards: all that scores in one list; members are made, tried, retired and combined from here."""

from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.forms import BooleanField
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.views.decorators.http import require_POST, require_safe

from annotate.models import Project
from training import member_queries, member_services, previews
from training.admin_pages import PageAdmin, get_or_post, is_id
from training.alignment.member_config import MEMBER_CONFIGS, member_to_dict
from training.member_forms import MemberForm, annotators_text
from training.models import TrainingRun
from training.references import WEIGHT_KINDS

Context = dict[str, Any] | None
PAGE_SIZE = 50
START = "admin:training_trainingrun_start"


class MemberAdmin(PageAdmin):
    """Members and what runs have saved, side by side; no member is changed, only retired."""

    def get_urls(self) -> list[URLPattern]:
        wrap = self.admin_site.admin_view
        return [
            path("add/<str:kind>/", wrap(self.form_view), name="training_member_form"),
            path("combine/", wrap(self.combine_view), name="training_member_combine"),
            path("preview/<int:pk>/", wrap(self.preview_view), name="training_member_preview"),
            path("<int:pk>/retire/", wrap(self.retire_view), name="training_member_retire"),
            *super().get_urls(),
        ]

    @method_decorator(require_safe)
    def changelist_view(self, request: HttpRequest, extra_context: Context = None) -> HttpResponse:
        """All that scores."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        kind, state = request.GET.get("kind", ""), request.GET.get("state", "")
        state = state if state in member_queries.STATES else "active"
        everything = member_queries.rewards(request.user, state="all")
        chosen = member_queries.rewards(request.user, kind=kind, state=state) if kind or state != "all" else everything
        page = Paginator(chosen, PAGE_SIZE).get_page(request.GET.get("page"))
        return self.page(
            request,
            "list.html",
            page=page,
            found=member_queries.registry(request.user, list(page.object_list), everything),
            kinds=member_queries.kinds_to_filter(),
            states=member_queries.STATES,
            kind=kind,
            state=state,
            may_add=self.has_add_permission(request),
            may_start=self.may_start(request),
            title="Rewards and their members",
        )

    @method_decorator(require_safe)
    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Context = None) -> HttpResponse:
        """Choose what kind of member to register."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        choices = [
            {"kind": kind.value, "label": kind.label, "about": MEMBER_CONFIGS[kind].__doc__}
            for kind in member_services.MADE_BY_FORMS
        ]
        return self.page(request, "choose.html", choices=choices, title="Register a member")

    @method_decorator(get_or_post)
    def form_view(self, request: HttpRequest, kind: str) -> HttpResponse:
        """Register a member of a kind; a judge can be tried before."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        if kind not in member_services.MADE_BY_FORMS:
            raise Http404
        if "take_text" in request.POST:
            form = MemberForm(kind=kind, user=request.user, initial=_with_annotators_text(request, kind))
            return self._form_page(request, form)
        tried = self._preview_run(request, request.GET["preview"]) if "preview" in request.GET else None
        form = MemberForm(request.POST or None, kind=kind, user=request.user, initial=self._asked(request, kind, tried))
        if form.is_valid():
            if "preview" in request.POST:
                if not self.may_start(request):
                    raise PermissionDenied
                if run := form.preview():
                    return redirect(_preview_url(form, run))
            elif member := form.register():
                messages.success(request, f"Member {member} is registered.")
                return redirect("admin:training_member_change", member.pk)
        return self._form_page(request, form, tried)

    def _form_page(self, request: HttpRequest, form: MemberForm, tried: TrainingRun | None = None) -> TemplateResponse:
        return self.page(
            request,
            "form.html",
            form=form,
            about=MEMBER_CONFIGS[form.kind].__doc__,
            preview=previews.preview(tried) if tried else None,
            may_start=self.may_start(request),
            title=f"Register: {form.kind.label.lower()}",
        )

    def _asked(self, request: HttpRequest, kind: str, tried: TrainingRun | None) -> dict[str, Any]:
        """What a link fills in: from a member like the new one, a run, or what a judge was tried with."""
        asked = request.GET
        if tried is not None:
            config = previews.member_of(tried)
            told = member_to_dict(config) if config else {}
            named = {name: asked[name] for name in ("name", "project") if name in asked}
            return {**told, **named, "preview_project": tried.project_id}
        if is_id(asked.get("like", "none")):
            member = self.get(request, asked["like"])
            return {**(member.config if member.kind == kind else {}), "project": member.project_id}
        if is_id(asked.get("run", "none")):
            return _of_run(request, asked["run"])
        return {"project": asked["project"]} if is_id(asked.get("project", "none")) else {}

    @method_decorator(require_safe)
    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Context = None
    ) -> HttpResponse:
        member = self.get(request, object_id)
        return self.page(
            request,
            "member.html",
            member=member,
            page=member_queries.member_page(request.user, member),
            may_change=self.has_change_permission(request),
            may_add=self.has_add_permission(request) and member.kind in member_services.MADE_BY_FORMS,
            may_start=self.may_start(request),
            title=str(member),
        )

    @method_decorator(require_POST)
    def retire_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Retire a member, or bring it back."""
        member = self.get(request, pk)
        if not self.has_change_permission(request):
            raise PermissionDenied
        is_active = request.POST.get("active") == "1"
        member_services.retire_member(member=member, is_active=is_active)
        messages.info(request, f"Member {member} is {'in use again' if is_active else 'retired'}.")
        return redirect("admin:training_member_change", pk)

    @method_decorator(require_safe)
    def combine_view(self, request: HttpRequest) -> HttpResponse:
        """Go to the start of a combination, with the chosen rewards filled in."""
        if not self.may_start(request):
            raise PermissionDenied
        chosen = ", ".join(name for name in request.GET.getlist("member") if "," not in name)
        return redirect(f"{reverse(START, args=[TrainingRun.Kind.COMBINE])}?{urlencode({'members': chosen})}")

    @method_decorator(require_safe)
    def preview_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The part of the form's page that asks again and again while a judge is being tried."""
        run = self._preview_run(request, str(pk))
        context = {"preview": previews.preview(run)}
        return TemplateResponse(request, "admin/training/member/_preview.html", context)

    def _preview_run(self, request: HttpRequest, pk: str) -> TrainingRun:
        """A preview's run. It shows a project's texts: whoever may not see runs sees none."""
        if not request.user.has_perm("training.view_trainingrun"):
            raise PermissionDenied
        visible = TrainingRun.objects.for_user(request.user).filter(kind=TrainingRun.Kind.PREVIEW_JUDGE)
        run = visible.select_related("project").filter(pk=pk).first() if is_id(pk) else None
        if run is None:
            raise Http404
        return run


def _of_run(request: HttpRequest, pk: str) -> dict[str, Any]:
    """A member of what a run has trained."""
    visible = TrainingRun.objects.for_user(request.user).filter(kind__in=WEIGHT_KINDS)
    run = visible.filter(pk=pk, status=TrainingRun.Status.SUCCEEDED).first()
    if run is None:
        raise Http404
    aspect = str(run.config.get("aspect", "")) or "overall"
    told = {"name": run.name, "model": member_queries.reference_of(request.user, run), "project": run.project_id}
    return {**told, "aspect": aspect.split(",")[0].strip()}


def _with_annotators_text(request: HttpRequest, kind: str) -> dict[str, Any]:
    """What was written in the form, with what annotators are told as the rubric."""
    form = MemberForm(kind=kind, user=request.user)
    written: QueryDict = request.POST
    typed = {name: written.get(name, "") for name in form.fields if name != "key"}
    flags = {name: name in written for name, field in form.fields.items() if isinstance(field, BooleanField)}
    chosen = next((pk for name in ("preview_project", "project") if is_id(pk := written.get(name, ""))), 0)
    project = Project.objects.for_user(request.user).filter(pk=chosen).first()
    text = annotators_text(project, typed.get("aspect", ""))
    if text:
        typed["rubric"] = text
    else:
        messages.warning(request, "Annotators are told nothing about this aspect in that project.")
    return {**typed, **flags}


def _preview_url(form: MemberForm, run: TrainingRun) -> str:
    asked = {"preview": run.pk, "name": form.cleaned_data["name"]}
    if project := form.cleaned_data["project"]:
        asked["project"] = project.pk
    return f"{reverse('admin:training_member_form', args=[form.kind])}?{urlencode(asked)}#preview"
