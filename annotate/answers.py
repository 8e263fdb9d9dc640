"""What an annotator can say of a comparison, and what a project refuses to store."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Required, TypedDict
from uuid import UUID

from django.utils.translation import gettext as _

from annotate.errors import BadRanking
from annotate.models import Judgment, Lease, Project


@dataclass(frozen=True)
class Answer:
    """What an annotator says of a comparison, as a whole or of one aspect, in response ids."""

    ranking: list[list[int]]
    strength: int | None = None
    bad: tuple[int, ...] = ()
    is_all_bad: bool = False
    ratings: Mapping[int, int] | None = None


@dataclass(frozen=True)
class Edit:
    """A better answer that the annotator wrote, from one of the responses or from nothing."""

    text: str
    response_id: int | None = None


class Told(TypedDict, total=False):
    """What goes with an answer: why, where, how it came about and how long it took."""

    rationale: str
    highlights: list[dict[str, Any]]
    placement: str
    seconds: float | None
    total_seconds: float | None


class Submission(Told, total=False):
    """An answer on its way in. `lease` spares a query where the caller has it."""

    ranking: Required[list[list[int]]]
    key: Required[UUID]
    source: Required[str]
    strength: int | None
    is_all_bad: bool
    bad: Sequence[int]
    ratings: Mapping[int, int] | None
    aspects: Mapping[str, Answer] | None
    edit: Edit | None
    aspect: str
    lease: Lease | None


def check_answer(answer: Answer, response_ids: Collection[int], project: Project) -> None:
    """Refuse an answer that a project of this kind cannot hold.

    Raises:
        BadRanking: says why.
    """
    check_ranking(answer.ranking, response_ids, answer.strength)
    last_group = set(answer.ranking[-1])
    if answer.bad and set(answer.bad) not in ({*response_ids}, last_group):
        raise BadRanking(_("What is not acceptable must stand together at the end of the ranking."))
    if project.kind == Project.Kind.RATING:
        _check_ratings(answer, response_ids, project.rating_max)
    if project.kind == Project.Kind.BEST and [len(group) for group in answer.ranking] not in (
        [1, len(response_ids) - 1],
        [len(response_ids)],
    ):
        raise BadRanking(_("Choose one response as the best."))


def _check_ratings(answer: Answer, response_ids: Collection[int], rating_max: int) -> None:
    ratings = answer.ratings or {}
    if ratings.keys() != set(response_ids) or not all(1 <= rating <= rating_max for rating in ratings.values()):
        raise BadRanking(_("Rate each response from 1 to %(highest)s.") % {"highest": rating_max})
    if answer.ranking != ranking_by_rating(ratings):
        raise BadRanking(_("The ranking must follow from the ratings."))


def ranking_by_rating(ratings: Mapping[int, int]) -> list[list[int]]:
    """The order that ratings give; equal ratings are ties."""
    by_rating = sorted(ratings, key=lambda pk: (-ratings[pk], pk))
    return [list(group) for _rating, group in groupby(by_rating, key=ratings.__getitem__)]


def check_ranking(ranking: list[list[int]], items: Iterable[int], strength: int | None) -> None:
    """Refuse a ranking that is no partition of `items`, or a strength that nothing is stronger by.

    Raises:
        BadRanking: says which.
    """
    if not all(ranking) or sorted(item for group in ranking for item in group) != sorted(items):
        raise BadRanking("The ranking must hold each response of the comparison exactly once.")
    if strength is not None and (
        strength not in Judgment.Strength.values or [len(group) for group in ranking] != [1, 1]
    ):
        raise BadRanking("Only a pair with a better response has a strength: 1 slightly, 2 strongly.")
