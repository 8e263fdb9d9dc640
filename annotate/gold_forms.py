"""A known answer as a lead enters it: a place for each response, what it is for, and why."""

from itertools import groupby
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from annotate.models import Gold, Response


class GoldForm(forms.ModelForm):
    """What may change once annotators have been measured by the answer."""

    class Meta:
        model = Gold
        fields = ("use", "explanation")
        labels = {"use": _("Use"), "explanation": _("Explanation")}  # noqa: RUF012 -- Django's way
        widgets = {"explanation": forms.Textarea({"rows": 4})}  # noqa: RUF012

    @property
    def cleaned_values(self) -> dict[str, str]:
        return {name: self.cleaned_data[name] for name in ("use", "explanation")}


class NewGoldForm(GoldForm):
    """With a place for each response; equal places are a tie."""

    def __init__(self, *args: Any, responses: list[Response], ranking: list[list[int]] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.responses = responses
        places = {pk: place for place, group in enumerate(ranking or [], start=1) for pk in group}
        for response in responses:
            self.fields[f"place-{response.pk}"] = forms.TypedChoiceField(
                coerce=int,
                choices=[("", _("choose…")), *((place, place) for place in range(1, len(responses) + 1))],
                initial=places.get(response.pk),
                label=_("Place"),
                error_messages={"required": _("Not placed yet.")},
            )

    @property
    def cards(self) -> list[tuple[Response, forms.BoundField]]:
        return [(response, self[f"place-{response.pk}"]) for response in self.responses]

    @property
    def ranking(self) -> list[list[int]]:
        places = {response.pk: self.cleaned_data[f"place-{response.pk}"] for response in self.responses}
        by_place = sorted(places, key=lambda pk: (places[pk], pk))
        return [list(group) for _place, group in groupby(by_place, key=places.__getitem__)]
