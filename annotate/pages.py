"""What the judging pages say: forms filled in, cards, answers in words, where an annotator stands."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from django.forms import BoundField, model_to_dict
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from annotate.forms import JudgmentForm, highlight_by_position
from annotate.models import Flag, Gold, Judgment, Project, Skip, Standing
from annotate.queries import ComparisonPage
from annotate.questions import BEST, LETTERS, LISTWISE, PAIRWISE, Choice, PairQuestion, Question, own_ranking
from annotate.stats.gold import gold_score

SKIP_REASONS = [(value, label) for value, label in Skip.Reason.choices if value]
FLAG_REASONS = Flag.Reason.choices


class CardField(NamedTuple):
    """What is asked of one response: a place or a rating."""

    question: Question
    field: BoundField
    choices: list[Choice]


class Card(NamedTuple):
    """A response where it is shown, with what is asked of it; `best` chooses it as the best."""

    letter: str
    position: int
    content: str
    fields: list[CardField]
    best: Choice | None


def judgment_form(page: ComparisonPage) -> JudgmentForm:
    """The page's form, filled in with what its annotator has answered or entered before."""
    initial = {"key": page.key, **_judged(page), **page.draft}
    form = JudgmentForm(project=page.project, num_responses=page.num_responses, aspects=page.aspects, initial=initial)
    for question in form.questions:
        if said := page.by_aspect.get(question.name):
            form.initial = {**question.entered(model_to_dict(said), page.order), **form.initial}
    return form


def _judged(page: ComparisonPage) -> dict[str, Any]:
    judgment = page.judgment
    if judgment is None:
        return {}
    highlights = [highlight_by_position(each, page.order) for each in judgment.highlights if each.get("response")]
    edited = judgment.edited_response
    edit_of = str(page.order.index(edited.edited_from_id)) if edited and edited.edited_from_id in page.order else ""
    return {
        "revises": True,
        "seconds": judgment.seconds,
        "rationale": judgment.rationale,
        "highlights": json.dumps(highlights) if highlights else "",
        "edit": edited.content if edited else "",
        "edit_of": edit_of,
    }


def cards(page: ComparisonPage, form: JudgmentForm) -> list[Card]:
    per_card = [(question, question.fields, question.choices) for question in form.questions if question.is_per_card]
    best = form.overall.choices[0] if form.kind == BEST else None
    return [
        Card(
            letter=LETTERS[position],
            position=position,
            content=response.content,
            fields=[CardField(question, fields[position], options[position]) for question, fields, options in per_card],
            best=best[position] if best else None,
        )
        for position, response in enumerate(page.responses)
    ]


def heading(kind: str, project: Project, num_responses: int) -> str:
    if kind == PAIRWISE:
        return _("Which response is better?")
    if kind == BEST:
        return _("Which response is the best?")
    if kind == LISTWISE:
        return _("Put the %(number)s responses in order") % {"number": num_responses}
    return _("Rate each response from 1 to %(highest)s") % {"highest": project.rating_max}


# Answers in words


class PastAnswer(NamedTuple):
    """What a judgment said, and until when."""

    words: str
    until: datetime


def history(page: ComparisonPage) -> list[PastAnswer]:
    kept = [(revision.values, revision.replaced_at) for revision in page.revisions]
    return [PastAnswer(answer_words(values, page.order), until) for values, until in kept]


def judgment_words(judgment: Judgment) -> str:
    return answer_words(
        model_to_dict(judgment), judgment.shown_order or [pk for group in judgment.ranking for pk in group]
    )


def title(judgment: Judgment) -> str:
    """The beginning of what was asked; half a character, which JSON may hold, cannot be sent."""
    return str(judgment.comparison.prompt).encode("utf-8", "replace").decode("utf-8")


def answer_words(said: Mapping[str, Any], order: list[int]) -> str:
    """What was answered, by the letters under which the responses were shown: "B, then A = C, D bad"."""
    if said["ratings"]:
        rated = [f"{letter} {said['ratings'].get(str(pk), '?')}" for letter, pk in zip(LETTERS, order, strict=False)]
        return ", ".join(rated)
    if said["is_all_bad"]:
        return _("None is acceptable")
    if said["strength"] and len(order) == 2:
        return _pair_words(said, order)
    return order_words(said["ranking"], order, said["bad"])


def _pair_words(said: Mapping[str, Any], order: list[int]) -> str:
    ranking = [[order.index(pk) for pk in group] for group in own_ranking(said["ranking"], order)]
    verdicts = PairQuestion.VERDICTS.values()
    labels = [each.label for each in verdicts if (each.ranking, each.strength) == (ranking, said["strength"])]
    return str(labels[0]) if labels else order_words(said["ranking"], order)


def order_words(ranking: list[list[int]], order: list[int], bad: list[int] | None = None) -> str:
    """Letters, best first: ties stand together."""
    letters = dict(zip(order, LETTERS, strict=False))
    groups = []
    for group in own_ranking(ranking, order):
        words = " = ".join(letters[pk] for pk in group)
        is_bad = set(group) <= set(bad or ())
        groups.append(_("%(letters)s not acceptable") % {"letters": words} if is_bad else words)
    return " > ".join(groups)


# Known answers


class Feedback(NamedTuple):
    """What an annotator hears of their answer to a comparison with a known one."""

    is_right: bool
    given: str
    known: str
    explanation: str


def feedback_on(judgment: Judgment) -> Feedback | None:
    """None where the answer is not known, or where the project keeps it to itself."""
    comparison = judgment.comparison
    if not comparison.is_gold or not comparison.project.gold_feedback:
        return None
    gold: Gold = comparison.gold
    order = judgment.shown_order or [pk for group in gold.ranking for pk in group]
    return Feedback(
        is_right=gold_score(judgment.ranking, gold.ranking) == 1,
        given=judgment_words(judgment),
        known=order_words(gold.ranking, order),
        explanation=gold.explanation,
    )


class Example(NamedTuple):
    """A worked example: the known answer with each response at its place."""

    messages: list[dict[str, str]]
    cards: list[tuple[str, int, str]]  # letter, place, text; in the order of the source
    known: str
    explanation: str


def example(gold: Gold, texts: dict[int, str]) -> Example:
    places = {pk: place for place, group in enumerate(gold.ranking, start=1) for pk in group}
    order = sorted(texts)
    return Example(
        messages=gold.comparison.prompt.messages,
        cards=[(LETTERS[at], places.get(pk, 0), texts[pk]) for at, pk in enumerate(order)],
        known=order_words(gold.ranking, order),
        explanation=gold.explanation,
    )


# Where an annotator stands


def qualification_words(project: Project, standing: Standing) -> str:
    """What stands between an annotator and the queue; empty where nothing does."""
    if not project.qualification_size or standing.qualified_at:
        return ""
    if standing.failed_at:
        return _(
            "Thank you for trying. Your answers differed from the known ones more often than this project allows, so "
            "its queue stays closed to you for now. That says nothing about your work elsewhere; ask a lead of the "
            "project if you would like to try again."
        )
    words = ngettext(
        "The first comparison has a known answer. After it the queue opens.",
        "The first %(number)s comparisons have a known answer. After them the queue opens. You have judged %(done)s.",
        project.qualification_size,
    )
    return words % {"number": project.qualification_size, "done": min(standing.num_gold, project.qualification_size)}
