"""What judgments depend on besides the responses: where they stand, how long they are, how long it took."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FIRST, SECOND, TIE = 0, 1, -1
CHARACTERS_A_SECOND = 60.0  # four times a careful reader's speed: nobody can have read faster
MIN_JUDGMENTS = 20
MAX_SHARE_TOO_FAST = 0.2
SIGNIFICANT = 0.01


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval (Wilson) and the two-sided p-value against one half."""

    value: float
    low: float
    high: float
    p_value: float
    num: int


@dataclass(frozen=True)
class Suspicion:
    """Why an annotator's work should be looked at: `reason` is too_fast, same_side, always_tied or one_pattern."""

    annotator: int
    reason: str
    value: float
    num: int


def share(num_yes: int, num: int) -> Share | None:
    """A share of `num` trials; None for none.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if num == 0:
        return None
    from scipy.stats import binomtest  # takes most of a second, which every command would wait for

    test = binomtest(num_yes, num)
    interval = test.proportion_ci(method="wilson")
    return Share(num_yes / num, float(interval.low), float(interval.high), float(test.pvalue), num)


def position_bias(won_at: Ints) -> Share | None:
    """How often the response shown first won.

    Args:
        won_at: (J,) FIRST, SECOND or TIE for each judgment of a pair; ties are left out, and any other number.

    Returns:
        One half without bias, because the order shown is drawn by chance; None where nothing was decided.
    """
    return share(int((won_at == FIRST).sum()), int(np.isin(won_at, (FIRST, SECOND)).sum()))


def length_bias(first_length: Ints, second_length: Ints, won_at: Ints) -> Share | None:
    """How often the longer response won.

    Args:
        first_length, second_length: (J,) characters of the response shown first and second.
        won_at: (J,) as for `position_bias`. Ties, and pairs of equal length, are left out.
    """
    counts = (won_at != TIE) & (first_length != second_length)
    longer = np.where(first_length > second_length, FIRST, SECOND)
    return share(int((longer == won_at)[counts].sum()), int(counts.sum()))


def mirrored_consistency(straight: Ints, mirrored: Ints) -> Share | None:
    """How often the same response won for an annotator who saw the pair one way and one who saw its mirror image.

    Args:
        straight, mirrored: (N,) who won, by place in the source (0 or 1; TIE is left out), for the two of them.
    """
    counts = (straight != TIE) & (mirrored != TIE)
    return share(int((straight == mirrored)[counts].sum()), int(counts.sum()))


def suspicious(annotator: Ints, won_at: Ints, seconds: Floats, characters: Ints) -> list[Suspicion]:
    """Annotators whose work should be looked at, each reason a row, by annotator.

    Args:
        annotator: (J,) who judged; the judgments of one stand in the order in which they were made.
        won_at: (J,) FIRST, SECOND or TIE; any other number for what is no pair.
        seconds: (J,) active time on task, NaN where it is not known.
        characters: (J,) of all responses shown.

    Nobody is named for fewer than MIN_JUDGMENTS. The test of sides is corrected for the number of annotators
    (Bonferroni), so that in an honest crowd of any size hardly anybody is named by chance.
    """
    found: list[Suspicion] = []
    names = np.unique(annotator)
    for name in names:
        mine = annotator == name
        if mine.sum() >= MIN_JUDGMENTS:
            found += _too_fast(int(name), seconds[mine], characters[mine])
            found += _one_sided(int(name), won_at[mine], len(names))
    return found


def _too_fast(annotator: int, seconds: Floats, characters: Ints) -> list[Suspicion]:
    timed = ~np.isnan(seconds)
    if timed.sum() < MIN_JUDGMENTS:
        return []
    floor = np.maximum(characters[timed] / CHARACTERS_A_SECOND, 0.7)  # nobody decides in less
    value = float((seconds[timed] < floor).mean())
    return [Suspicion(annotator, "too_fast", value, int(timed.sum()))] if value > MAX_SHARE_TOO_FAST else []


def _one_sided(annotator: int, won_at: Ints, num_annotators: int) -> list[Suspicion]:
    pairs = won_at[(won_at == FIRST) | (won_at == SECOND) | (won_at == TIE)]
    decided = pairs[pairs != TIE]
    if len(pairs) >= MIN_JUDGMENTS and len(decided) < 0.05 * len(pairs):
        return [Suspicion(annotator, "always_tied", 1 - len(decided) / len(pairs), len(pairs))]
    left = position_bias(decided)
    if left is None or left.num < MIN_JUDGMENTS:
        return []
    if left.p_value * num_annotators < SIGNIFICANT:
        return [Suspicion(annotator, "same_side", left.value, left.num)]
    changes = share(int((decided[1:] != decided[:-1]).sum()), left.num - 1)
    if changes and changes.value > 0.5 and changes.p_value * num_annotators < SIGNIFICANT:
        return [Suspicion(annotator, "one_pattern", changes.value, left.num)]
    return []
