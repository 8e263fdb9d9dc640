"""The temperature at which differences of rewards are log-odds: P(one before other) = sigmoid(margin / temperature).

It is one number, fitted after training on held-out pairs, and changes no ranking. What a reward model was trained on
says nothing about how sure it should be, so the temperature must come from other prompts.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit

HOTTEST = 100.0  # times the margins' size: every probability is then within a quarter of a percent of one half


def fit_temperature(margins: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The temperature of the highest likelihood, in the margins' unit.

    The mean of log sigmoid(margin / T) is concave in 1 / T, so there is one optimum, but it may lie at an end:

    - Where every pair is right, the likelihood rises as T falls to nothing. T is then such that a margin of typical
      size has a chance of (n + 1) / (n + 2), Laplace's rule of succession for n out of n.
    - Where rewards are no better than chance, it rises with T without end. T is then `HOTTEST` times the typical size,
      which is also the highest that is ever given.

    The typical size is the root of the mean squared margin. Margins of nothing tell nothing and are left out.

    Args:
        margins: (N,) reward of the better response less that of the worse, each pair once.
        weights: (N,) how often each pair counts; once by default.

    Raises:
        ValueError: shapes differ, a number is not finite or a weight negative, or no margin differs from nothing.

    Source: C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On calibration of modern neural networks", 2017.
    """
    leads = np.asarray(margins, dtype=np.float64)
    counts = np.ones(leads.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if leads.ndim != 1 or leads.shape != counts.shape:
        raise ValueError(f"margins and weights must be (N,), not {leads.shape} and {counts.shape}")
    if not (np.isfinite(leads).all() and np.isfinite(counts).all() and (counts >= 0).all()):
        raise ValueError("margins and weights must be finite, and no weight negative")
    told = (leads != 0) & (counts > 0)
    leads, counts = leads[told], counts[told]
    if not len(leads):
        raise ValueError("no margin differs from nothing, so no temperature is more likely than another")
    size = np.sqrt(np.average(leads**2, weights=counts))
    if (leads > 0).all():
        return float(size / np.log1p(counts.sum()))
    leads = leads / size

    def slope(sharpness: float) -> float:
        """Of the log-likelihood, by 1 / T; it falls throughout."""
        return float(counts @ (leads * expit(-sharpness * leads)))

    if slope(1 / HOTTEST) <= 0:
        return float(HOTTEST * size)
    sharpest = 1.0
    while slope(sharpest) > 0:
        sharpest *= 2
    return float(size / brentq(slope, 1 / HOTTEST, sharpest, xtol=1e-12))
