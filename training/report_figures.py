"""The figures of a report: read from JSON of which any part may be missing, and told as text."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from training import plots
from training.plots import Range, Scale, Strip

LARGEST = 1e300
NOT_MEASURED = "not measured"
NO_BREAK = "\N{NO-BREAK SPACE}"


def read_json(path: Path) -> dict[str, Any]:
    """What the file holds; nothing where it is missing, half-written or no object."""
    try:
        return as_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def figure(told: Any) -> Range | None:
    """{"value", "interval"} of a report, where it is a number."""
    told = as_dict(told)
    value, interval = told.get("value"), told.get("interval")
    if not is_number(value):
        return None
    is_whole = isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval))
    return Range(value, *interval) if is_whole else Range(value)


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and abs(value) < LARGEST


def share(found: Range | None) -> str:
    """Per cent with one decimal, the interval in brackets: 71.2% [64.0, 78.1]."""
    return f"{found.value:.1%}{_interval(found, 100, '.1f')}" if found else NOT_MEASURED


def number(found: Range | None, sign: str = "") -> str:
    """Three decimals, the interval in brackets: 0.566 [0.541, 0.590]."""
    return f"{found.value:{sign}.3f}{_interval(found, 1, f'{sign}.3f')}" if found else NOT_MEASURED


def points(found: Range) -> str:
    """A difference of shares in percentage points: 2.1 points [0.4, 3.8]."""
    return f"{100 * found.value:.1f} points{_interval(found, 100, '.1f')}"


def signed_points(found: Range | None) -> str:
    """A gain in percentage points: +2.1 points [+0.4, +3.8]."""
    return f"{100 * found.value:+.1f} points{_interval(found, 100, '+.1f')}" if found else NOT_MEASURED


def _interval(found: Range, scale: int, form: str) -> str:
    if found.low is None or found.high is None:
        return ""
    return f" [{scale * found.low:{form}},{NO_BREAK}{scale * found.high:{form}}]"


@dataclass(frozen=True)
class Row:
    """A figure: what it is called, what it says, where it stands in a picture, what it means."""

    label: str
    text: str
    help: str
    strip: Strip | None = None
    is_band: bool = False


def share_row(label: str, told: Any, help: str, scale: Scale) -> Row:
    found = figure(told)
    return Row(label, share(found), help, plots.strip(found, scale) if found else None)
