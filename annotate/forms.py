"""An annotator's answer as it comes from the page.

The comparison page names responses only by where they were shown (A, B, … from left to right), so nothing in it
tells where a response stood in the source. `ranking` gives shown positions, best first, ties as groups; the view
turns them into response ids by the lease's shown order.
"""

from itertools import groupby
from typing import Any, ClassVar, NamedTuple

from django import forms

from annotate.models import MAX_RESPONSES, Judgment

MAX_SECONDS = 3600  # longer means that the annotator went away
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWX"[:MAX_RESPONSES]
BOTH_BAD = "both-bad"


class SecondsField(forms.FloatField):
    """Time on task as the script measured it; no answer is refused because the clock is wrong or missing."""

    widget = forms.HiddenInput

    def clean(self, value: Any) -> float | None:
        try:
            seconds = super().clean(value)
        except forms.ValidationError:
            return None
        return None if seconds is None or seconds < 0 else min(seconds, MAX_SECONDS)


class JudgmentForm(forms.Form):
    key = forms.UUIDField(widget=forms.HiddenInput)
    seconds = SecondsField(required=False)

    @property
    def strength(self) -> int | None:
        return None


class Verdict(NamedTuple):
    label: str
    key: str  # the one that gives it on the keyboard
    ranking: list[list[int]]
    strength: int | None = None


class PairwiseForm(JudgmentForm):
    """One press of a button judges a pair."""

    VERDICTS: ClassVar[dict[str, Verdict]] = {
        "a-strongly": Verdict("A strongly better", "1", [[0], [1]], Judgment.Strength.STRONGLY),
        "a-slightly": Verdict("A slightly better", "2", [[0], [1]], Judgment.Strength.SLIGHTLY),
        "tie": Verdict("Tie", "3", [[0, 1]]),
        "b-slightly": Verdict("B slightly better", "4", [[1], [0]], Judgment.Strength.SLIGHTLY),
        "b-strongly": Verdict("B strongly better", "5", [[1], [0]], Judgment.Strength.STRONGLY),
        BOTH_BAD: Verdict("Both bad", "0", [[0, 1]]),
    }
    verdict = forms.ChoiceField(
        choices=[(value, verdict.label) for value, verdict in VERDICTS.items()],
        error_messages={"required": "Choose one of the answers below.", "invalid_choice": "There is no such answer."},
    )

    @property
    def ranking(self) -> list[list[int]]:
        return self.VERDICTS[self.cleaned_data["verdict"]].ranking

    @property
    def strength(self) -> int | None:
        return self.VERDICTS[self.cleaned_data["verdict"]].strength

    @property
    def is_all_bad(self) -> bool:
        return bool(self.cleaned_data["verdict"] == BOTH_BAD)


class ListwiseForm(JudgmentForm):
    """A place for every response; equal places are a tie. Nothing is preselected: the order shown is no answer."""

    all_bad = forms.BooleanField(required=False, label="None of them is acceptable")

    def __init__(self, *args: Any, num_responses: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_responses = num_responses
        for position in range(num_responses):
            self.fields[f"place-{position}"] = forms.TypedChoiceField(
                coerce=int,
                choices=[("", "choose…"), *place_choices(num_responses)],
                label=f"Place of {LETTERS[position]}",
                error_messages={"required": "Not placed yet.", "invalid_choice": "There is no such place."},
            )

    @property
    def places(self) -> list[forms.BoundField]:
        return [self[f"place-{position}"] for position in range(self.num_responses)]

    def clean(self) -> dict[str, Any]:
        missing = [LETTERS[position] for position, field in enumerate(self.places) if field.errors]
        if missing:
            self.add_error(None, f"Give a place to {', '.join(missing)}.")
        return self.cleaned_data

    @property
    def ranking(self) -> list[list[int]]:
        """Places 1, 3, 3 mean the first, then the other two tied: only their order counts."""
        places = [self.cleaned_data[f"place-{position}"] for position in range(self.num_responses)]
        by_place = sorted(range(self.num_responses), key=places.__getitem__)
        return [list(group) for _, group in groupby(by_place, key=places.__getitem__)]

    @property
    def is_all_bad(self) -> bool:
        return bool(self.cleaned_data["all_bad"])


def place_choices(num_responses: int) -> list[tuple[int, str]]:
    names = {1: "1 (best)", num_responses: f"{num_responses} (worst)"}
    return [(place, names.get(place, str(place))) for place in range(1, num_responses + 1)]


def judgment_form(num_responses: int, data: Any = None, **kwargs: Any) -> PairwiseForm | ListwiseForm:
    if num_responses == 2:
        return PairwiseForm(data, **kwargs)
    return ListwiseForm(data, num_responses=num_responses, **kwargs)
