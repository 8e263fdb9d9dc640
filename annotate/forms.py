"""An annotator's answer as it comes from the page, and what else they can send from there.

The page names responses only by where they were shown (A, B, … from left to right), so nothing in it tells where a
response stood in the source. See `annotate.questions` for what is asked.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from annotate.answers import Answer, Edit
from annotate.models import OVERALL, Aspect, Flag, Judgment, Project, Skip
from annotate.questions import LETTERS, NONE, Choice, ListQuestion, PairQuestion, Verdict, kind_of, make_question
from annotate.services import MAX_NOTE

MAX_SECONDS = 3600  # longer means that the annotator went away
MAX_TOTAL_SECONDS = 30 * 24 * 3600
MAX_RATIONALE = 5000  # characters
MAX_EDIT = 50_000
MAX_HIGHLIGHTS = 50
MAX_HIGHLIGHTED = 5000  # characters of one
MAX_REASON = 500
MAX_OFFSET = 10_000_000
MAX_DRAFT_FIELD = MAX_HIGHLIGHTS * (MAX_HIGHLIGHTED + MAX_REASON)


class SecondsField(forms.FloatField):
    """Time on task as the script measured it; no answer is refused because the clock is wrong or missing."""

    widget = forms.HiddenInput

    def __init__(self, *, most: int = MAX_SECONDS, **kwargs: Any) -> None:
        super().__init__(required=False, **kwargs)
        self.most = most

    def clean(self, value: Any) -> float | None:
        try:
            seconds = super().clean(value)
        except ValidationError:
            return None
        return None if seconds is None or seconds < 0 else min(seconds, self.most)


class HighlightsField(forms.CharField):
    """Passages of responses as JSON: `[{"position", "start", "end", "text", "reason"}, …]`.

    Offsets count the UTF-16 units of the text as it is shown, which is how a browser counts.
    """

    widget = forms.HiddenInput

    def __init__(self, *, num_responses: int, **kwargs: Any) -> None:
        super().__init__(required=False, max_length=MAX_DRAFT_FIELD, **kwargs)
        self.num_responses = num_responses

    def clean(self, value: Any) -> list[dict[str, Any]]:
        text = super().clean(value)
        try:
            highlights = json.loads(text) if text else []
        except (ValueError, RecursionError) as error:
            raise ValidationError(_("Marked passages: this is no JSON.")) from error
        if not isinstance(highlights, list) or len(highlights) > MAX_HIGHLIGHTS:
            raise ValidationError(_("Marked passages: a list of at most %(most)s.") % {"most": MAX_HIGHLIGHTS})
        for number, highlight in enumerate(highlights, start=1):
            if not is_highlight(highlight, self.num_responses):
                raise ValidationError(_("Marked passage %(number)s cannot be read.") % {"number": number})
        return highlights


def is_highlight(value: Any, num_responses: int) -> bool:
    if not isinstance(value, dict) or value.keys() != {"position", "start", "end", "text", "reason"}:
        return False
    position, start, end = numbers = value["position"], value["start"], value["end"]
    if not all(type(number) is int for number in numbers):
        return False
    text, reason = value["text"], value["reason"]
    return (
        0 <= position < num_responses
        and 0 <= start < end <= MAX_OFFSET
        and is_storable(text, MAX_HIGHLIGHTED)
        and is_storable(reason, MAX_REASON)
        and len(text.encode("utf-16-le")) == 2 * (end - start)
    )


def is_storable(text: Any, most: int) -> bool:
    """Whether it is text that any database holds: no NUL, no half of a character."""
    if not isinstance(text, str) or len(text) > most or "\0" in text:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in text)


class JudgmentForm(forms.Form):
    """What is said of one comparison: the whole first, then each aspect that is asked, and what goes with it."""

    key = forms.UUIDField(widget=forms.HiddenInput)
    seconds = SecondsField()
    total_seconds = SecondsField(most=MAX_TOTAL_SECONDS)
    revises = forms.BooleanField(required=False, widget=forms.HiddenInput)
    rationale = forms.CharField(
        label=_("Why?"),
        required=False,
        max_length=MAX_RATIONALE,
        widget=forms.Textarea(attrs={"rows": 3, "dir": "auto", "data-rationale": True}),
    )
    edit = forms.CharField(
        label=_("A better answer"),
        required=False,
        max_length=MAX_EDIT,
        widget=forms.Textarea(attrs={"rows": 6, "dir": "auto", "data-edit": True}),
    )

    def __init__(
        self, data: Any = None, *, project: Project, num_responses: int, aspects: Sequence[Aspect] = (), **kwargs: Any
    ) -> None:
        super().__init__(data, **kwargs)
        self.kind = kind_of(project, num_responses)
        self.overall = make_question(self, project, num_responses)
        self.aspects = [make_question(self, project, num_responses, aspect) for aspect in aspects]
        if isinstance(self.overall, ListQuestion):
            self.fields["confirm"] = forms.BooleanField(required=False)
        self.fields["highlights"] = HighlightsField(
            num_responses=num_responses, widget=forms.HiddenInput(attrs={"data-highlights": True})
        )
        self.fields["edit_of"] = forms.ChoiceField(
            label=_("It is made from"),
            required=False,
            choices=[("", _("nothing: I write it anew")), *((str(at), LETTERS[at]) for at in range(num_responses))],
        )

    @property
    def questions(self) -> list[Any]:
        return [self.overall, *self.aspects]

    @property
    def is_confirmed(self) -> bool:
        return bool(self.cleaned_data.get("confirm"))

    @property
    def needs_submit(self) -> bool:
        """Whether one press cannot be the whole answer: the aspects are asked too."""
        return bool(self.aspects) and not self.overall.is_per_card

    @property
    def given(self) -> str:
        """What was entered where one field is the answer."""
        return str(self.overall.fields[0].value() or "")

    @property
    def is_none_given(self) -> bool:
        return self.given == NONE

    @property
    def verdicts(self) -> list[tuple[Choice, Verdict]]:
        return list(zip(self.overall.choices[0], PairQuestion.VERDICTS.values(), strict=True))

    @property
    def complaints(self) -> list[str]:
        """All that is wrong, for above the form; what a card says itself is summed up by `clean`."""
        said_by_cards = {field.name for question in self.questions if question.is_per_card for field in question.fields}
        return complaints(self, {"key", *said_by_cards})

    @property
    def has_extras(self) -> bool:
        return any(self[name].value() for name in ("rationale", "edit")) or self["highlights"].value() not in (
            None,
            "",
            "[]",
        )

    def clean(self) -> dict[str, Any]:
        if self.is_confirmed:
            self._clean_confirmed()
        for question in self.questions:
            complaint = question.complaint()
            if complaint and not (self.is_confirmed and question is self.overall):
                about = f"{question.aspect.name}: " if question.aspect else ""
                self.add_error(None, f"{about}{complaint}")
        return self.cleaned_data

    def _clean_confirmed(self) -> None:
        """The order shown is taken because the annotator says so, and only as long as nothing else is said."""
        if self.overall.is_begun:
            self.add_error(None, _("Some responses have a place already. Submit these places, or clear them first."))
        for field in self.overall.fields:
            self.errors.pop(field.name, None)

    def answers(self, order: list[int]) -> dict[str, Answer]:
        """What was entered of the whole and of each aspect, by name, in ids of responses."""
        answers = {question.name: question.answer(order) for question in self.aspects}
        if self.is_confirmed:
            return {OVERALL: Answer([[pk] for pk in order]), **answers}
        return {OVERALL: self.overall.answer(order), **answers}

    def better_answer(self, order: list[int]) -> Edit | None:
        text, position = self.cleaned_data["edit"], self.cleaned_data["edit_of"]
        return Edit(text, order[int(position)] if position else None) if text else None

    def told(self, order: list[int]) -> dict[str, Any]:
        """What goes with the answer, as `annotate.answers.Told` has it."""
        values = self.cleaned_data
        return {
            "rationale": values["rationale"],
            "highlights": [highlight_by_id(highlight, order) for highlight in values["highlights"]],
            "placement": Judgment.Placement.CONFIRMED if self.is_confirmed else Judgment.Placement.PLACED,
            "seconds": values["seconds"],
            "total_seconds": values["total_seconds"],
        }

    def draft(self) -> dict[str, str]:
        """What was entered so far, as it stands and unchecked; the server's own fields and a confirmation left out."""
        names = self.fields.keys() - {"key", "revises", "confirm"}
        entered = {name: str(self.data.get(name, "")).replace("\0", "")[:MAX_DRAFT_FIELD] for name in names}
        return {name: value for name, value in sorted(entered.items()) if value}


def highlight_by_id(highlight: dict[str, Any], order: list[int]) -> dict[str, Any]:
    return {"response": order[highlight["position"]], **{name: highlight[name] for name in HIGHLIGHT_VALUES}}


def highlight_by_position(highlight: dict[str, Any], order: list[int]) -> dict[str, Any]:
    return {"position": order.index(highlight["response"]), **{name: highlight[name] for name in HIGHLIGHT_VALUES}}


HIGHLIGHT_VALUES = ("start", "end", "text", "reason")


def complaints(form: forms.Form, besides: Collection[str] = ()) -> list[str]:
    """The form's errors with the names of their fields."""
    said = [str(error) for error in form.non_field_errors()]
    for name in (name for name in form.fields if name not in besides):
        label = form[name].label
        said += [f"{label}: {error}" if label else str(error) for error in form[name].errors]
    return said


class ReasonForm(forms.Form):
    """Why a comparison is skipped or flagged."""

    @property
    def complaints(self) -> list[str]:
        return complaints(self)

    key = forms.UUIDField(required=False)
    note = forms.CharField(label=_("Note"), required=False, max_length=MAX_NOTE)


class SkipForm(ReasonForm):
    reason = forms.ChoiceField(label=_("Reason"), required=False, choices=Skip.Reason.choices)


class FlagForm(ReasonForm):
    reason = forms.ChoiceField(
        label=_("Reason"), choices=Flag.Reason.choices, error_messages={"required": _("Choose a reason.")}
    )
