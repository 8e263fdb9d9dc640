"""Policies judged by people: the page that sends them to annotators, and the page of the verdict."""

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path, reverse
from django.utils.dateformat import format as date_format
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timezone import localtime
from django.views.decorators.http import require_POST, require_safe

from annotate.admin import ProjectFilter
from training import contest_queries, contest_samples, contest_services
from training.admin_pages import PageAdmin, get_or_post, is_id
from training.contest_forms import ContestForm
from training.contest_services import CannotSend, Sent
from training.models import Contest, TrainingRun

Context = dict[str, Any] | None


class ContestAdmin(PageAdmin):
    list_display = ("contest", "run_link", "project", "votes_wanted", "sent", "state")
    list_display_links = ("contest",)
    list_filter = (("project", ProjectFilter),)
    list_select_related = ("project", "created_by")
    search_fields = ("run__name",)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # sent is from a run's page

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def may_send(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("annotate.change_project"))

    def get_urls(self) -> list[URLPattern]:
        wrap = self.admin_site.admin_view
        return [
            path("send/<int:run_pk>/", wrap(self.send_view), name="training_contest_send"),
            path("<int:pk>/close/", wrap(self.close_view), name="training_contest_close"),
            *super().get_urls(),
        ]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Contest], search_term: str
    ) -> tuple[QuerySet[Contest], bool]:
        """By the names of runs, as far as the user sees them."""
        found, has_duplicates = super().get_search_results(request, queryset, search_term)
        return found.filter(name_of_run__isnull=False) if search_term else found, has_duplicates

    def changelist_view(self, request: HttpRequest, extra_context: Context = None) -> HttpResponse:
        return super().changelist_view(request, {**(extra_context or {}), "title": "Policies judged by people"})

    @admin.display(description="policies")
    def contest(self, contest: Contest) -> str:
        return str(contest)

    @admin.display(description="run")
    def run_link(self, contest: Contest) -> str | SafeString:
        if not contest.is_run_named:
            return contest.run_name
        url = reverse("admin:training_trainingrun_change", args=[contest.run_id])
        return format_html('<a href="{}">{}</a>', url, contest.run_name)

    @admin.display(description="votes wanted", ordering="num_wanted")
    def votes_wanted(self, contest: Contest) -> int:
        return contest.num_wanted

    @admin.display(description="sent", ordering="created_at")
    def sent(self, contest: Contest) -> str:
        by = f" by {contest.created_by}" if contest.created_by else ""
        return date_format(localtime(contest.created_at), "j M Y H:i") + by

    @admin.display(description="state")
    def state(self, contest: Contest) -> str:
        return "closed" if contest.closed_at else "open"

    @method_decorator(require_safe)
    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Context = None
    ) -> HttpResponse:
        contest = self.get(request, object_id)
        again = {name: getattr(contest, name) for name in ("challenger", "opponent", "aim", "points")}
        return self.page(
            request,
            "contest.html",
            contest=contest,
            verdict=contest_queries.verdict(contest, request.user),
            may_send=self.may_send(request),
            may_freeze=request.user.has_perm("training.add_preferenceset"),
            again=urlencode({**again, "project": contest.project_id}),
            title=f"{contest}, judged by people",
        )

    @method_decorator(get_or_post)
    def send_view(self, request: HttpRequest, run_pk: int) -> HttpResponse:
        """Choose the opponent and how sure one wants to be, see how many votes that takes, and send."""
        run = TrainingRun.objects.for_user(request.user).select_related("project").filter(pk=run_pk).first()
        if run is None:
            raise Http404
        if not self.may_send(request):
            raise PermissionDenied
        if not contest_samples.challengers(run):
            raise Http404
        is_asked = request.method == "POST" or "points" in request.GET
        given = (request.POST if request.method == "POST" else request.GET) if is_asked else None
        form = ContestForm(given, run=run, user=request.user, initial=_initial(request))
        plan = None
        if form.is_valid():
            is_sent = request.method == "POST" and "show" not in request.POST
            if is_sent and (sent := _send(request, run, form.cleaned_data)):
                return redirect("admin:training_contest_change", sent.contest.pk)
            plan = contest_queries.plan(run, **form.cleaned_data)
        context = {"form": form, "run": run, "plan": plan, "may_start": self.may_start(request)}
        return self.page(request, "send.html", title=f"Send {run.name} to annotators", **context)

    @method_decorator(require_POST)
    def close_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        contest = self.get(request, pk)
        if not self.may_send(request):
            raise PermissionDenied
        num_closed = contest_services.close(contest=contest)
        messages.info(request, f"Closed: {num_closed:,} comparisons are asked no more.")
        return redirect("admin:training_contest_change", pk)


def _initial(request: HttpRequest) -> dict[str, Any]:
    return {"project": pk} if is_id(pk := request.GET.get("project", "")) else {}


def _send(request: HttpRequest, run: TrainingRun, chosen: dict[str, Any]) -> Sent | None:
    try:
        sent = contest_services.send(run=run, user=request.user, **chosen)  # type: ignore[arg-type]
    except CannotSend as error:
        messages.error(request, str(error))
        return None
    num_sent = sent.asked.num_new + sent.asked.num_further + sent.asked.num_open
    messages.info(request, f"{num_sent:,} comparisons wait for annotators of {sent.contest.project}.")
    return sent
