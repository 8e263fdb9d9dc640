"""What the best of n samples is worth, for people: curve.json of rejection sampling, and its random twin.

A trainer writes the file (`training.alignment.rejection_sampling`): lists over n from 1 on. Any part may be missing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training import plots
from training.alignment_figures import LARGE, Canvas, Chart, Curve, Mark, Point, ends, scale_of
from training.alignment_queries import REWARDS
from training.models import TrainingRun
from training.plots import Range, Scale, Tick
from training.report_figures import Row, figure, is_number, number, read_json

CURVE = "curve.json"
MAX_N = 4096
OVER_RANDOM = {
    "reward": ("Optimised reward", "What selected the responses, and so speaks for itself."),
    "held_out_reward": ("Held-out reward", "What neither policy was selected by."),
}
TOLD_HERE = {
    *("kl_best_of_n", "kl_best_of_n_interval", "kl_bound"),
    *(f"{name}_{rest}" for name in OVER_RANDOM for rest in ("gain_over_random", "gain_over_random_interval")),
}  # of a run's result


@dataclass(frozen=True)
class BestOfN:
    """The curve as a picture and a table, how far the best of n is from the policy, and the gain over random choice."""

    chart: Chart | None
    rows: list[list[str]]
    distance: str
    over_random: list[Row]
    ticks: list[Tick]


@dataclass(frozen=True)
class _Worth:
    """What the best of n samples is worth."""

    n: int
    kl: float
    bound: float | None
    rewards: dict[str, Range | None]


def best_of_n(run: TrainingRun) -> BestOfN | None:
    """Of a run of rejection sampling, once it has got so far."""
    told = read_json(run.run_dir / CURVE) if run.kind == TrainingRun.Kind.REJECTION_SAMPLING else {}
    curve = _curve(told)
    if not curve:
        return None
    result = run.result or {}
    gains = {name: found for name in OVER_RANDOM if (found := _figure(result, f"{name}_gain_over_random"))}
    scale = plots.scale_of_gains(gains.values())
    return BestOfN(
        _chart(curve),
        rows=[_row(one) for one in curve],
        distance=_distance(result),
        over_random=[_gain(name, gain, scale) for name, gain in gains.items()],
        ticks=plots.gain_ticks(scale),
    )


def _curve(told: dict[str, Any]) -> list[_Worth]:
    """For one sample, two, and then evenly by their logarithm, up to all of them."""
    numbers = told.get("n")
    numbered = enumerate(numbers if isinstance(numbers, list) else [])
    known = {n: place for place, n in numbered if isinstance(n, int) and 1 <= n <= MAX_N}
    wanted = sorted({*(round(2 ** (half / 2)) for half in range(2 * MAX_N.bit_length())), max(known, default=0)})
    found = [_worth(told, n, known[n]) for n in wanted if n in known]
    return [one for one in found if one]


def _worth(told: dict[str, Any], n: int, place: int) -> _Worth | None:
    kl, bound = (_at(told, name, place) for name in ("kl", "kl_bound"))
    if not is_number(kl):
        return None
    rewards = {
        name: figure({"value": _at(told, name, place), "interval": _at(told, f"{name}_interval", place)})
        for name in REWARDS
    }
    return _Worth(n, max(0.0, kl), bound if is_number(bound) else None, rewards)


def _at(told: dict[str, Any], name: str, place: int) -> Any:
    values = told.get(name)
    return values[place] if isinstance(values, list) and place < len(values) else None


def _figure(result: dict[str, Any], name: str) -> Range | None:
    return figure({"value": result.get(name), "interval": result.get(f"{name}_interval")})


def _chart(curve: Sequence[_Worth]) -> Chart | None:
    curves = [one for name in REWARDS if (one := _reward_curve(curve, name)).points]
    if not curves:
        return None
    points = [point for one in curves for point in one.points]
    across = scale_of([point.x for point in points], include=(0.0,), is_padded=False)
    told = curves[-1]
    first, last = told.points[0].y.value, told.points[-1].y.value
    return Canvas(LARGE, across, scale_of(ends(points))).chart(
        curves,
        about=f"Best of n against the square root of its KL: the {REWARDS[told.name]} goes from {first:.3g} for one "
        f"sample to {last:.3g} for {curve[-1].n}. The figures are in the table.",
        x_label="√KL of the best of n to the policy that was sampled",
        y_label="Mean reward",
        marks=[Mark(point.x, point.y.value, point.told.partition(":")[0]) for point in reversed(told.points)],
        levels=[(first, "")],
    )


def _reward_curve(curve: Sequence[_Worth], name: str) -> Curve:
    """The held-out reward has a band, as on the picture of the training."""
    found = [(one, reward) for one in curve if (reward := one.rewards[name])]
    return Curve(
        name,
        [
            Point(
                math.sqrt(one.kl),
                reward if name == "held_out" else Range(reward.value),
                f"n = {one.n}: {REWARDS[name]} {number(reward)}",
            )
            for one, reward in found
        ],
    )


def _row(one: _Worth) -> list[str]:
    bound = "" if one.bound is None else f"{one.bound:.3f}"
    return [str(one.n), f"{one.kl:.3f}", bound, *(number(one.rewards[name]) for name in REWARDS)]


def _distance(result: dict[str, Any]) -> str:
    kl, bound = _figure(result, "kl_best_of_n"), result.get("kl_bound")
    if kl is None or not is_number(bound):
        return ""
    return f"The best of n is {number(kl)} nats from the policy that was sampled, by estimate; at most {bound:.3f}."


def _gain(name: str, gain: Range, scale: Scale) -> Row:
    label, help = OVER_RANDOM[name]
    return Row(label, number(gain, "+"), help, plots.strip(gain, scale, guide=0))
