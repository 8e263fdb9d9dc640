"""When to stop optimising a reward: checks of a policy on held-out prompts, and the alarm they raise.

A policy that is optimised against a reward learns its errors too: from some point on that reward (the proxy) goes on
rising while what it stands for falls. A held-out reward, which has learned from other votes and is not optimised, shows
that point. `Guard` sees one `Check` after another and raises an `Alarm` when, for `patience` checks in a row,

- "held_out_falls": the proxy is above where it was at the best check by held-out reward, and the held-out reward is
  below that best one by more than noise explains (`lead`); or
- "spread": the held-out rewards disagree about the policy's responses more than about 99 % of the training responses.

The best check is one where they do not: what they guess about is no reason to go back to it. Two checks are compared by
the prompts that have a score at both, for the mean of one that lost the scores of hard prompts is higher for nothing.

What noise explains: the same prompts are answered at every check, so two checks are compared by their differences at
each prompt. But the best check is the highest of all so far, and the highest of many noisy figures is too high: on a
plateau whatever comes after it looks like a fall. Each of the m comparisons that the best one has won therefore gets an
m-th of the error (Bonferroni), which bounds, at each check, the chance of a fall that is none by 2.5 %, and that of
`patience` such checks in a row by less: of simulated runs of 40 checks on a plateau, one in 200 raised an alarm; of
runs that only got better, none. Late is cheaper than early: the best checkpoint is kept, so a late alarm costs
computing time, a false one costs what the policy would still have gained.

Everything here follows from the checks alone, in their order: a run that is resumed sees those of its file again and
decides as if it had not been interrupted. Standard library, numpy and scipy, so that pages may use it.

Source: L. Gao, J. Schulman and J. Hilton, "Scaling laws for reward model overoptimization", 2022.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

HELD_OUT_FALLS, SPREAD = "held_out_falls", "spread"
CONFIDENCE = 0.95

Interval = tuple[float, float]
ByPrompt = tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a policy is like after some step, on the same prompts at every check, each answered several times.

    Means are over prompts; each prompt's is over its responses. Intervals are of 95 %, by Student's t over prompts.
    """

    step: int
    reward: float
    """The proxy, which is optimised."""
    reward_interval: Interval | None = None
    """Around `reward`, as wide as that of the difference from the first check; none at the first one."""
    held_out: float
    """The held-out reward, which is not."""
    held_out_interval: Interval | None = None
    """As `reward_interval`."""
    spread: float | None = None
    """The mean deviation between the held-out rewards over that on training responses; none where there is one only."""
    kl: float
    """The KL of policy from reference policy, in nats a response."""
    kl_interval: Interval | None = None
    length: float
    """Tokens a response, the end included."""
    entropy: float
    """Of the next token, in nats."""
    repetition: float
    """See `text_measures`."""
    diversity: float
    """See `text_measures`."""
    ended: float
    """The share of responses that ended by themselves."""
    missing: float = 0.0
    """The share of responses that one of the two rewards could not score."""
    reward_by_prompt: ByPrompt = ()
    """(B,) None where no response could be scored."""
    held_out_by_prompt: ByPrompt = ()
    time: float = field(default=0.0, compare=False)
    """When it was done, in seconds since 1970."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: one line of checks.jsonl."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        names = {item.name for item in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in told.items() if name in names
        }
        return cls(**values)


@dataclass(frozen=True)
class Alarm:
    """That a policy is over-optimised: what showed it, and which checkpoint to go back to."""

    step: int
    reason: str
    """HELD_OUT_FALLS or SPREAD."""
    best_step: int
    words: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Guard:
    """Watches checks in the order of their steps.

    Args:
        patience: checks in a row that must show the same.
        mode: "stop" and "alarm" raise alarms, "off" does not.
        spread_limit: what `Check.spread` must not exceed: the 99 % quantile of a single training response's deviation,
            in the same unit. A policy that begins with a larger spread than the training responses have, as one does
            that writes unlike them, has its limit raised as much.
    """

    def __init__(self, patience: int, mode: str, spread_limit: float = math.inf) -> None:
        self.patience, self.mode, self.spread_limit = patience, mode, spread_limit
        self.first: Check | None = None
        self.alarm: Alarm | None = None
        """The first one that was raised."""
        self._best: Check | None = None
        self._num_seen = self._num_falling = self._num_spread = 0

    @property
    def best(self) -> Check:
        """The check with the highest held-out reward among those within the spread's limit, the earliest of several.

        The first one where there is none.
        """
        if self._best is None:
            raise LookupError("there has been no check")
        return self._best

    def see(self, check: Check) -> Alarm | None:
        """Take in the next check; the alarm, where this one raises the first.

        Raises:
            ValueError: its held-out reward is no number.
        """
        if not math.isfinite(check.held_out):
            raise ValueError(f"held_out: {check.held_out} at step {check.step}")
        self.first = self.first or check
        if self._best is None or (
            not self._is_spread(check) and _rise(self._best.held_out_by_prompt, check.held_out_by_prompt) > 0
        ):
            self._best = check
        self._num_falling = self._num_falling + 1 if self._is_falling(check) else 0
        self._num_spread = self._num_spread + 1 if self._is_spread(check) else 0
        self._num_seen += 1
        raised = self._alarm(check) if self.alarm is None and self.mode != "off" else None
        self.alarm = self.alarm or raised
        return raised

    def limit(self) -> float:
        """What the spread must not exceed in this run."""
        begun = self.first.spread if self.first is not None else None
        return self.spread_limit * max(1.0, begun or 1.0)

    def _is_falling(self, check: Check) -> bool:
        best = self.best
        if check is best or not _rise(best.reward_by_prompt, check.reward_by_prompt) > 0:
            return False
        return lead(best.held_out_by_prompt, check.held_out_by_prompt, self._num_seen) > 0

    def _is_spread(self, check: Check) -> bool:
        return check.spread is not None and check.spread > self.limit()

    def _alarm(self, check: Check) -> Alarm | None:
        best, step = self.best, check.step
        if self._num_falling >= self.patience:
            words = (
                f"The reward rose while the held-out reward fell: from {best.held_out:.3g} at step {best.step} to "
                f"{check.held_out:.3g} at step {step}, beyond what chance explains at {_checks(self.patience)}."
            )
            return Alarm(step, HELD_OUT_FALLS, best.step, words)
        if self._num_spread >= self.patience:
            words = (
                f"The held-out rewards disagree about the policy's responses {check.spread:.2g} times as much as about "
                f"the training responses, and more than {self.limit():.2g} times at {_checks(self.patience)}."
            )
            return Alarm(step, SPREAD, best.step, words)
        return None


def lead(best: Sequence[float | None], now: Sequence[float | None], num_compared: int = 1) -> float:
    """By how much the best check is surely above another one: the low end of the interval of their mean difference.

    Above 0 the second one is lower beyond what noise explains. The interval is by Student's t over prompts, one-sided,
    of 97.5 % where one check was compared; where the first is the highest of m that were compared with the second, its
    error is an m-th of that.

    Args:
        best: (B,) held-out reward of each prompt, None where there is none.
        now: (B,) of the same prompts.
        num_compared: how many checks the best one is the highest of.

    Returns:
        Minus infinity where fewer than two prompts have both.

    Raises:
        ValueError: they are not of as many prompts.
    """
    mean, half = mean_interval(differences(now, best), 1 - (1 - CONFIDENCE) / max(1, num_compared))
    return -math.inf if half is None else mean - half


def differences(before: Sequence[float | None], after: Sequence[float | None]) -> list[float]:
    """By how much each prompt that has both is higher after than before.

    Raises:
        ValueError: they are not of as many prompts.
    """
    return [new - old for old, new in zip(before, after, strict=True) if old is not None and new is not None]


def _rise(before: Sequence[float | None], after: Sequence[float | None]) -> float:
    """The mean difference; nan where no prompt has both."""
    return mean_interval(differences(before, after))[0]


def mean_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float | None]:
    """The mean of (N,) independent values, nan of none, and half the width of its interval by Student's t.

    There is no interval of fewer than two.
    """
    given = np.asarray(values, dtype=np.float64)
    if len(given) < 2:
        return (float(given[0]) if len(given) else math.nan), None
    quantile = float(stdtrit(len(given) - 1, 0.5 + confidence / 2))
    return float(given.mean()), quantile * float(given.std(ddof=1)) / math.sqrt(len(given))


def fit_best_of_n(distance: ArrayLike, gold: ArrayLike) -> tuple[float, float]:
    """(alpha, beta) of gold = d (alpha - beta d), by least squares: Gao et al. 2022, equation 1, for best of n.

    It is highest at d = alpha / (2 beta).

    Args:
        distance: (N,) d, the square root of the KL from the reference policy, in nats.
        gold: (N,) true reward, less that of the reference policy.

    Raises:
        ValueError: they are not of the same shape or not finite, a distance is negative, or they are too few to tell.
    """
    return _fit(distance, gold, lambda d: d * d)


def fit_rl(distance: ArrayLike, gold: ArrayLike) -> tuple[float, float]:
    """(alpha, beta) of gold = d (alpha - beta log d), by least squares: Gao et al. 2022, equation 1, for RL.

    It is highest at d = exp(alpha / beta - 1). Arguments and errors are as of `fit_best_of_n`.
    """
    return _fit(distance, gold, lambda d: np.where(d > 0, d * np.log(np.where(d > 0, d, 1.0)), 0.0))


def _fit(distance: ArrayLike, gold: ArrayLike, bend: Any) -> tuple[float, float]:
    d: NDArray[np.float64] = np.asarray(distance, dtype=np.float64)
    reward: NDArray[np.float64] = np.asarray(gold, dtype=np.float64)
    if d.ndim != 1 or d.shape != reward.shape:
        raise ValueError(f"distance {d.shape} and gold {reward.shape} must be of one shape (N,)")
    if not (np.isfinite(d).all() and np.isfinite(reward).all()):
        raise ValueError("distance and gold: one is no number")
    if np.any(d < 0):
        raise ValueError("distance: one is negative")
    columns = np.stack([d, -bend(d)], axis=1)
    found, _, rank, _ = np.linalg.lstsq(columns, reward, rcond=None)
    if rank < 2:
        raise ValueError(f"distance: {len(d)} points tell no curve; two different ones above 0 are needed")
    return float(found[0]), float(found[1])


def _checks(number: int) -> str:
    return "a check" if number == 1 else f"{number} checks in a row"
