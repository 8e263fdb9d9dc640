"""The form that registers a reward: made from the dataclass of its kind, field by field."""

import uuid
from dataclasses import fields
from typing import Any

from django import forms

from annotate.models import OVERALL, Aspect, Project
from training import member_services
from training.alignment.config import ConfigError
from training.alignment.member_config import MEMBER_CONFIGS
from training.forms import config_field
from training.models import Member, TrainingRun

Kind = Member.Kind
HIDDEN_AT_FIRST = {
    "Ratings": ("lowest", "highest"),
    "Order of two responses": ("swap",),
    "Server": ("has_logprobs", "concurrency", "requests_per_minute", "timeout", "max_retries"),
    "Cost": ("price_in", "price_out", "max_cost"),
    "Length and memory": ("max_length", "batch_size"),
}
"""A form's further settings, by heading; what none of them names is shown at first sight."""
FIRST = ("base_url", "model", "policy", "reference_policy", "key_variable", "aspect", "mode", "rubric")
"""What a person is asked first, in this order; the rest follows in the dataclass's."""
LONG_TEXTS = {"rubric": 4000}
MODEL_NAMES = {
    Kind.JUDGE: "judge",
    Kind.SERVED_JUDGE: "served-judge",
    Kind.REWARD_MODEL: "reward-model",
    Kind.IMPLICIT: "implicit-reward",
    Kind.LENGTH: "length",
    Kind.REPETITION: "repetition",
    Kind.FORMAT: "form",
}


class MemberForm(forms.Form):
    """Registers a member of one kind, or has a judge tried before it is registered."""

    key = forms.UUIDField(widget=forms.HiddenInput)
    name = forms.CharField(max_length=100, help_text="Runs name it by this, so no slash and no comma.")
    project = forms.ModelChoiceField(
        Project.objects.none(),
        required=False,
        empty_label="Every project",
        help_text="Only who sees this project sees and uses it.",
    )
    preview_project = forms.ModelChoiceField(
        Project.objects.none(),
        required=False,
        empty_label=None,
        label="Comparisons of",
        help_text="Three of its comparisons are taken: those that people judged last.",
    )

    def __init__(self, *args: Any, kind: str, user: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kind, self.user = Kind(kind), user
        projects = Project.objects.for_user(user)
        for name in ("project", "preview_project"):
            self.fields[name].queryset = projects  # type: ignore[attr-defined]
        if not self.is_judge:
            del self.fields["preview_project"]
        models = member_services.MODELS.get(self.kind, {})
        self.config_names = [item.name for item in fields(MEMBER_CONFIGS[kind])]
        for item in fields(MEMBER_CONFIGS[kind]):
            self.fields[item.name] = config_field(item, user, models.get(item.name))
        self._shape_texts()
        self.initial = {"key": uuid.uuid4(), "name": self._next_name(), **self.initial}

    def _shape_texts(self) -> None:
        for name, length in LONG_TEXTS.items():
            if name in self.fields:
                self.fields[name] = forms.CharField(
                    max_length=length,
                    initial=self.fields[name].initial,
                    help_text=self.fields[name].help_text,
                    widget=forms.Textarea(attrs={"rows": 6}),
                )
        if "key_variable" in self.fields:
            self.fields["key_variable"].widget.attrs |= {"autocomplete": "off", "spellcheck": "false"}
        aspects = Aspect.objects.filter(project__in=Project.objects.for_user(self.user)).values_list("name", flat=True)
        names = list(dict.fromkeys([OVERALL, *aspects.order_by("name")]))
        self.fields["aspect"].suggestions = names  # type: ignore[attr-defined]
        self.fields["aspect"].widget.attrs |= {"list": "aspect-runs", "autocomplete": "off"}

    @property
    def is_judge(self) -> bool:
        return self.kind in member_services.JUDGES

    @property
    def basic(self) -> list[forms.BoundField]:
        later = {name for names in HIDDEN_AT_FIRST.values() for name in names} if self.is_judge else set()
        first = [name for name in FIRST if name in self.config_names]
        rest = [name for name in self.config_names if name not in later and name not in first]
        return [self[name] for name in ("name", "project", *first, *rest)]

    @property
    def advanced(self) -> dict[str, list[forms.BoundField]]:
        """Further settings by heading."""
        if not self.is_judge:
            return {}
        groups = {
            title: [self[name] for name in names if name in self.config_names]
            for title, names in HIDDEN_AT_FIRST.items()
        }
        return {title: own for title, own in groups.items() if own}

    @property
    def has_advanced_errors(self) -> bool:
        return any(field.errors for own in self.advanced.values() for field in own)

    def register(self) -> Member | None:
        """The new member; nothing, and an error on the form, if it cannot be."""
        try:
            return member_services.create_member(
                kind=self.kind,
                name=self.cleaned_data["name"],
                values=self._values(),
                project=self.cleaned_data["project"],
                user=self.user,
            )
        except ConfigError as error:
            self._refuse(error)
            return None

    def preview(self) -> TrainingRun | None:
        """The queued run in which the judge is tried; nothing, and an error on the form, if it cannot be."""
        project = self.cleaned_data["preview_project"]
        if project is None:
            self.add_error("preview_project", "Choose a project.")
            return None
        try:
            return member_services.preview_judge(
                kind=self.kind,
                name=self.cleaned_data["name"],
                values=self._values(),
                project=project,
                user=self.user,
                key=self.cleaned_data["key"],
            )
        except ConfigError as error:
            self._refuse(error)
            return None

    def _values(self) -> dict[str, Any]:
        return {name: self.cleaned_data[name] for name in self.config_names}

    def _refuse(self, error: ConfigError) -> None:
        field, _, message = str(error).partition(": ")
        self.add_error(field if field in self.fields else None, message or field)

    def _next_name(self) -> str:
        return f"{MODEL_NAMES[self.kind]}-{Member.objects.filter(kind=self.kind).count() + 1}"


def annotators_text(project: Project | None, aspect: str) -> str:
    """What annotators of the project are told about an aspect, to begin a rubric with."""
    if project is None:
        return ""
    if aspect == OVERALL:
        return project.guidelines
    return Aspect.objects.filter(project=project, name=aspect).values_list("text", flat=True).first() or ""
