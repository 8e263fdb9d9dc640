"""Reads about comparisons with a known answer."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from django.core.paginator import Page, Paginator

from annotate.models import OVERALL, Comparison, Consensus, Gold, Judgment, Project, Response
from annotate.stats.gold import gold_score

GOLD_AT_ONCE = 50


@dataclass(frozen=True)
class GoldRow:
    """A known answer, how often it was asked, and how far the answers were right (0 to 100)."""

    gold: Gold
    num_judged: int
    percent_right: float | None


@dataclass(frozen=True)
class GoldPage:
    rows: list[GoldRow]
    page: "Page[Any]"
    num_qualification: int


def gold_page(project: Project, number: str | None) -> GoldPage:
    """Known answers, the newest first, with what annotators made of them."""
    golds = Gold.objects.filter(project=project).select_related("comparison__prompt").order_by("-pk")
    page = Paginator(golds, GOLD_AT_ONCE).get_page(number)
    scores: dict[int, list[float]] = defaultdict(list)
    by_comparison = {gold.comparison_id: gold for gold in page.object_list}
    judged = Judgment.objects.filter(comparison__in=by_comparison, comparison__is_gold=True, aspect=OVERALL)
    for comparison_id, ranking in judged.values_list("comparison", "ranking").iterator():
        scores[comparison_id].append(gold_score(ranking, by_comparison[comparison_id].ranking))
    return GoldPage(
        rows=[_row(gold, scores[comparison_id]) for comparison_id, gold in by_comparison.items()],
        page=page,
        num_qualification=Gold.objects.filter(project=project, use=Gold.Use.QUALIFICATION).count(),
    )


def responses_of(comparison: Comparison) -> list[Response]:
    """In the order of the source."""
    return [option.response for option in comparison.options.select_related("response")]


def known_order(gold: Gold) -> list[tuple[int, Response]]:
    """Responses with their places, best first."""
    responses = {response.pk: response for response in responses_of(gold.comparison)}
    return [(place, responses[pk]) for place, group in enumerate(gold.ranking, start=1) for pk in group]


def agreed_ranking(comparison: Comparison) -> list[list[int]] | None:
    """What annotators agreed on, without the better answers that they wrote; none where there is no consensus."""
    consensus = Consensus.objects.filter(comparison=comparison, aspect=OVERALL).first()
    if consensus is None:
        return None
    own = set(comparison.options.values_list("response_id", flat=True))
    groups = [[pk for pk in group if pk in own] for group in consensus.ranking]
    return [group for group in groups if group]


def _row(gold: Gold, scores: list[float]) -> GoldRow:
    return GoldRow(gold, len(scores), 100 * sum(scores) / len(scores) if scores else None)
