"""Where curves, bands and marks stand in the pictures of a policy's training; a template draws them as SVG.

As in `training.plots`, pictures are drawn on the server and places are text with a decimal point.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from training.plots import Range, Scale, Tick

MAX_TICKS = 5
SMALLEST_SPAN = 1e-6  # of an axis, as a share of its numbers
LABEL_WIDTH, LABEL_HEIGHT, LETTER_WIDTH = 34, 13, 5
LARGE_NUMBER = 1e5


class Frame(NamedTuple):
    """A picture's size, and what its axes and their names take of it."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int


LARGE = Frame(360, 250, left=50, right=14, top=18, bottom=42)
SMALL = Frame(240, 130, left=38, right=10, top=14, bottom=22)


class Point(NamedTuple):
    x: float
    y: Range
    told: str = ""
    """What is said where a pointer rests on it."""


@dataclass(frozen=True)
class Curve:
    """Points in their order; `name` is its class in the style sheet.

    Intervals are a band where points go from left to right, and else an upright bar for each. Scattered points are not
    joined.
    """

    name: str
    points: Sequence[Point]
    is_scattered: bool = False

    @property
    def has_intervals(self) -> bool:
        return any(point.y.low is not None for point in self.points)

    @property
    def has_band(self) -> bool:
        places = [point.x for point in self.points]
        return self.has_intervals and not self.is_scattered and len(places) > 1 and places == sorted(places)


@dataclass(frozen=True)
class Mark:
    """What is written at a place of a curve; `is_ringed` draws a ring around the place."""

    x: float
    y: float
    text: str
    is_ringed: bool = False


@dataclass(frozen=True)
class Place:
    x: str
    y: str
    text: str = ""


@dataclass(frozen=True)
class Drawn:
    """A curve as SVG's `points`, the band of its intervals and each of its upright intervals likewise."""

    name: str
    line: str
    band: str
    dots: list[Place]
    bars: list[str]


@dataclass(frozen=True)
class Chart:
    """A picture; `levels` and `uprights` are dashed lines across it, with what they say."""

    about: str
    x_label: str
    y_label: str
    curves: list[Drawn]
    labels: list[Place]
    rings: list[Place]
    levels: list[Place]
    uprights: list[Place]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    box: str
    left: str
    right: str
    top: str
    bottom: str
    middle: str
    half: str


@dataclass(frozen=True)
class Canvas:
    """A frame with the axes of what is drawn in it.

    Upwards may stand shares, which are told in per cent, and to the right whole numbers, which have none between them.
    """

    frame: Frame
    x: Scale
    y: Scale
    is_share: bool = False
    is_counted: bool = False

    def chart(
        self,
        curves: Sequence[Curve],
        *,
        about: str,
        x_label: str = "",
        y_label: str = "",
        marks: Iterable[Mark] = (),
        levels: Iterable[tuple[float, str]] = (),
        uprights: Iterable[tuple[float, str]] = (),
    ) -> Chart:
        """A picture of curves; of marks those that come first have room, others where some is left."""
        marks = list(marks)
        width, height, left, right, top, bottom = self.frame
        return Chart(
            about,
            x_label,
            y_label,
            curves=[self._drawn(curve) for curve in curves],
            labels=self._labels(marks),
            rings=[self._place(mark.x, mark.y) for mark in marks if mark.is_ringed],
            levels=[self._place(self.x.low, value, text) for value, text in levels],
            uprights=[self._place(value, self.y.high, text) for value, text in uprights],
            x_ticks=[
                Tick(_text(self._across(value)), text) for value, text in ticks(self.x, least=float(self.is_counted))
            ],
            y_ticks=[Tick(_text(self._down(value)), text) for value, text in ticks(self.y, is_share=self.is_share)],
            box=f"0 0 {width} {height}",
            left=f"{left}",
            right=f"{width - right}",
            top=f"{top}",
            bottom=f"{height - bottom}",
            middle=_text((left + width - right) / 2),
            half=_text((top + height - bottom) / 2),
        )

    def _drawn(self, curve: Curve) -> Drawn:
        lower, upper = ([(point.x, end(point.y)) for point in curve.points] for end in (_low, _high))
        return Drawn(
            curve.name,
            line="" if curve.is_scattered else self._path((point.x, point.y.value) for point in curve.points),
            band=self._path([*lower, *reversed(upper)]) if curve.has_band else "",
            dots=[self._place(point.x, point.y.value, point.told) for point in curve.points],
            bars=[]
            if curve.has_band
            else [self._path(bar) for bar in zip(lower, upper, strict=True) if bar[0] != bar[1]],
        )

    def _labels(self, marks: Sequence[Mark]) -> list[Place]:
        taken: list[tuple[float, float]] = []
        found = []
        for mark in marks:
            at = self._across(mark.x), self._down(mark.y)
            if mark.text and not any(_is_near(at, other) for other in taken):
                taken.append(at)
                found.append(Place(_text(self._inside(at[0], mark.text)), _text(at[1] + self._aside(at[1])), mark.text))
        return found

    def _inside(self, across: float, text: str) -> float:
        """Where the middle of a text stands that is to be at a place and not to leave the axes."""
        half = len(text) * LETTER_WIDTH / 2
        return max(self.frame.left + half, min(self.frame.width - self.frame.right - half, across))

    def _aside(self, down: float) -> float:
        """How far from its place a label stands: below, or above where the axis is near."""
        return -9 if down + 20 > self.frame.height - self.frame.bottom else 15

    def _path(self, corners: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{_text(self._across(x))},{_text(self._down(y))}" for x, y in corners)

    def _place(self, x: float, y: float, text: str = "") -> Place:
        return Place(_text(self._across(x)), _text(self._down(y)), text)

    def _across(self, value: float) -> float:
        return self.frame.left + self.x.share(value) * (self.frame.width - self.frame.left - self.frame.right)

    def _down(self, value: float) -> float:
        inner = self.frame.height - self.frame.top - self.frame.bottom
        return self.frame.height - self.frame.bottom - self.y.share(value) * inner


def scale_of(values: Iterable[float], *, include: Sequence[float] = (), is_padded: bool = True) -> Scale:
    """An axis that holds all values, with a little room at both ends; of equal ones some room around them."""
    held = [*values, *include] or [0.0, 1.0]
    low, high = min(held), max(held)
    size = max(1.0, abs(low), abs(high))
    if high - low < SMALLEST_SPAN * size:
        return Scale(low - size / 20 if is_padded else low, high + size / 20)
    room = (high - low) / 20
    return Scale(low - room if is_padded else low, high + room)


def ends(points: Iterable[Point]) -> list[float]:
    """All that an axis of their figures has to hold."""
    return [end for point in points for end in point.y.ends]


def _low(found: Range) -> float:
    return found.value if found.low is None else found.low


def _high(found: Range) -> float:
    return found.value if found.high is None else found.high


def ticks(scale: Scale, *, is_share: bool = False, least: float = 0.0) -> list[tuple[float, str]]:
    """A few round numbers on an axis, apart by no less than `least`."""
    step = max(least, _round_step((scale.high - scale.low) / MAX_TICKS))
    first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [number * step for number in range(first, last + 1)]
    return [(value, f"{value:.{max(0, places - 2)}%}" if is_share else _number(value, places)) for value in values]


def _round_step(width: float) -> float:
    power = 10.0 ** math.floor(math.log10(width))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width * (1 - 1e-9))


def _number(value: float, places: int) -> str:
    return f"{value:.3g}" if abs(value) >= LARGE_NUMBER or places > 4 else f"{value:.{places}f}"


def _is_near(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return abs(one[0] - other[0]) < LABEL_WIDTH and abs(one[1] - other[1]) < LABEL_HEIGHT


def _text(place: float) -> str:
    return f"{place:.1f}"
