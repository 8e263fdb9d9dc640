"""`make bench`: runs the peer beside us, prints a ratio and appends it to bench.json in PLUMBLINE_HOME.

A benchmark is a module of this package with `run() -> Iterator[Row]`; it raises `Skipped` with a message where it
cannot run. `python -m bench.run NAME` runs one. What serves several of them is in HELPERS. Speed is never asserted in a
test: it is a figure, with its aim.
"""

import dataclasses
import importlib
import json
import os
import pkgutil
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import bench
from config.home import HOME

HELPERS = {"run", "preference_data", "processes", "trl_peer"}


class Skipped(Exception):
    """This benchmark cannot run here; the message says why."""


@dataclass(frozen=True)
class Row:
    """One figure. `ratio` says how many times better ours is than the peer's; `aim` is what it should reach."""

    name: str
    ours: float
    peer: float
    unit: str
    ratio: float
    aim: float
    curves: dict[str, Any] | None = None  # what the figure was read from
    note: str = ""  # what stands beside the figure

    @property
    def holds(self) -> bool:
        return self.ratio >= self.aim


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def append(rows: list[Row]) -> None:
    path = HOME / "bench.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() else []
    added = [{**dataclasses.asdict(row), "holds": row.holds, "machine": machine()} for row in rows]
    scratch = path.with_suffix(".partial")
    scratch.write_text(json.dumps([*kept, *added], indent=2) + "\n")
    scratch.replace(path)


def run(name: str) -> Iterator[Row]:
    print(f"{name}:")
    try:
        for row in importlib.import_module(f"bench.{name}").run():
            verdict = "holds" if row.holds else "MISSED"
            print(
                f"  {row.name}: ours {row.ours:g} {row.unit}, peer {row.peer:g} {row.unit}, "
                f"ratio {row.ratio:.2f} (aim {row.aim:g}: {verdict})" + (f"; {row.note}" if row.note else ""),
                flush=True,
            )
            yield row
    except Skipped as reason:
        print(f"  skipped: {reason}")


def main(only: str) -> int:
    names = [module.name for module in pkgutil.iter_modules(bench.__path__) if module.name not in HELPERS]
    if only and only not in names:
        print(f"There is no benchmark {only!r}; there are: {', '.join(names)}", file=sys.stderr)
        return 2
    for name in [only] if only else names:
        append(list(run(name)))
    return 0


if __name__ == "__main__":
    # under its package name, so that a benchmark's `Skipped` and `Row` are these
    from bench.run import main as run_main

    sys.exit(run_main(sys.argv[1] if len(sys.argv) > 1 else ""))
