"""How a policy's training goes, for people: what its guard measures and says, and what the policy answers, by step.

A trainer writes it, and may be at it while we read: `checks.jsonl`, `alarm.json`, `curve.json` and
`samples/step-000020.jsonl` of a run's directory (`training.alignment.tracking`, `training.alignment.guard`). Any part
may be missing, half-written or of another shape: then that part is not shown.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from annotate.demonstration.quality import is_known, quality
from annotate.identity import messages_digest
from training.alignment_figures import LARGE, SMALL, Canvas, Chart, Curve, Mark, Point, ends, scale_of
from training.models import TrainingRun
from training.plots import Range, Scale
from training.report_figures import NOT_MEASURED, as_dict, dicts, figure, is_number, number, read_json

CHECKS, ALARM, SAMPLES = "checks.jsonl", "alarm.json", "samples"
ALIGNING_KINDS = {"rejection_sampling", "rlhf", "dpo"}
TOLD_HERE = {"stopped_by", "best_step", "saved_step"}  # of a run's result
MAX_CHECKS = 20_000
TAIL = 1024 * 1024  # bytes from a file's end, in which its newest check is
NUM_SHOWN_CHECKS = 100
MAX_SAMPLES = 20_000  # lines read of a step's samples
NUM_READ = 64  # answers of a step whose true quality is read
MAX_STEPS = 40
MAX_PROMPTS = 200
MAX_RESPONSES = 4
MAX_COLUMNS = 6
TEXT_LENGTH = 4000
SUMMARY_LENGTH = 90
LARGEST_STEP = 10**12
APART = 5  # rewards whose ranges differ more than that share no axis
STEP_FILE = re.compile(r"step-(\d{1,12})\.jsonl")
WHOLE_REWARDS = "Rewards of held-out prompts against the square root of the KL to the reference policy"
REWARDS = {"reward": "optimised reward", "held_out": "held-out reward"}


# What the guard measured


@dataclass(frozen=True)
class Check:
    """What was measured of the policy on held-out prompts after so many steps."""

    step: int
    rewards: dict[str, Range | None]
    measures: dict[str, float]

    @property
    def distance(self) -> float | None:
        """The square root of the KL to the reference policy; an estimate may lie a little below zero."""
        kl = self.measures.get("kl")
        return None if kl is None else math.sqrt(max(0.0, kl))


@dataclass(frozen=True)
class About:
    """A measure: what it is called, how it is told, and what it says."""

    label: str
    form: str
    help: str


MEASURES = {
    "quality": About("True quality", ".2f", "How good the answers are, which is known in the demonstration alone."),
    "kl": About("KL", ".2f", "Nats a response by which the policy has left the reference policy."),
    "spread": About("Spread", ".2f", "How far held-out reward models are apart; 1 is as on the training data."),
    "length": About("Length", ".1f", "Tokens of a response."),
    "entropy": About("Entropy", ".2f", "Nats a token: how much the policy still leaves open."),
    "repetition": About("Repetition", ".1%", "Share of a response that repeats what it has said."),
    "diversity": About("Diversity", ".1%", "Share of word pairs among a prompt's responses that are different."),
    "ended": About("Ended", ".1%", "Share of responses that ended by themselves."),
}


@dataclass(frozen=True)
class Measure:
    """One measure over the steps."""

    label: str
    newest: str
    help: str
    chart: Chart


@dataclass(frozen=True)
class Row:
    """A check as a row of a table."""

    step: int
    cells: list[str]
    said: str


@dataclass(frozen=True)
class Tracking:
    """The course of a policy's training; `version` changes with every check."""

    verdict: str
    why: str
    is_alarmed: bool
    is_guarded: bool
    unit: str
    charts: list[Chart]
    measures: list[Measure]
    columns: list[str]
    rows: list[Row]
    version: str


def tracking(run: TrainingRun) -> Tracking | None:
    """What the checks of a run say, as far as it has got; nothing where it makes none."""
    if run.kind not in ALIGNING_KINDS:
        return None
    known = version(run)  # before the checks: of one that comes meanwhile the page hears then
    checks, alarm = read_checks(run.run_dir / CHECKS), read_json(run.run_dir / ALARM)
    if not (checks or run.is_active):
        return None
    best, alarmed = best_step(checks, alarm), _step(alarm)
    shown = _with_quality(run, _thinned(checks, {best, alarmed}))
    measured = [name for name in MEASURES if any(name in check.measures for check in shown)]
    return Tracking(
        verdict=_verdict(run, checks, best, alarmed),
        why=clean(str(alarm.get("words") or "")),
        is_alarmed=alarmed is not None,
        is_guarded=run.config.get("guard") != "off",
        unit=_unit(run),
        charts=_reward_charts(shown, best, alarmed),
        measures=[_measure(name, shown, _target(run, name), best, alarmed) for name in measured],
        columns=[MEASURES[name].label for name in measured],
        rows=[_row(check, measured, best, alarmed) for check in shown],
        version=known,
    )


def version(run: TrainingRun) -> str:
    """What there is to see, told by the newest check and whether there is an alarm; all else is left unread."""
    newest = _newest_step(run.run_dir / CHECKS)
    return f"{'none' if newest is None else newest}{'-alarm' if read_json(run.run_dir / ALARM) else ''}"


def _newest_step(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().split(b"\n")[:-1]  # what follows the last line's end is not whole yet
    except OSError:
        return None
    steps = (_step(_object(line.decode(errors="replace"))) for line in reversed(lines))
    return next((step for step in steps if step is not None), None)


def read_checks(path: Path) -> list[Check]:
    """By step; of a step that was checked again after a restart, the last."""
    found = {step: told for told in objects(path, MAX_CHECKS) if (step := _step(told)) is not None}
    return [_check(step, found[step]) for step in sorted(found)]


def objects(path: Path, most: int) -> Iterator[dict[str, Any]]:
    """What whole lines hold, of so many at the most; what a run is about to write is not whole yet."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in islice(file, most):
                if line.endswith("\n") and (told := _object(line)):
                    yield told
    except OSError:
        return


def best_step(checks: Sequence[Check], alarm: dict[str, Any]) -> int | None:
    """Where the held-out reward was highest: as the alarm says, else as the checks do."""
    if (told := _step({"step": alarm.get("best_step")})) is not None:
        return told
    graded = [(found.value, -check.step) for check in checks if (found := check.rewards["held_out"])]
    return -max(graded)[1] if graded else None


def _object(line: str) -> dict[str, Any]:
    try:
        return as_dict(json.loads(line))
    except (ValueError, RecursionError):
        return {}


def _step(told: dict[str, Any]) -> int | None:
    step = told.get("step")
    return step if isinstance(step, int) and 0 <= step < LARGEST_STEP else None


def _check(step: int, told: dict[str, Any]) -> Check:
    rewards = {name: figure({"value": told.get(name), "interval": told.get(f"{name}_interval")}) for name in REWARDS}
    return Check(step, rewards, {name: told[name] for name in MEASURES if is_number(told.get(name))})


def _thinned(checks: list[Check], kept: set[int | None]) -> list[Check]:
    """So many that they can be told apart: the first, the last, those to be kept, and evenly others."""
    every = math.ceil(len(checks) / NUM_SHOWN_CHECKS) or 1
    last = len(checks) - 1
    return [check for place, check in enumerate(checks) if place % every == 0 or place == last or check.step in kept]


def _with_quality(run: TrainingRun, checks: list[Check]) -> list[Check]:
    """What the policy's answers are truly worth, where that is known: beside it one sees what rewards miss."""
    if run.project is None or not run.project.is_demonstration:
        return checks
    files = sample_files(run)
    told = {check.step: _quality(files[check.step]) for check in checks if check.step in files}
    return [
        check
        if (found := told.get(check.step)) is None
        else replace(check, measures={**check.measures, "quality": found})
        for check in checks
    ]


def _quality(path: Path) -> float | None:
    try:
        return _quality_as_of(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=MAX_CHECKS)
def _quality_as_of(path: Path, changed: int) -> float | None:
    """The mean over prompts, of the first response to each; remembered, for reading a recipe takes a millisecond."""
    first: dict[str, float] = {}
    for told in objects(path, MAX_SAMPLES):
        messages, text = messages_of(told), told.get("response")
        key = messages_digest(messages)
        if messages and isinstance(text, str) and key not in first and len(first) < NUM_READ and is_known(messages):
            first[key] = quality(messages, text)
    return fmean(first.values()) if first else None


def _verdict(run: TrainingRun, checks: Sequence[Check], best: int | None, alarmed: int | None) -> str:
    unit = _unit(run)
    if not checks:
        return "The policy has not been checked yet."
    saved = _step({"step": (run.result or {}).get("saved_step")})
    highest = "" if best is None else f" The held-out reward is highest at {unit} {best}{_kept(unit, saved)}."
    if alarmed is None:
        return ("Only recorded, not guarded." if run.config.get("guard") == "off" else "No alarm.") + highest
    if run.config.get("guard") == "stop":
        return f"Stopped by the guard at {unit} {alarmed}{_kept(unit, best)}."
    return f"The guard raised an alarm at {unit} {alarmed}, and was told to go on.{highest}"


def _kept(unit: str, step: int | None) -> str:
    return "" if step is None else f"; the policy of {unit} {step} is kept"


def _unit(run: TrainingRun) -> str:
    return "round" if run.kind == "rejection_sampling" else "step"


def _target(run: TrainingRun, name: str) -> tuple[float, str] | None:
    """What a measure is held against."""
    target = run.config.get("kl_target")
    if name == "kl" and is_number(target) and target > 0:
        return target, "target"
    return (1.0, "training data") if name == "spread" else None


# Pictures


def _reward_charts(checks: Sequence[Check], best: int | None, alarmed: int | None) -> list[Chart]:
    """Both rewards against the square root of KL; each its own picture where one axis would flatten one of them.

    Source: L. Gao, J. Schulman, J. Hilton, "Scaling laws for reward model overoptimization", 2022.
    """
    placed = [check for check in checks if check.distance is not None]
    curves = [curve for name in REWARDS if (curve := _reward_curve(placed, name)).points]
    if not curves:
        return []
    spans = [max(held) - min(held) for curve in curves if (held := ends(curve.points))]
    is_flat = max(spans) > APART * min(spans) > 0
    across = scale_of([check.distance or 0.0 for check in placed], include=(0.0,), is_padded=False)
    groups = [[curve] for curve in curves] if is_flat else [curves]
    return [_reward_chart(group, across, placed, best, alarmed) for group in groups]


def _reward_curve(checks: Sequence[Check], name: str) -> Curve:
    """The held-out reward has a band; the optimised one's interval says nothing of what matters, and is left out."""
    found = [(check, one) for check in checks if (one := check.rewards[name])]
    return Curve(
        name,
        [
            Point(
                check.distance or 0.0,
                one if name == "held_out" else Range(one.value),
                f"{check.step}: {REWARDS[name]} {number(one)}, KL {check.measures['kl']:.2f}",
            )
            for check, one in found
        ],
    )


def _reward_chart(
    curves: Sequence[Curve], across: Scale, checks: Sequence[Check], best: int | None, alarmed: int | None
) -> Chart:
    by_weight = sorted(
        checks, key=lambda one: (one.step != best, one.step != alarmed, one is not checks[-1], one is not checks[0])
    )  # which labels come first where there is no room for all
    marks = [
        Mark(check.distance or 0.0, found.value, _label(check.step, best), is_ringed=check.step == best)
        for check in by_weight
        if (found := check.rewards[curves[-1].name])
    ]
    return Canvas(LARGE, across, scale_of(ends(point for curve in curves for point in curve.points))).chart(
        curves,
        about=_course(curves),
        x_label="√KL to the reference policy",
        y_label="Mean reward",
        marks=marks,
        uprights=[(check.distance or 0.0, f"alarm {check.step}") for check in checks if check.step == alarmed],
    )


def _label(step: int, best: int | None) -> str:
    return f"{step} best" if step == best else f"{step}"


def _course(curves: Sequence[Curve]) -> str:
    """The picture in a sentence, for those who do not see it."""
    parts = [
        f"the {REWARDS[curve.name]} goes from {curve.points[0].y.value:.3g} to {curve.points[-1].y.value:.3g}"
        for curve in curves
    ]
    return f"{WHOLE_REWARDS}: {', '.join(parts)} in {len(curves[-1].points)} checks. The figures are in the table."


def _measure(
    name: str, checks: Sequence[Check], target: tuple[float, str] | None, best: int | None, alarmed: int | None
) -> Measure:
    about = MEASURES[name]
    points = [
        Point(float(check.step), Range(value), f"{check.step}: {value:{about.form}}")
        for check in checks
        if (value := check.measures.get(name)) is not None
    ]
    across = scale_of([float(check.step) for check in checks], is_padded=False)
    first, newest = (f"{points[place].y.value:{about.form}}" for place in (0, -1))
    is_share = about.form.endswith("%")
    upwards = scale_of(ends(points), include=[target[0]] if target else ())
    canvas = Canvas(SMALL, across, _within_shares(upwards) if is_share else upwards, is_share, is_counted=True)
    return Measure(
        about.label,
        newest,
        about.help,
        canvas.chart(
            [Curve("measure", points)],
            about=f"{about.label} by step: {first} at {points[0].x:.0f}, {newest} at {points[-1].x:.0f}.",
            levels=[target] if target else [],
            uprights=[(float(step), text) for step, text in ((best, "best"), (alarmed, "alarm")) if step is not None],
        ),
    )


def _within_shares(scale: Scale) -> Scale:
    """Without the room at the ends that no share can fill."""
    return Scale(max(0.0, scale.low), min(1.0, scale.high)) if scale.low < 1 and scale.high > 0 else scale


def _row(check: Check, measured: Sequence[str], best: int | None, alarmed: int | None) -> Row:
    said = [word for step, word in ((best, "best"), (alarmed, "alarm")) if step == check.step]
    rewards = [number(check.rewards[name]) for name in REWARDS]
    told = [
        f"{check.measures[name]:{MEASURES[name].form}}" if name in check.measures else NOT_MEASURED for name in measured
    ]
    return Row(check.step, rewards + told, ", ".join(said))


# What the policy answers, over time


@dataclass(frozen=True)
class Choice:
    value: int
    label: str
    is_chosen: bool


@dataclass(frozen=True)
class Answer:
    """A response of the policy after so many steps."""

    when: str
    text: str
    rewards: str


@dataclass(frozen=True)
class OverTime:
    """One held-out prompt with what the policy answered to it at several steps; a row for each response's number."""

    prompts: list[Choice]
    steps: list[Choice]
    prompt: str
    rows: list[list[Answer]]
    unit: str
    previous: int | None
    next: int | None


def samples_over_time(run: TrainingRun, asked_prompt: str = "", asked_steps: Sequence[str] = ()) -> OverTime | None:
    """The samples of a run: of the prompt of that number and of those steps, as far as there are such.

    Without steps those of the beginning, of the highest held-out reward and of the end are taken.
    """
    files = sample_files(run)
    prompts = _prompts(next(iter(files.values()))) if files else []
    if not prompts:
        return None
    best = best_step(read_checks(run.run_dir / CHECKS), read_json(run.run_dir / ALARM))
    usual = [step for step in (min(files), best, max(files)) if step in files]
    chosen = sorted({int(step) for step in asked_steps if step.isdecimal() and len(step) < 13} & files.keys())
    chosen = (chosen or sorted(set(usual)))[:MAX_COLUMNS]
    place = int(asked_prompt) if asked_prompt.isdecimal() and len(asked_prompt) < 9 else 0
    place = place if place < len(prompts) else 0
    unit, offered = _unit(run), _offered(sorted(files), {*usual, *chosen})
    columns = [_answers(files[step], prompts[place], f"{unit} {step}", step == best) for step in chosen]
    return OverTime(
        prompts=[Choice(number, summary(one), number == place) for number, one in enumerate(prompts)],
        steps=[Choice(step, _told_step(step, best), step in chosen) for step in offered],
        prompt=clean(conversation(prompts[place])),
        rows=_rows(columns),
        unit=unit,
        previous=place - 1 if place else None,
        next=place + 1 if place + 1 < len(prompts) else None,
    )


def sample_files(run: TrainingRun) -> dict[int, Path]:
    """By step, in order."""
    try:
        names = {path.name: path for path in (run.run_dir / SAMPLES).iterdir()}
    except OSError:
        return {}
    found = {int(match[1]): path for name, path in names.items() if (match := STEP_FILE.fullmatch(name))}
    return dict(sorted(found.items()))


def _prompts(path: Path) -> list[list[dict[str, Any]]]:
    """The different prompts of a step's samples, in their order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for told in objects(path, MAX_SAMPLES):
        if len(found) == MAX_PROMPTS:
            break
        if messages := messages_of(told):
            found.setdefault(messages_digest(messages), messages)
    return list(found.values())


def messages_of(told: dict[str, Any]) -> list[dict[str, Any]]:
    prompt = told.get("prompt")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else dicts(prompt)
    is_whole = all(isinstance(one.get("role"), str) and isinstance(one.get("content"), str) for one in messages)
    return messages if is_whole else []


def _answers(path: Path, prompt: list[dict[str, Any]], when: str, is_best: bool) -> list[Answer]:
    own = (
        told
        for told in objects(path, MAX_SAMPLES)
        if messages_of(told) == prompt and isinstance(told.get("response"), str)
    )
    said = f"{when}, the best" if is_best else when
    return [Answer(said, clean(told["response"]), _rewards(told)) for told in islice(own, MAX_RESPONSES)]


def _rewards(told: dict[str, Any]) -> str:
    names = {"reward": "reward", "held_out_reward": "held-out"}
    return ", ".join(f"{word} {told[name]:.2f}" for name, word in names.items() if is_number(told.get(name)))


def _rows(columns: Iterable[list[Answer]]) -> list[list[Answer]]:
    """Of each response's number what there is of it at the steps."""
    columns = list(columns)
    longest = max(map(len, columns), default=0)
    return [[column[place] for column in columns if place < len(column)] for place in range(longest)]


def _offered(steps: list[int], kept: set[int]) -> list[int]:
    every = math.ceil(len(steps) / MAX_STEPS) or 1
    return [step for place, step in enumerate(steps) if place % every == 0 or step in kept]


def _told_step(step: int, best: int | None) -> str:
    return f"{step}, before" if step == 0 else f"{step}, best" if step == best else f"{step}"


def summary(messages: list[dict[str, Any]]) -> str:
    text = " ".join(clean(messages[-1]["content"]).split())
    return text[:SUMMARY_LENGTH] + ("…" if len(text) > SUMMARY_LENGTH else "") or "No text"


def clean(text: str) -> str:
    """As much as a page shows; JSON may smuggle in lone surrogates, which UTF-8 cannot carry."""
    return text[:TEXT_LENGTH].encode("utf-8", "replace").decode()


def conversation(messages: list[dict[str, Any]]) -> str:
    """A prompt as text; of a conversation all messages, each with its role."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}:\n{message['content']}" for message in messages)
