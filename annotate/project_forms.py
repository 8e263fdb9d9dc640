"""A project's settings, as staff edit them in the admin."""

from typing import Any

from django import forms
from django.contrib.admin.widgets import FilteredSelectMultiple
from django.contrib.auth.models import User
from django.utils.html import format_html
from django.utils.safestring import SafeString

from annotate.models import Project


class AccountsWidget(FilteredSelectMultiple):
    """Two columns to move accounts between. Django's script puts them before the label unless a box holds them."""

    def render(self, *args: Any, **kwargs: Any) -> SafeString:
        return format_html('<div class="related-widget-wrapper">{}</div>', super().render(*args, **kwargs))


class ProjectForm(forms.ModelForm):
    """A project in the admin. Its members stand here, because the admin edits no relation with a model of its own."""

    accounts = forms.ModelMultipleChoiceField(
        User.objects.order_by("username"),
        label="Members",
        required=False,
        widget=AccountsWidget("accounts", is_stacked=False),
        help_text="Who may judge while the project is not open to every account.",
    )

    class Meta:
        model = Project
        fields = ("name", "description", "guidelines", "overlap", "lease_minutes", "is_open")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk:
            self.initial["accounts"] = self.instance.members.all()
