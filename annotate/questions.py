"""What the judging page asks of the responses: as a whole, and once for each aspect.

A question adds its fields to a form, reads an answer from them and tells what would have to be entered for an answer
that is stored. Fields name responses only by where they were shown (0 from the left); `order` holds the ids of the
responses shown there. Nothing is ever preselected: the order shown is no answer.
"""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

from django import forms
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from annotate.answers import Answer, ranking_by_rating
from annotate.models import MAX_RESPONSES, OVERALL, Aspect, Judgment, Project

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWX"[:MAX_RESPONSES]
PAIRWISE, LISTWISE, BEST, RATING = "pairwise", "listwise", "best", "rating"
BOTH_BAD, BAD, NONE = "both-bad", "bad", "none"
UNKNOWN = _("There is no such answer.")


def kind_of(project: Project, num_responses: int) -> str:
    """What is asked: a verdict on a pair, an order, the best one, or ratings."""
    if project.kind == Project.Kind.RANKING:
        return PAIRWISE if num_responses == 2 else LISTWISE
    return BEST if project.kind == Project.Kind.BEST else RATING


class Choice(NamedTuple):
    """One of a field's answers, as a page shows it."""

    value: str
    label: Any
    is_given: bool


class Question:
    """Base of the four kinds. `aspect` is none where the responses are judged as a whole."""

    is_per_card = False  # whether each response has a field of its own

    def __init__(self, form: forms.Form, num_responses: int, aspect: Aspect | None = None) -> None:
        self.form = form
        self.num_responses = num_responses
        self.aspect = aspect
        self.prefix = f"{aspect.name}-" if aspect else ""
        form.fields.update({self.prefix + name: field for name, field in self.make_fields().items()})

    @property
    def name(self) -> str:
        return self.aspect.name if self.aspect else OVERALL

    @property
    def letters(self) -> str:
        return LETTERS[: self.num_responses]

    @property
    def fields(self) -> list[forms.BoundField]:
        return [self.form[self.prefix + name] for name in self.make_fields()]

    @property
    def choices(self) -> list[list[Choice]]:
        """For each field what can be chosen; for ratings and places there is a field for each response."""
        return [choices(field) for field in self.fields]

    @property
    def values(self) -> list[Any]:
        return [self.form.cleaned_data.get(field.name) for field in self.fields]

    @property
    def is_begun(self) -> bool:
        return any(self.values)

    @property
    def missing(self) -> str:
        """Letters of the responses whose field has no valid answer."""
        return ", ".join(letter for letter, value in zip(self.letters, self.values, strict=False) if not value)

    def make_fields(self) -> dict[str, forms.ChoiceField]:
        raise NotImplementedError

    def complaint(self) -> Any:
        """What to say above the form about fields that have no valid answer; none where each says enough by itself."""
        return None

    def answer(self, order: list[int]) -> Answer:
        """What was entered, in ids; only for a form that is valid."""
        raise NotImplementedError

    def entered(self, said: Mapping[str, Any], order: list[int]) -> dict[str, str]:
        """The values of the fields that give what a judgment says, by `ranking`, `bad`, `ratings` and so on."""
        raise NotImplementedError

    def _prefixed(self, values: Mapping[str, str]) -> dict[str, str]:
        return {self.prefix + name: value for name, value in values.items()}


class Verdict(NamedTuple):
    label: Any
    key: str  # the one that gives it on the keyboard
    ranking: list[list[int]]
    strength: int | None = None


class PairQuestion(Question):
    """One press of a button judges a pair."""

    VERDICTS: ClassVar[dict[str, Verdict]] = {
        "a-strongly": Verdict(_("A much better"), "1", [[0], [1]], Judgment.Strength.STRONGLY),
        "a-slightly": Verdict(_("A slightly better"), "2", [[0], [1]], Judgment.Strength.SLIGHTLY),
        "tie": Verdict(_("Tie"), "3", [[0, 1]]),
        "b-slightly": Verdict(_("B slightly better"), "4", [[1], [0]], Judgment.Strength.SLIGHTLY),
        "b-strongly": Verdict(_("B much better"), "5", [[1], [0]], Judgment.Strength.STRONGLY),
        BOTH_BAD: Verdict(_("Both bad"), "0", [[0, 1]]),
    }

    def make_fields(self) -> dict[str, forms.ChoiceField]:
        labels = [(value, verdict.label) for value, verdict in self.VERDICTS.items()]
        return {"verdict": choice_field(labels, self.aspect, _("Choose one of the answers below."))}

    def answer(self, order: list[int]) -> Answer:
        return self._answer_by(self.values[0], order)

    def _answer_by(self, value: str, order: list[int]) -> Answer:
        verdict, is_bad = self.VERDICTS[value], value == BOTH_BAD
        ranking = [[order[position] for position in group] for group in verdict.ranking]
        return Answer(ranking, verdict.strength, bad=tuple(order) if is_bad else (), is_all_bad=is_bad)

    def entered(self, said: Mapping[str, Any], order: list[int]) -> dict[str, str]:
        ranking = own_ranking(said["ranking"], order)
        for value in self.VERDICTS:
            answer = self._answer_by(value, order)
            if (answer.ranking, answer.strength, answer.is_all_bad) == (ranking, said["strength"], said["is_all_bad"]):
                return self._prefixed({"verdict": value})
        return {}


class ListQuestion(Question):
    """A place for every response, or the tray of bad ones; equal places are a tie."""

    is_per_card = True

    def make_fields(self) -> dict[str, forms.ChoiceField]:
        labels = [("", _("choose…")), *place_choices(self.num_responses), (BAD, _("bad"))]
        missing = _("Not placed yet.")
        return {
            f"place-{position}": choice_field(labels, self.aspect, missing, _("There is no such place."))
            for position in range(self.num_responses)
        }

    def complaint(self) -> Any:
        return _("Give a place to %(letters)s.") % {"letters": self.missing} if self.missing else None

    def answer(self, order: list[int]) -> Answer:
        """Places 1, 3, 3 mean the first, then the other two tied: only their order counts."""
        bad = tuple(pk for pk, place in zip(order, self.values, strict=True) if place == BAD)
        places = {pk: int(place) for pk, place in zip(order, self.values, strict=True) if place != BAD}
        by_place = sorted(places, key=places.__getitem__)
        ranking = [list(group) for _place, group in groupby(by_place, key=places.__getitem__)]
        return Answer([*ranking, *([list(bad)] if bad else [])], bad=bad, is_all_bad=not places)

    def entered(self, said: Mapping[str, Any], order: list[int]) -> dict[str, str]:
        bad = set(order if said["is_all_bad"] else said["bad"])
        groups = own_ranking(said["ranking"], order)
        places = {pk: str(place) for place, group in enumerate(groups, start=1) for pk in group}
        values = {f"place-{at}": BAD if pk in bad else places.get(pk, "") for at, pk in enumerate(order)}
        return self._prefixed(values)


class BestQuestion(Question):
    """The best response, or none of them."""

    def make_fields(self) -> dict[str, forms.ChoiceField]:
        labels = [*((str(position), letter) for position, letter in enumerate(self.letters)), (NONE, _("None is good"))]
        return {"best": choice_field(labels, self.aspect, _("Choose the best response, or none."))}

    def answer(self, order: list[int]) -> Answer:
        if self.values[0] == NONE:
            return Answer([list(order)], bad=tuple(order), is_all_bad=True)
        best = order[int(self.values[0])]
        return Answer([[best], [pk for pk in order if pk != best]])

    def entered(self, said: Mapping[str, Any], order: list[int]) -> dict[str, str]:
        first = own_ranking(said["ranking"], order)[0]
        if said["is_all_bad"]:
            return self._prefixed({"best": NONE})
        return self._prefixed({"best": str(order.index(first[0]))}) if len(first) == 1 else {}


class RatingQuestion(Question):
    """A rating of every response; the order follows from them."""

    is_per_card = True

    def __init__(self, form: forms.Form, num_responses: int, rating_max: int, aspect: Aspect | None = None) -> None:
        self.rating_max = rating_max
        super().__init__(form, num_responses, aspect)

    def make_fields(self) -> dict[str, forms.ChoiceField]:
        labels = [(str(rating), str(rating)) for rating in range(1, self.rating_max + 1)]
        missing = _("Not rated yet.")
        return {
            f"rating-{position}": choice_field(labels, self.aspect, missing, _("There is no such rating."))
            for position in range(self.num_responses)
        }

    def complaint(self) -> Any:
        return _("Rate %(letters)s.") % {"letters": self.missing} if self.missing else None

    def answer(self, order: list[int]) -> Answer:
        ratings = {pk: int(rating) for pk, rating in zip(order, self.values, strict=True)}
        return Answer(ranking_by_rating(ratings), ratings=ratings)

    def entered(self, said: Mapping[str, Any], order: list[int]) -> dict[str, str]:
        ratings = said["ratings"] or {}
        return self._prefixed({f"rating-{at}": str(ratings.get(str(pk), "")) for at, pk in enumerate(order)})


def make_question(form: forms.Form, project: Project, num_responses: int, aspect: Aspect | None = None) -> Question:
    kind = kind_of(project, num_responses)
    if kind == RATING:
        return RatingQuestion(form, num_responses, project.rating_max, aspect)
    return {PAIRWISE: PairQuestion, LISTWISE: ListQuestion, BEST: BestQuestion}[kind](form, num_responses, aspect)


def choice_field(
    labels: Iterable[tuple[str, Any]], aspect: Aspect | None, missing: Any, unknown: Any = UNKNOWN
) -> forms.ChoiceField:
    return forms.ChoiceField(
        choices=list(labels),
        label=aspect.name if aspect else "",  # with its own words each, the whole needs no name
        error_messages={"required": missing, "invalid_choice": unknown},
    )


def place_choices(num_responses: int) -> list[tuple[str, Any]]:
    names = {
        1: pgettext_lazy("place", "1 (best)"),
        num_responses: _("%(place)s (worst)") % {"place": num_responses},
    }
    return [(str(place), names.get(place, str(place))) for place in range(1, num_responses + 1)]


def choices(field: forms.BoundField) -> list[Choice]:
    given = str(field.value() or "")
    offered: Any = field.field
    return [Choice(value, label, bool(value) and value == given) for value, label in offered.choices]


def own_ranking(ranking: list[list[int]], order: list[int]) -> list[list[int]]:
    """A stored ranking without the better answer that the annotator wrote; ties in the order shown."""
    own = [sorted((pk for pk in group if pk in order), key=order.index) for group in ranking]
    return [group for group in own if group]
