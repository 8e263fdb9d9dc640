"""How well a judgment agrees with a known answer. Standard library only, so that judging costs no more for it."""

from collections.abc import Sequence
from itertools import combinations


def gold_score(ranking: Sequence[Sequence[int]], gold: Sequence[Sequence[int]]) -> float:
    """The share of pairs that the known answer decides and that the ranking orders the same way.

    Args:
        ranking: items best first, ties as groups; it may hold items that `gold` does not.
        gold: the known answer, in the same form. Every item of it stands in `ranking`.

    Returns:
        0 to 1; a tie where the known answer decides counts as wrong. 1 where the known answer decides nothing.
    """
    place = {item: number for number, group in enumerate(ranking) for item in group}
    better_and_worse = [
        (better, worse) for upper, lower in combinations(gold, 2) for better in upper for worse in lower
    ]
    right = sum(place[better] < place[worse] for better, worse in better_and_worse)
    return right / len(better_and_worse) if better_and_worse else 1.0
