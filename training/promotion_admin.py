"""The history of projects' reward models, and the button that promotes one."""

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path, reverse
from django.utils.dateformat import format as date_format
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from django.utils.timezone import localtime
from django.views.decorators.http import require_POST, require_safe

from annotate.admin import ProjectFilter
from training import promotion_queries, promotion_services
from training.admin_pages import PageAdmin
from training.models import Promotion, TrainingRun
from training.promotion_forms import PromotionForm


class PromotionAdmin(PageAdmin):
    list_display = ("promoted", "project", "reward_model", "in_place_of", "test_in_words", "overruled")
    list_filter = (("project", ProjectFilter), "is_overruled")
    list_select_related = ("project", "run", "previous__run", "created_by")
    search_fields = ("run__name", "reason")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # promoted is from a run's page

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_urls(self) -> list[URLPattern]:
        promote = path("promote/", self.admin_site.admin_view(self.promote_view), name="training_promotion_promote")
        return [promote, *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        return super().changelist_view(request, {**(extra_context or {}), "title": "Projects' reward models"})

    @admin.display(description="promoted", ordering="created_at")
    def promoted(self, promotion: Promotion) -> str:
        by = f" by {promotion.created_by}" if promotion.created_by else ""
        return date_format(localtime(promotion.created_at), "j M Y H:i") + by

    @admin.display(description="reward model")
    def reward_model(self, promotion: Promotion) -> SafeString:
        return _link(promotion.run)

    @admin.display(description="in place of")
    def in_place_of(self, promotion: Promotion) -> SafeString | str:
        return _link(promotion.incumbent) if promotion.incumbent else "none before"

    @admin.display(description="test on held-out judgments")
    def test_in_words(self, promotion: Promotion) -> str:
        return promotion_queries.told_test(promotion)

    @admin.display(description="overruled, because")
    def overruled(self, promotion: Promotion) -> str:
        return Truncator(promotion.reason).chars(200) if promotion.is_overruled else ""

    @method_decorator(require_safe)
    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        promotion = self.get(request, object_id)
        test = promotion_queries.stored_test(promotion)
        drawn = promotion_queries.drawn_test(test, promotion.run, promotion.incumbent) if test else None
        title = f"{promotion.run} for {promotion.project}"
        return self.page(request, "promotion.html", promotion=promotion, drawn=drawn, title=title)

    @method_decorator(require_POST)
    def promote_view(self, request: HttpRequest) -> HttpResponse:
        if not request.user.has_perm("training.add_promotion"):
            raise PermissionDenied
        form = PromotionForm(request.POST, user=request.user)
        is_valid = form.is_valid()
        run = form.cleaned_data.get("run")
        if run is None:
            raise Http404
        if not is_valid:
            messages.error(request, " ".join(str(error) for errors in form.errors.values() for error in errors))
        else:
            _promote(request, run, form.cleaned_data["previous"], form.cleaned_data["reason"])
        return redirect("admin:training_trainingrun_change", run.pk)


def _promote(request: HttpRequest, run: TrainingRun, previous: int | None, reason: str) -> None:
    try:
        promotion_services.promote(run=run, previous=previous, user=request.user, reason=reason)  # type: ignore[arg-type]
    except promotion_services.CannotPromote as error:
        messages.error(request, str(error))
    else:
        messages.success(request, f"{run} is the reward model of {run.project} now.")


def _link(run: TrainingRun) -> SafeString:
    return format_html('<a href="{}">{}</a>', reverse("admin:training_trainingrun_change", args=[run.pk]), run)
