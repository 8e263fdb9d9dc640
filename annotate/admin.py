"""Projects are edited here and their judgments exported; comparisons and judgments are looked at, never changed."""

from collections.abc import Iterable
from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.decorators import method_decorator
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_GET, require_http_methods

from annotate import services
from annotate.downloads import export_response
from annotate.formats import FORMATS
from annotate.models import Aspect, Comparison, Endpoint, Judgment, Option, Project, Response
from annotate.project_forms import SECTIONS, AdminProjectForm, EndpointForm
from annotate.uploads import ImportForm


class ProjectFilter(admin.RelatedFieldListFilter):
    """Offers no project but the user's own."""

    def field_choices(self, field: Any, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        mine = {"pk__in": Project.objects.for_user(request.user)}
        return list(field.get_choices(include_blank=False, limit_choices_to=mine))


class ReadOnlyAdmin(admin.ModelAdmin):
    """Seen, not touched: what was judged stays as it was judged."""

    actions = None
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class AspectInline(admin.TabularInline):
    model = Aspect
    extra = 0


class EndpointInline(admin.StackedInline):
    """Staff only: the server calls these addresses. The key stands in the environment; here is its variable's name."""

    model = Endpoint
    form = EndpointForm
    extra = 0


@admin.register(Project)
class ProjectAdmin(admin.ModelAdmin):
    form = AdminProjectForm
    inlines = (AspectInline, EndpointInline)
    fieldsets: ClassVar[Any] = (
        *((section.title, {"description": section.about, "fields": section.names}) for section in SECTIONS),
        (_("Members"), {"fields": tuple(AdminProjectForm.ROLES)}),
    )
    list_display = ("name", "judgments_so_far", "comparisons", "overlap", "is_open", "created_at")
    search_fields = ("name",)
    actions = None
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Project]:
        return Project.objects.for_user(request.user).with_counts()

    @admin.display(ordering="num_judgments")
    def judgments_so_far(self, project: Any) -> int:
        return int(project.num_judgments)

    @admin.display(ordering="num_comparisons")
    def comparisons(self, project: Any) -> int:
        return int(project.num_comparisons)

    def has_delete_permission(self, request: HttpRequest, obj: Project | None = None) -> bool:
        """Only what holds nothing yet can be deleted."""
        is_empty = obj is not None and not obj.prompts.exists()
        return is_empty and super().has_delete_permission(request, obj)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        form.save_members()
        if "overlap" in form.changed_data:
            services.set_overlap(project=form.instance, overlap=form.cleaned_data["overlap"])

    def get_urls(self) -> list[URLPattern]:
        wrap = self.admin_site.admin_view
        return [
            path("<int:pk>/export/<str:format_name>/", wrap(self.export_view), name="annotate_project_export"),
            path("<int:pk>/import/", wrap(self.import_view), name="annotate_project_import"),
            *super().get_urls(),
        ]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        formats = list(FORMATS) if request.user.has_perm("annotate.view_judgment") else []
        return super().change_view(request, object_id, form_url, {**(extra_context or {}), "export_formats": formats})

    @method_decorator(require_GET)
    def export_view(self, request: HttpRequest, pk: int, format_name: str) -> StreamingHttpResponse:
        project = get_object_or_404(Project.objects.for_user(request.user), pk=pk)
        if not request.user.has_perm("annotate.view_judgment"):
            raise Http404
        return export_response(project, format_name)

    @method_decorator(require_http_methods(["GET", "HEAD", "POST"]))
    def import_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Upload a file in any format that is known, and see what it added."""
        project = get_object_or_404(self.get_queryset(request), pk=pk)
        if not self.has_change_permission(request, project):
            raise Http404
        form = ImportForm(request.POST or None, request.FILES or None)
        report = form.store(project) if form.is_valid() else None
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "original": project,
            "title": _("Import"),
        }
        template = "admin/annotate/project/import.html"
        return TemplateResponse(request, template, {**context, "form": form, "report": report})


@admin.register(Comparison)
class ComparisonAdmin(ReadOnlyAdmin):
    list_display = ("id", "project", "prompt_text", "num_responses", "num_taken", "num_wanted", "created_at")
    list_filter = (("project", ProjectFilter),)
    list_select_related = ("project", "prompt")
    search_fields = ("=id",)
    fields = ("project", "conversation", "answers", "num_taken", "num_wanted", "created_at")
    readonly_fields = ("conversation", "answers")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Comparison]:
        return Comparison.objects.for_user(request.user)

    @admin.display(description="prompt")
    def prompt_text(self, comparison: Comparison) -> str:
        return Truncator(str(comparison.prompt)).chars(80)

    @admin.display
    def conversation(self, comparison: Comparison) -> str:
        return as_text((message["role"], message["content"]) for message in comparison.prompt.messages)

    @admin.display
    def answers(self, comparison: Comparison) -> str:
        responses = [option.response for option in options(comparison)]
        return as_text((f"response {response.pk}, {model_name(response)}", response.content) for response in responses)


@admin.register(Judgment)
class JudgmentAdmin(ReadOnlyAdmin):
    list_display = ("id", "project", "comparison", "annotator", "verdict", "source", "seconds", "created_at")
    list_filter = (("project", ProjectFilter), "source", "is_all_bad", "is_extra")
    list_select_related = ("project", "comparison", "annotator")
    search_fields = ("=id",)
    fields = (
        ("project", "comparison", "annotator", "source"),
        ("verdict", "aspect", "is_all_bad", "is_extra"),
        "ranked",
        ("seconds", "created_at", "key", "row_id", "meta"),
    )
    readonly_fields = ("verdict", "ranked")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Judgment]:
        return Judgment.objects.filter(project__in=Project.objects.for_user(request.user))

    @admin.display
    def verdict(self, judgment: Judgment) -> str:
        """`12 > 10 = 11`: ids of responses, best first."""
        order = " > ".join(" = ".join(map(str, group)) for group in judgment.ranking)
        return f"{order} ({judgment.get_strength_display()})" if judgment.strength else order

    @admin.display(description="responses, best first")
    def ranked(self, judgment: Judgment) -> str:
        responses = {option.response_id: option.response for option in options(judgment.comparison)}
        return as_text(
            (f"{place}. response {pk}, {model_name(responses[pk])}", responses[pk].content)
            for place, group in enumerate(judgment.ranking, start=1)
            for pk in group
        )


def options(comparison: Comparison) -> QuerySet[Option]:
    return comparison.options.select_related("response")


def model_name(response: Response) -> str:
    return f"by {response.model}" if response.model else "model not named"


def as_text(parts: Iterable[tuple[str, str]]) -> str:
    """Titled texts one below the other, to be shown as plain text."""
    return "\n\n".join(f"[{title}]\n{text}" for title, text in parts)
