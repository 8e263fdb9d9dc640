"""A project's settings, as its managers edit them, and as staff do in the admin."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from django import forms
from django.contrib.admin.widgets import FilteredSelectMultiple
from django.contrib.auth.models import User
from django.db import transaction
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from annotate import services
from annotate.models import Aspect, Endpoint, Gold, Membership, Project

MAX_OVERLAP, MAX_LEASE_MINUTES = 1000, 24 * 60


class Section(NamedTuple):
    """Settings that belong together."""

    title: Any
    about: Any
    names: tuple[str, ...]


SECTIONS = (
    Section(_("Project"), "", ("name", "description", "guidelines")),
    Section(
        _("What annotators do"),
        _("The kind and the scale stay as they are once somebody has judged."),
        ("kind", "rating_max"),
    ),
    Section(
        _("Which comparisons are asked"),
        _("A comparison is closed when it has its judgments, and lent to nobody else while somebody judges it."),
        ("overlap", "lease_minutes", "strategy", "random_share", "mirror_share"),
    ),
    Section(
        _("Known answers"),
        _("Shares are numbers from 0 to 1. Known answers have a page of their own."),
        ("gold_rate", "gold_feedback", "qualification_size", "qualification_accuracy"),
    ),
    Section(_("Access"), "", ("is_open",)),
)
LABELS = {
    "name": _("Name"),
    "description": _("Description"),
    "guidelines": _("Guidelines"),
    "kind": _("Kind"),
    "rating_max": _("Highest rating"),
    "overlap": _("Overlap"),
    "lease_minutes": _("Lease minutes"),
    "strategy": _("Order"),
    "random_share": _("Random share"),
    "mirror_share": _("Mirrored share"),
    "gold_rate": _("Share of known answers"),
    "gold_feedback": _("Tell the known answer afterwards"),
    "qualification_size": _("Size of the qualification"),
    "qualification_accuracy": _("Share to get right"),
    "is_open": _("Open to every account"),
}


class ProjectForm(forms.ModelForm):
    overlap = forms.IntegerField(
        min_value=1,
        max_value=MAX_OVERLAP,
        label=LABELS["overlap"],
        help_text=Project._meta.get_field("overlap").help_text,
    )
    lease_minutes = forms.IntegerField(
        min_value=1,
        max_value=MAX_LEASE_MINUTES,
        label=LABELS["lease_minutes"],
        help_text=Project._meta.get_field("lease_minutes").help_text,
    )

    class Meta:
        model = Project
        fields = [name for section in SECTIONS for name in section.names]  # noqa: RUF012 -- Django's way
        labels = LABELS
        widgets = {"description": forms.Textarea({"rows": 3}), "guidelines": forms.Textarea({"rows": 12})}  # noqa: RUF012

    @property
    def sections(self) -> Iterator[tuple[Section, list[forms.BoundField]]]:
        return ((section, [self[name] for name in section.names]) for section in SECTIONS)

    def clean_kind(self) -> str:
        kind = str(self.cleaned_data["kind"])
        if "kind" in self.changed_data and self._is_judged():
            raise forms.ValidationError(
                _("There are judgments of the other kind already. Make a new project for this.")
            )
        return kind

    def clean_rating_max(self) -> int:
        highest = int(self.cleaned_data["rating_max"])
        is_rating = self.initial.get("kind") == Project.Kind.RATING
        if "rating_max" in self.changed_data and is_rating and self._is_judged():
            raise forms.ValidationError(_("There are ratings on the other scale already. Make a new project for this."))
        return highest

    def clean_qualification_size(self) -> int:
        size = int(self.cleaned_data["qualification_size"])
        there = Gold.objects.filter(project=self.instance.pk, use=Gold.Use.QUALIFICATION).count()
        if self.instance.pk and "qualification_size" in self.changed_data and size > there:
            words = _("Nobody could qualify. Known answers that are there for it: %(number)s. Add some first.")
            raise forms.ValidationError(words, params={"number": there})
        return size

    @transaction.atomic
    def save(self, commit: bool = True) -> Project:
        """With `commit`, comparisons that are there already come to want what the project wants."""
        project: Project = super().save(commit)
        if commit and "overlap" in self.changed_data:
            services.set_overlap(project=project, overlap=self.cleaned_data["overlap"])
        return project

    def _is_judged(self) -> bool:
        return bool(self.instance.pk) and self.instance.judgments.exists()


ASPECT_LABELS: dict[str, Any] = {
    "name": _("Name"),
    "text": _("Text"),
    "position": _("Place"),
    "is_asked": _("Asked"),
}
AspectFormSet: Any = forms.inlineformset_factory(
    Project,
    Aspect,
    fields=("name", "text", "position", "is_asked"),
    labels=ASPECT_LABELS,
    widgets={"text": forms.Textarea({"rows": 2})},
    extra=1,
)


class AccountsWidget(FilteredSelectMultiple):
    """Two columns to move accounts between. Django's script puts them before the label unless a box holds them."""

    def render(self, *args: Any, **kwargs: Any) -> SafeString:
        return format_html('<div class="related-widget-wrapper">{}</div>', super().render(*args, **kwargs))


def _accounts(name: str, label: Any, help_text: Any) -> forms.ModelMultipleChoiceField:
    return forms.ModelMultipleChoiceField(
        User.objects.order_by("username"),
        label=label,
        required=False,
        widget=AccountsWidget(name, is_stacked=False),
        help_text=help_text,
    )


class AdminProjectForm(ProjectForm):
    """With the project's members, because the admin edits no relation with a model of its own."""

    ROLES = {  # noqa: RUF012 -- who stands in several of these has the last of them
        "accounts": Membership.Role.ANNOTATOR,
        "reviewers": Membership.Role.REVIEWER,
        "managers": Membership.Role.MANAGER,
    }

    accounts = _accounts(
        "accounts", _("Annotators"), _("Who may judge while the project is not open to every account.")
    )
    reviewers = _accounts(
        "reviewers", _("Reviewers"), _("Who may also see figures and decide where annotators differ.")
    )
    managers = _accounts("managers", _("Managers"), _("Who may also change settings, invite people and export."))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk:
            for name, role in self.ROLES.items():
                here = Membership.objects.filter(project=self.instance, role=role)
                self.initial[name] = list(here.values_list("user", flat=True))

    @transaction.atomic
    def save_members(self) -> None:
        roles = {user.pk: role for name, role in self.ROLES.items() for user in self.cleaned_data[name]}
        memberships = self.instance.memberships
        memberships.exclude(user__in=roles).delete()
        for role in self.ROLES.values():
            memberships.filter(user__in=[pk for pk, own in roles.items() if own == role]).update(role=role)
        known = set(memberships.values_list("user", flat=True))
        missing = [Membership(project=self.instance, user_id=pk, role=roles[pk]) for pk in roles.keys() - known]
        Membership.objects.bulk_create(missing)


class EndpointForm(forms.ModelForm):
    base_url = forms.URLField(
        required=False,
        assume_scheme="https",
        label=_("Base URL"),
        help_text=Endpoint._meta.get_field("base_url").help_text,
    )
