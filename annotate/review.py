"""Adjudication: reviewers give verdicts on comparisons on which annotators differ, the least certain first.

A verdict stands beside the judgments and changes none of them.
"""

from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.utils.translation import gettext as _

from annotate.answers import check_ranking
from annotate.distribution import shown_order
from annotate.models import (
    Annotator,
    Comparison,
    Consensus,
    Judgment,
    Project,
    Verdict,
)
from annotate.pages import order_words

MAX_SHOWN = 30  # judgments of one comparison


@dataclass(frozen=True)
class PastJudgment:
    """What one annotator said, who is called by a number that holds on this page only."""

    name: str
    words: str
    rationale: str


@dataclass(frozen=True)
class ReviewPage:
    """A comparison under review: everything shown in an order drawn for the reviewer."""

    comparison: Comparison
    consensus: Consensus
    order: list[int]
    contents: list[str]
    judgments: list[PastJudgment]
    consensus_words: str
    num_open: int
    others: list[str]

    @property
    def certainty_percent(self) -> int:
        return round(100 * self.consensus.certainty)


def queue(project: Project, aspect: str) -> QuerySet[Consensus]:
    """What is still to be decided, the least certain first."""
    open_ones = Consensus.objects.filter(project=project, aspect=aspect, is_decided=False)
    return open_ones.order_by("certainty", "pk")


def review_page(*, project: Project, reviewer: Annotator, aspect: str, place: int = 0) -> ReviewPage | None:
    """The comparison at that place of the queue; none where the queue is shorter."""
    rows = queue(project, aspect).select_related("comparison__prompt")
    consensus = rows[place : place + 1].first()
    if consensus is None:
        return None
    comparison = consensus.comparison
    contents = dict(comparison.options.values_list("response_id", "response__content"))
    order = shown_order(comparison, reviewer, contents)
    judgments = comparison.judgments.filter(aspect=aspect, repeat=0)[:MAX_SHOWN]
    verdicts = comparison.verdicts.filter(aspect=aspect).exclude(reviewer=reviewer)
    return ReviewPage(
        comparison=comparison,
        consensus=consensus,
        order=order,
        contents=[contents[pk] for pk in order],
        judgments=[_past(judgment, number, order) for number, judgment in enumerate(judgments, start=1)],
        consensus_words=order_words(consensus.ranking, order),
        num_open=rows[: place + 100].count(),
        others=[order_words(verdict.ranking, order) for verdict in verdicts],
    )


@transaction.atomic
def give_verdict(
    *, comparison: Comparison, reviewer: Annotator, ranking: list[list[int]], aspect: str, note: str = ""
) -> Verdict:
    """Keep a reviewer's verdict; another one by the same reviewer takes its place.

    Raises:
        BadRanking: the ranking is no partition of the comparison's responses.
    """
    check_ranking(ranking, comparison.options.values_list("response_id", flat=True), None)
    Consensus.objects.filter(comparison=comparison, aspect=aspect).update(is_decided=True)
    values: dict[str, Any] = {"project_id": comparison.project_id, "ranking": ranking, "note": note}
    return Verdict.objects.update_or_create(comparison=comparison, aspect=aspect, reviewer=reviewer, defaults=values)[0]


def _past(judgment: Judgment, number: int, order: list[int]) -> PastJudgment:
    words = order_words(judgment.ranking, order, judgment.bad)
    if judgment.strength:
        words = f"{words} ({judgment.get_strength_display()})"
    return PastJudgment(_("annotator %(number)s") % {"number": number}, words, judgment.rationale)
