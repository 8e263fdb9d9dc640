"""How a simulated annotator ranks responses whose quality is known. Standard library only.

It sees each quality with Gaussian noise of its own, puts what it cannot tell apart into one group, and says how much
better the winner of a pair is. With noise 0 it is the oracle; with noise 0.2, two responses that differ by 0.2 come
out the wrong way round in about a quarter of its judgments.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

TIE = 0.03  # a difference that nobody notices
STRONGLY = 0.25
BAD = 0.15  # below it a response is not acceptable


@dataclass(frozen=True)
class Verdict:
    """Places of responses, best first, ties as groups; strength (1 slightly, 2 strongly) for a decided pair only."""

    ranking: list[list[int]]
    strength: int | None
    is_all_bad: bool


def judge(qualities: Sequence[float], noise: float, rng: random.Random) -> Verdict:
    """Rank K responses by their qualities (K floats, 0 to 1), each seen with noise of standard deviation `noise`."""
    seen = [quality + rng.gauss(0, noise) for quality in qualities]
    ranking: list[list[int]] = []
    for place in sorted(range(len(seen)), key=lambda place: -seen[place]):
        if ranking and seen[ranking[-1][0]] - seen[place] < TIE:
            ranking[-1].append(place)
        else:
            ranking.append([place])
    is_decided_pair = [len(group) for group in ranking] == [1, 1]
    return Verdict(
        ranking=[sorted(group) for group in ranking],
        strength=_strength(max(seen) - min(seen)) if is_decided_pair else None,
        is_all_bad=max(seen) < BAD,
    )


def _strength(difference: float) -> int:
    return 2 if difference >= STRONGLY else 1
