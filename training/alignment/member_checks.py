"""Members that are broken, and what a unit of each member's score is worth, both from judged prompts.

A broken member would take part in every combination that is not learned, and its share of the mean is as large as any
other's. So it is told before anything is combined, and left out.
"""

import numpy as np
from scipy.special import stdtrit

from training.alignment.calibration import fit_temperature
from training.alignment.ensemble import NEGLIGIBLE, Floats, JudgedScores, OrderedPairs

CONSTANT, FLIPPED, MISSING = "constant", "flipped", "missing"
MOST_MISSING = 0.5  # of the responses that were ranked
CONFIDENCE = 0.95


def problems(judged: JudgedScores) -> list[str | None]:
    """What is wrong with each of the M members; nothing where nothing is.

    - missing: it has no score for more than half of the responses that were ranked.
    - constant: it gives all responses of a prompt the same score, whatever it does between prompts.
    - flipped: the worse a response, the higher it scores. Of the judgments' likelihood under Bradley-Terry, as a
      function of the slope on the member's margin, the derivative at a slope of 0 is negative, so the likeliest slope
      is; and it is so beyond chance, at 95 %, with prompts as what is independent. Seven prompts are the fewest of
      which that can be said.

    A member that knows nothing is called flipped once in forty times, and is then no loss.
    """
    pairs = judged.ordered_pairs()
    prompts = judged.prompts[pairs.rankings]
    return [_problem(judged, member, pairs, prompts) for member in range(judged.num_members)]


def temperatures(judged: JudgedScores) -> Floats:
    """(M,) what divides each member's scores to make differences log-odds, in the scores' unit.

    It is that of the highest likelihood, over the pairs of each ranking, which share the ranking's weight; see
    `calibration.fit_temperature`. A member that tells no response from another has 1, as any would do.
    """
    pairs = judged.ordered_pairs()
    return np.array([_temperature(margins, pairs.weights) for margins in pairs.margins.T])


def _problem(judged: JudgedScores, member: int, pairs: OrderedPairs, prompts: np.ndarray) -> str | None:
    scores = judged.scores[..., member][judged.groups >= 0]
    if np.isnan(scores).mean() > MOST_MISSING if len(scores) else False:
        return MISSING
    margins = pairs.margins[:, member]
    known = np.isfinite(margins)
    if not known.any():
        return None
    size = np.nanmax(np.abs(scores))
    if np.abs(margins[known]).max() <= NEGLIGIBLE * size:
        return CONSTANT
    return FLIPPED if _falls(pairs.weights[known] * margins[known], prompts[known]) else None


def _falls(leads: Floats, prompts: np.ndarray) -> bool:
    """Whether leads of the better response are below 0 beyond chance, those on one prompt counting as one."""
    _, places = np.unique(prompts, return_inverse=True)
    sums = np.bincount(places, leads)
    if len(sums) < 2 or not sums.any():
        return False
    statistic = sums.sum() / np.sqrt((sums**2).sum())
    return bool(statistic < stdtrit(len(sums) - 1, (1 - CONFIDENCE) / 2))


def _temperature(margins: Floats, weights: Floats) -> float:
    told = np.isfinite(margins) & (margins != 0) & (weights > 0)
    return fit_temperature(margins[told], weights[told]) if told.any() else 1.0
