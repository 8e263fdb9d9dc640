"""When a project will be done, from how much was judged on the last days."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

MIN_DAYS = 3


@dataclass(frozen=True)
class Forecast:
    """Days from now until nothing remains: as expected, at the earliest and at the latest (None: no end in sight)."""

    rate: float
    days: float
    earliest: float
    latest: float | None


def forecast(daily: ArrayLike, num_left: int) -> Forecast | None:
    """The days that `num_left` judgments take at the mean rate of the last days.

    Args:
        daily: (D,) judgments on each of the last whole days, 0 for days without any.
        num_left: judgments that are still wanted.

    Returns:
        None for fewer than MIN_DAYS days, where nothing was judged, or where nothing is left. Earliest and latest are
        those of the 95 % interval (Student's t) of the mean rate, as if days were independent.
    """
    counts = np.asarray(daily, dtype=float)
    if len(counts) < MIN_DAYS or not counts.any() or num_left <= 0:
        return None
    rate = float(counts.mean())
    margin = float(stdtrit(len(counts) - 1, 0.975) * counts.std(ddof=1) / np.sqrt(len(counts)))
    latest = num_left / (rate - margin) if rate > margin else None
    return Forecast(rate, num_left / rate, num_left / (rate + margin), latest)
