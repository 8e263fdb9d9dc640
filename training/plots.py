"""Where dots, intervals, lines and ticks stand in a picture; templates draw it as SVG.

Pictures are drawn on the server: they need no script, follow the page's colours, and print. All places are text with
a decimal point, whatever the reader's language makes of numbers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 360, 270
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 44
MAX_TICKS = 6
SMALLEST_GAIN = 0.001


class Range(NamedTuple):
    """A figure with its interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def ends(self) -> list[float]:
        return [end for end in self if end is not None]


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`."""

    low: float
    high: float
    is_log: bool = False

    def share(self, value: float) -> float:
        """How far along the axis the value stands, from 0 to 1; what lies outside stands at the end."""
        low, high, at = map(math.log, (self.low, self.high, value)) if self.is_log else (self.low, self.high, value)
        return min(1.0, max(0.0, (at - low) / (high - low)))


def scale_around(ranges: Iterable[Range], *, include: Sequence[float] = (0.5,)) -> Scale:
    """An axis of shares that holds all of them, between whole tenths."""
    ends = [*include, *(end for one in ranges for end in one.ends)]
    low, high = math.floor(10 * min(ends) + 1e-9), math.ceil(10 * max(ends) - 1e-9)
    low = min(9, max(0, low))
    return Scale(low / 10, max(low + 1, min(10, high)) / 10)


@dataclass(frozen=True)
class Tick:
    at: str
    text: str


@dataclass(frozen=True)
class Strip:
    """A dot with its interval in a table's cell, in per cent of the cell's width; `chance` is where chance stands."""

    at: str
    low: str
    high: str
    chance: str


def strip(figure: Range, scale: Scale, *, guide: float = 0.5) -> Strip:
    """A figure on its axis; at `guide` stands what it is held against: a coin's accuracy, no gain at all."""
    low = figure.value if figure.low is None else figure.low
    high = figure.value if figure.high is None else figure.high
    return Strip(*(_percent(scale.share(value)) for value in (figure.value, low, high, guide)))


def strip_ticks(scale: Scale) -> list[Tick]:
    return [Tick(_percent(scale.share(value)), f"{value:.0%}") for value in sorted({scale.low, 0.5, scale.high})]


def loss_ticks(scale: Scale, coin: float) -> list[Tick]:
    """Where a coin stands on an axis of losses, and the ends that are far enough from it to be named."""
    texts = {value: f"{value:.1f}" for value in (scale.low, scale.high)} | {coin: "coin"}
    near = {value for value in texts if value != coin and abs(scale.share(value) - scale.share(coin)) < 0.25}
    return [Tick(_percent(scale.share(value)), texts[value]) for value in sorted(texts.keys() - near)]


def scale_of_gains(ranges: Iterable[Range]) -> Scale:
    """An axis of differences with nothing in its middle, as far to both sides as they go."""
    far = max([SMALLEST_GAIN, *(abs(end) for one in ranges for end in one.ends)])
    return Scale(-far, far)


def gain_ticks(scale: Scale, *, in_points: bool = False) -> list[Tick]:
    """The ends and the middle of an axis of gains."""
    texts = {value: f"{100 * value:+.1f}" if in_points else f"{value:+.3f}" for value in (scale.low, scale.high)}
    return [Tick(_percent(scale.share(value)), texts.get(value, "0")) for value in (scale.low, 0.0, scale.high)]


def _percent(share: float) -> str:
    return f"{1 + 98 * share:.2f}%"  # a dot at an end of the axis is still whole


@dataclass(frozen=True)
class Dot:
    x: str
    y: str
    low: str
    high: str


@dataclass(frozen=True)
class Line:
    """A broken line through corners, as SVG's `points`."""

    points: str
    name: str


@dataclass(frozen=True)
class Plot:
    about: str
    x_label: str
    y_label: str
    dots: list[Dot]
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    box: str = f"0 0 {WIDTH} {HEIGHT}"
    left: str = f"{LEFT}"
    right: str = f"{WIDTH - RIGHT}"
    top: str = f"{TOP}"
    bottom: str = f"{HEIGHT - BOTTOM}"
    middle: str = f"{(LEFT + WIDTH - RIGHT) / 2:g}"
    half: str = f"{(TOP + HEIGHT - BOTTOM) / 2:g}"


@dataclass(frozen=True)
class Axes:
    x: Scale
    y: Scale

    def plot(
        self,
        points: Sequence[tuple[float, Range]],
        *,
        about: str,
        x_label: str,
        y_label: str,
        x_ticks: Sequence[tuple[float, str]],
        lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],
        y_ticks: Sequence[tuple[float, str]] = (),
    ) -> Plot:
        """Dots with upright intervals, and named lines through (x, y); upwards are shares, unless ticks say what."""
        return Plot(
            about,
            x_label,
            y_label,
            dots=[self._dot(x, figure) for x, figure in points],
            lines=[Line(" ".join(f"{self._x(x)},{self._y(y)}" for x, y in corners), name) for name, corners in lines],
            x_ticks=[Tick(self._x(value), text) for value, text in x_ticks],
            y_ticks=[
                Tick(self._y(value), text)
                for value, text in y_ticks or [(share, f"{share:.0%}") for share in tenths(self.y)]
            ],
        )

    def _dot(self, x: float, figure: Range) -> Dot:
        low, high = (figure.value if end is None else end for end in (figure.low, figure.high))
        return Dot(self._x(x), self._y(figure.value), self._y(low), self._y(high))

    def _x(self, value: float) -> str:
        return f"{LEFT + self.x.share(value) * (WIDTH - LEFT - RIGHT):.1f}"

    def _y(self, value: float) -> str:
        return f"{HEIGHT - BOTTOM - self.y.share(value) * (HEIGHT - TOP - BOTTOM):.1f}"


def tenths(scale: Scale) -> list[float]:
    """Ticks of an axis of shares: every tenth, or every fifth where there is no room."""
    first, last = round(10 * scale.low), round(10 * scale.high)
    step = 1 if last - first < MAX_TICKS else 2
    return [number / 10 for number in range(first, last + 1, step)]


def thinned(values: Sequence[float]) -> list[float]:
    """As many of the values as there is room to name, the last among them."""
    step = math.ceil(len(values) / MAX_TICKS)
    return list(values[::-1][::step][::-1])
