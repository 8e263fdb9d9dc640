"""Freeze, train, watch. Everything is shown read-only; buttons are views of their own that call services."""

from dataclasses import fields
from http import HTTPStatus
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.dateformat import format as date_format
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.timezone import localtime
from django.views.decorators.http import require_POST, require_safe

from annotate.admin import ProjectFilter
from annotate.guidance import Asked
from annotate.models import Project
from training import (
    alignment_queries,
    best_of_n_queries,
    combination_queries,
    comparison_queries,
    contest_queries,
    guidance,
    lineage_queries,
    policy_comparison_queries,
    previews,
    promotion_queries,
    queries,
    report_queries,
    services,
)
from training.admin_pages import PageAdmin, get_or_post, is_id
from training.alignment.config import CONFIGS
from training.contest_admin import ContestAdmin
from training.forms import FILE_FIELDS, FreezeForm, RunForm
from training.member_admin import MemberAdmin
from training.models import Contest, Member, PreferenceSet, Promotion, TrainingRun
from training.promotion_admin import PromotionAdmin
from training.shard_queries import shards

Context = dict[str, Any] | None
Kind = TrainingRun.Kind
BUTTONS = {
    Kind.REWARD_MODEL: "Train reward model",
    Kind.LEARNING_CURVE: "Learning curve",
    Kind.REJECTION_SAMPLING: "Rejection sampling",
    Kind.RLHF: "RLHF",
    Kind.DPO: "DPO",
    Kind.COMPARE_POLICIES: "Compare policies",
    Kind.EVALUATE: "Evaluate",
    Kind.SFT: "Supervised fine-tuning",
    Kind.SCORE_COMPARISONS: "Guide annotation",
    Kind.COMBINE: "Combine rewards",
    Kind.AVERAGE_WEIGHTS: "Average weights",
}  # a kind without a button is started at the command line
OF_PREFERENCE_SETS = {kind: label for kind, label in BUTTONS.items() if kind not in services.NEEDS_PROJECT}
EXPLAINED = {
    kind: f"admin/training/trainingrun/explained/{kind}.html"
    for kind in (Kind.RLHF.value, Kind.REJECTION_SAMPLING.value, Kind.DPO.value)
}
admin.site.register(Member, MemberAdmin)
admin.site.register(Promotion, PromotionAdmin)
admin.site.register(Contest, ContestAdmin)


def _asked(request: HttpRequest, kind: str) -> dict[str, Any]:
    """What a link to the start page fills in: what to work with, and settings; the page shows all of them."""
    sources = {name: pk for name in ("preference_set", "project") if is_id(pk := request.GET.get(name, ""))}
    given = {item: request.GET[item.name] for item in fields(CONFIGS[kind]) if item.name in request.GET}
    settings = {item.name: value == "True" if item.type is bool else value for item, value in given.items()}
    return {**sources, **{name: value for name, value in settings.items() if name not in FILE_FIELDS}}


def _told_asked(asked: Asked) -> str:
    num_sent = asked.num_new + asked.num_further
    open_already = f"{asked.num_open} wait for them already, and come next" if asked.num_open else ""
    if not num_sent:
        return f"Nothing new to send to annotators: {open_already or 'the project has none of these pairs'}."
    sent = f"{num_sent} sent to annotators: {asked.num_new} new comparisons, {asked.num_further} asked once more"
    return f"{sent}; {open_already}." if open_already else f"{sent}."


@admin.register(PreferenceSet)
class PreferenceSetAdmin(PageAdmin):
    list_display = ("name", "project", "judgments", "simulated", "short_digest", "created_at", "created_by")
    list_filter = (("project", ProjectFilter),)
    list_select_related = ("project", "created_by")
    search_fields = ("name", "digest")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: Context = None) -> HttpResponse:
        return super().changelist_view(request, {**(extra_context or {}), "title": "Preference sets"})

    @admin.display(description="judgments (train, validation, test, guard)")
    def judgments(self, preference_set: PreferenceSet) -> str:
        return ", ".join(str(counts["judgments"]) for counts in preference_set.counts.values())

    @admin.display(description="simulated")
    def simulated(self, preference_set: PreferenceSet) -> str:
        return str(queries.num_simulated(preference_set) or "")

    @admin.display(description="digest", ordering="digest")
    def short_digest(self, preference_set: PreferenceSet) -> str:
        return preference_set.digest[:12]

    @method_decorator(get_or_post)
    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Context = None) -> HttpResponse:
        """Freeze a project."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        initial = {name: asked for name in ("project", "seed") if is_id(asked := request.GET.get(name, ""))}
        form = FreezeForm(request.POST or None, user=request.user, initial=initial)
        if form.is_valid() and (frozen := form.freeze()):
            messages.success(request, f"Preference set {frozen} is frozen.")
            if empty := queries.empty_splits(frozen):
                messages.warning(request, f"No prompt fell into {' and '.join(empty)}.")
            return redirect("admin:training_preferenceset_change", frozen.pk)
        return self.page(request, "freeze.html", form=form, title="Freeze a preference set")

    @method_decorator(require_safe)
    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Context = None
    ) -> HttpResponse:
        preference_set = self.get(request, object_id)
        runs = TrainingRun.objects.for_user(request.user).filter(preference_set=preference_set)
        return self.page(
            request,
            "preference_set.html",
            preference_set=preference_set,
            splits=queries.split_lines(preference_set),
            num_simulated=queries.num_simulated(preference_set),
            runs=runs,
            has_reports=any(run.kind in comparison_queries.REPORTING_KINDS for run in runs),
            buttons=OF_PREFERENCE_SETS if self.may_start(request) else {},
            title=str(preference_set),
        )


@admin.register(TrainingRun)
class TrainingRunAdmin(PageAdmin):
    list_display = ("name", "kind", "status_pill", "outcome", "preference_set", "created")
    list_filter = ("status", "kind", ("project", ProjectFilter))
    list_select_related = ("preference_set__project",)
    search_fields = ("name",)

    class Media:
        css = {"all": ("training/admin.css",)}  # noqa: RUF012 -- Django's way

    @admin.display(description="status", ordering="status")
    def status_pill(self, run: TrainingRun) -> str:
        done = f" {run.progress:.0%}" if run.status == TrainingRun.Status.RUNNING else ""
        return format_html('<span class="pill pill-{}">{}{}</span>', run.status, run.get_status_display(), done)

    @admin.display(description="result")
    def outcome(self, run: TrainingRun) -> str:
        return queries.headline(run.result)

    @admin.display(description="started", ordering="created_at")
    def created(self, run: TrainingRun) -> str:
        return date_format(localtime(run.created_at), "j M H:i")

    def get_queryset(self, request: HttpRequest) -> QuerySet[TrainingRun]:
        """For the list: shards stand on the pages of their runs."""
        return TrainingRun.objects.for_user(request.user).started_by_people()

    def get_urls(self) -> list[URLPattern]:
        wrap = self.admin_site.admin_view
        return [
            path("start/<str:kind>/", wrap(self.start_view), name="training_trainingrun_start"),
            path("compare/", wrap(self.compare_view), name="training_trainingrun_compare"),
            path("<int:pk>/lineage/", wrap(self.lineage_view), name="training_trainingrun_lineage"),
            path("<int:pk>/progress/", wrap(self.progress_view), name="training_trainingrun_progress"),
            path("<int:pk>/tracking/", wrap(self.tracking_view), name="training_trainingrun_tracking"),
            path("<int:pk>/shards/", wrap(self.shards_view), name="training_trainingrun_shards"),
            path("<int:pk>/log/", wrap(self.log_view), name="training_trainingrun_log"),
            path("<int:pk>/metrics/", wrap(self.metrics_view), name="training_trainingrun_metrics"),
            path("<int:pk>/cancel/", wrap(self.cancel_view), name="training_trainingrun_cancel"),
            path("<int:pk>/answer/", wrap(self.answer_view), name="training_trainingrun_answer"),
            path("<int:pk>/ask/", wrap(self.ask_view), name="training_trainingrun_ask"),
            *super().get_urls(),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: Context = None) -> HttpResponse:
        buttons = BUTTONS if self.has_add_permission(request) else {}
        return super().changelist_view(request, {**(extra_context or {}), "buttons": buttons, "title": "Training runs"})

    @method_decorator(require_safe)
    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Context = None) -> HttpResponse:
        """Choose what to start."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        choices = [{"kind": kind, "label": label, "about": CONFIGS[kind].__doc__} for kind, label in BUTTONS.items()]
        return self.page(request, "choose.html", choices=choices, title="Start a run")

    @method_decorator(get_or_post)
    def start_view(self, request: HttpRequest, kind: str) -> HttpResponse:
        if not self.has_add_permission(request):
            raise PermissionDenied
        if kind not in BUTTONS:
            raise Http404
        initial = _asked(request, kind)
        form = RunForm(request.POST or None, kind=kind, user=request.user, initial=initial)
        if form.is_valid() and (run := form.start()):
            return redirect("admin:training_trainingrun_change", run.pk)
        about = {"about": CONFIGS[kind].__doc__, "explained": EXPLAINED.get(kind)}
        return self.page(request, "start.html", form=form, title=BUTTONS[Kind(kind)], **about)

    @method_decorator(require_safe)
    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Context = None
    ) -> HttpResponse:
        run = self.get(request, object_id)
        may_cancel = run.is_active and self.has_change_permission(request)
        combination = combination_queries.combination(run, request.user)
        policies = policy_comparison_queries.comparison(run, request.user)
        report = None if combination or policies else report_queries.report(run, request.user)
        tracking, best_of_n = alignment_queries.tracking(run), best_of_n_queries.best_of_n(run)
        parts = {
            combination_queries: combination,
            policy_comparison_queries: policies,
            report_queries: report,
            alignment_queries: tracking,
            best_of_n_queries: best_of_n,
        }
        told = set().union(*(module.TOLD_HERE for module, part in parts.items() if part))
        page = queries.run_page(run, user=request.user, told_elsewhere=told)
        context = {"run": run, "page": page, "report": report, "combination": combination, "may_cancel": may_cancel}
        context["curve"] = report_queries.learning_curve(run)
        context |= {"tracking": tracking, "best_of_n": best_of_n, "policies": policies}
        asked = request.GET.get("prompt", ""), request.GET.getlist("step")
        context["over_time"] = alignment_queries.samples_over_time(run, *asked)
        context["preview"] = previews.preview(run) if run.kind == Kind.PREVIEW_JUDGE else None
        context["may_ask"] = request.user.has_perm("annotate.change_project")
        context["promotion"] = promotion_queries.box(run, request.user)
        context["may_promote"] = request.user.has_perm("training.add_promotion")
        context["contests"] = contest_queries.box(run, request.user)
        context["may_start"] = self.may_start(request)
        context["may_see_comparisons"] = request.user.has_perm("annotate.view_comparison")
        if run.is_policy and context["may_ask"]:
            context["projects"] = Project.objects.for_user(request.user)
        return self.page(request, "run.html", title=run.name, **context)

    @method_decorator(require_safe)
    def compare_view(self, request: HttpRequest) -> HttpResponse:
        """Reward models side by side, on one preference set."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        sets = comparison_queries.reported_sets(request.user)
        asked = request.GET.get("preference_set", "")
        preference_set = next((one for one in sets if str(one.pk) == asked), None if asked else next(iter(sets), None))
        if asked and preference_set is None:
            raise Http404
        chosen = {int(pk) for pk in request.GET.getlist("run") if is_id(pk)}
        return self.page(
            request,
            "compare.html",
            sets=sets,
            preference_set=preference_set,
            found=comparison_queries.side_by_side(request.user, preference_set, chosen) if preference_set else None,
            may_start=self.may_start(request),
            title="Compare reward models",
        )

    @method_decorator(require_safe)
    def lineage_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Where the run's model comes from, and what came of it."""
        run = self.get(request, pk)
        told = lineage_queries.lineage(run, request.user)
        return self.page(request, "lineage.html", run=run, lineage=told, title=f"Lineage of {run}")

    @method_decorator(require_safe)
    def progress_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The part that the page asks for again and again; when the run has ended, the page loads anew."""
        run = self.get(request, pk)
        context = {"run": run, "progress": queries.progress(run)}
        response = TemplateResponse(request, "admin/training/trainingrun/_run_progress.html", context)
        if not run.is_active and request.htmx:  # type: ignore[attr-defined]
            response["HX-Refresh"] = "true"
        return response

    @method_decorator(require_safe)
    def tracking_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """A policy's checks as far as they have got; no content where the page has seen the newest one."""
        run = self.get(request, pk)
        is_seen = alignment_queries.version(run) == request.GET.get("seen")
        tracking = None if is_seen else alignment_queries.tracking(run)
        if tracking is None:
            return HttpResponse(status=HTTPStatus.NO_CONTENT)
        context = {"run": run, "tracking": tracking}
        return TemplateResponse(request, "admin/training/trainingrun/_tracking_news.html", context)

    @method_decorator(require_safe)
    def shards_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        run = self.get(request, pk)
        if (parts := shards(run)) is None and not (run.is_active and run.is_divided):
            raise Http404
        context = {"run": run, "shards": parts}
        return TemplateResponse(request, "admin/training/trainingrun/_shards.html", context)

    @method_decorator(require_safe)
    def log_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        run = self.get(request, pk)
        context = {"run": run, "log": queries.log(run)}
        return TemplateResponse(request, "admin/training/trainingrun/_run_log.html", context)

    @method_decorator(require_safe)
    def metrics_view(self, request: HttpRequest, pk: int) -> JsonResponse:
        run = self.get(request, pk)
        after, first = (request.GET.get(name, "") for name in ("after", "first"))
        series = queries.metric_series(
            run, after=int(after) if is_id(after) else 0, first=int(first) if is_id(first) else None
        )
        return JsonResponse(series)

    @method_decorator(require_POST)
    def cancel_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        run = self.get(request, pk)
        if not self.has_change_permission(request):
            raise PermissionDenied
        services.cancel_run(run=run, user=request.user)
        messages.info(request, f"Run {run.name} is being cancelled." if run.is_active else f"Run {run.name} has ended.")
        return redirect("admin:training_trainingrun_change", pk)

    @method_decorator(require_POST)
    def answer_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Let the policy answer the prompts that a project's annotators write."""
        run = self.get(request, pk)
        if not request.user.has_perm("annotate.change_project"):
            raise PermissionDenied
        asked = request.POST.get("project", "")
        project = get_object_or_404(Project.objects.for_user(request.user), pk=asked if is_id(asked) else 0)
        if not run.is_policy:
            raise Http404
        try:
            services.answer_live(run=run, project=project)
        except services.CannotServe as error:
            messages.error(request, str(error))
        else:
            messages.info(request, f"{run.name} answers the prompts that annotators of {project} write.")
        return redirect("admin:training_trainingrun_change", pk)

    @method_decorator(require_POST)
    def ask_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Send to annotators what a combination's members disagree about."""
        run = self.get(request, pk)
        if not request.user.has_perm("annotate.change_project"):
            raise PermissionDenied
        if run.project is None or run.kind != Kind.COMBINE:
            raise Http404
        messages.info(request, _told_asked(guidance.ask_disagreements(run=run)))
        return redirect("admin:training_trainingrun_change", pk)
