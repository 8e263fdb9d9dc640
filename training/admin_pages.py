"""What the admin's pages of this app have in common."""

from http import HTTPMethod
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest
from django.template.response import TemplateResponse
from django.views.decorators.http import require_http_methods

get_or_post = require_http_methods([HTTPMethod.GET, HTTPMethod.HEAD, HTTPMethod.POST])


class PageAdmin(admin.ModelAdmin):
    """A list, and pages of our own in place of Django's forms. Nothing is deleted: runs and sets name each other."""

    actions = None
    show_full_result_count = False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return self.model._default_manager.for_user(request.user)

    def get(self, request: HttpRequest, pk: Any) -> Any:
        """What this user may see under that number, else 404."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        visible = self.model._default_manager.for_user(request.user).select_related("project", "created_by")
        found = visible.filter(pk=pk).first() if is_id(pk) else None
        if found is None:
            raise Http404
        return found

    def page(self, request: HttpRequest, template: str, **context: Any) -> TemplateResponse:
        shared = {**self.admin_site.each_context(request), "opts": self.opts}
        return TemplateResponse(request, f"admin/training/{self.opts.model_name}/{template}", {**shared, **context})

    def may_start(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("training.add_trainingrun"))


def is_id(pk: Any) -> bool:
    return isinstance(pk, int) or (pk.isdecimal() and len(pk) < 19)
