"""What a person fills in to send two policies to annotators."""

from typing import Any

from django import forms

from annotate.models import Project
from annotate.stats.sequential import MAX_EFFECT, MIN_EFFECT, MIN_PRECISION
from training import contest_samples
from training.models import Contest, TrainingRun

AIMS = {
    Contest.Aim.EFFECT: "Find out that it is better, if it wins this many points above 50%",
    Contest.Aim.PRECISION: "Know its win rate to this many points",
}
RANGES = {Contest.Aim.EFFECT: (MIN_EFFECT, MAX_EFFECT), Contest.Aim.PRECISION: (MIN_PRECISION, 0.45)}
POINTS = 10.0  # a win rate of 60 %


class ContestForm(forms.Form):
    """Of a run's policies, one against another one or against people, in a project."""

    challenger = forms.ChoiceField(label="Policy")
    opponent = forms.ChoiceField(label="Against")
    project = forms.ModelChoiceField(
        Project.objects.none(),
        help_text="Whose annotators judge. They come next, unless the project asks in order: then they come last.",
        empty_label=None,
    )
    aim = forms.ChoiceField(choices=AIMS.items(), widget=forms.RadioSelect, initial=Contest.Aim.EFFECT)
    points = forms.FloatField(initial=POINTS, help_text="Percentage points.")

    def __init__(self, *args: Any, run: TrainingRun, user: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.run = run
        called = contest_samples.names(run, user)
        self._choose("challenger", [(name, called[name]) for name in reversed(contest_samples.challengers(run))])
        self._choose("opponent", [(name, called[name]) for name in contest_samples.opponents(run)])
        projects: Any = self.fields["project"]
        projects.queryset = Project.objects.for_user(user)
        projects.initial = run.project_id

    def _choose(self, name: str, choices: list[tuple[str, str]]) -> None:
        field: Any = self.fields[name]
        field.choices = choices
        if name == "challenger" and len(choices) == 1:
            field.initial, field.widget = choices[0][0], forms.HiddenInput()

    def clean(self) -> dict[str, Any]:
        told = {**(super().clean() or {}), **self.cleaned_data}
        if told.get("challenger") and told.get("challenger") == told.get("opponent"):
            self.add_error("opponent", "A policy cannot be sent against itself.")
        if {"aim", "points"} <= told.keys():
            low, high = (100 * end for end in RANGES[told["aim"]])
            if not low <= told["points"] <= high:
                self.add_error("points", f"From {low:g} to {high:g} points.")
        return told
