"""Policies side by side, for people: report.json of a run of kind `compare_policies` in words, rows and pictures.

A trainer writes it (`training.alignment.policy_comparison`). Any part of it may be missing, null or of another shape:
then that part is not shown, or says that it was not measured.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from training import plots, queries, references
from training.alignment.config import split_names
from training.alignment_figures import LARGE, Canvas, Chart, Curve, Mark, Point, ends, scale_of
from training.alignment_queries import clean, conversation, messages_of, summary
from training.combination_queries import verdict
from training.models import TrainingRun
from training.plots import Range, Scale, Tick
from training.report_figures import NOT_MEASURED, Row, as_dict, dicts, figure, is_number, number, read_json, share_row
from training.report_queries import REPORT

TOLD_HERE = {
    *("num_prompts", "num_samples", "num_policies", "held_out_votes", "best"),
    *("win_rate", "win_rate_interval", "length_controlled_win_rate"),
}  # of a run's result
NUM_PAIRS = 10  # of each sort of samples
NAME_LENGTH = 200
EVEN = 0.5
JUDGED_BY = {
    "guard": "reward models trained on the votes set aside for the guard, from which no other reward has learned",
    "validation": "reward models trained on the votes of the validation split",
    "given": "the held-out reward that was given",
}
SETTINGS = {
    "rlhf": ("algorithm", "beta", "num_steps"),
    "rejection_sampling": ("num_samples", "num_rounds", "keep"),
    "dpo": ("loss", "beta"),
    "sft": ("responses",),
}  # by which policies of a kind are told from each other


@dataclass(frozen=True)
class Policy:
    """One of the policies; `run` trained it, if one did, in the way that `origin` tells."""

    name: str
    run: int | None
    origin: str
    is_first: bool
    verdict: str
    win_rate: Row
    controlled_win_rate: Row
    held_out_gain: Row
    cells: list[str]


@dataclass(frozen=True)
class Answer:
    policy: str
    text: str
    held_out: str
    is_best: bool


@dataclass(frozen=True)
class Example:
    """One prompt with an answer of each policy."""

    summary: str
    prompt: str
    answers: list[Answer]


@dataclass(frozen=True)
class Comparison:
    basis: str
    first: str
    policies: list[Policy]
    win_rate_ticks: list[Tick]
    gain_ticks: list[Tick]
    columns: list[str]
    chart: Chart | None
    examples: list[tuple[str, list[Example]]]


def comparison(run: TrainingRun, user: Any = None) -> Comparison | None:
    """The report, for a user, in a run's directory; nothing where there is none, or the run compared no policies."""
    if run.kind != TrainingRun.Kind.COMPARE_POLICIES:
        return None
    report = read_json(run.run_dir / REPORT)
    told = dicts(report.get("policies"))
    if not told:
        return None
    makers = _makers([str(one.get("path", "")) for one in told], user)
    names = [_name(one, makers) for one in told]
    against = [as_dict(one.get("against_first")) for one in told]
    win_rates = plots.scale_around(_figures(against, ("win_rate", "length_controlled_win_rate")))
    gains = plots.scale_of_gains(_figures(against, ("held_out_gain",)))
    return Comparison(
        basis=_basis(report),
        first=names[0],
        policies=[
            _policy(one, name, makers, win_rates, gains, is_first=one is told[0])
            for one, name in zip(told, names, strict=True)
        ],
        win_rate_ticks=plots.strip_ticks(win_rates),
        gain_ticks=plots.gain_ticks(gains),
        columns=[label for label, _ in COLUMNS],
        chart=_chart(told, names),
        examples=_examples(dicts(report.get("samples")), names),
    )


# Where policies come from


@dataclass(frozen=True)
class Maker:
    """The run that trained a policy, and by which rewards, in words."""

    run: TrainingRun
    rewards: str


def _makers(paths: Sequence[str], user: Any) -> dict[str, Maker]:
    """By a policy's folder, the run that saved it, if it is one that the user sees."""
    saved = queries.saving_runs(paths, user)
    runs = references.runs_of(user).in_bulk([one.pk for one in saved.values()])
    own = {path: runs[one.pk] for path, one in saved.items() if one.pk in runs}
    rewards = {path: split_names(str(run.config.get("reward_model", ""))) for path, run in own.items()}
    told = _named([name for names in rewards.values() for name in names], user)
    return {path: Maker(run, ", ".join(told[name] for name in rewards[path])) for path, run in own.items()}


def _named(models: Sequence[str], user: Any) -> dict[str, str]:
    """Rewards by the runs that saved them or the names they are registered under, else as they are."""
    saved, registered = queries.saving_runs(models, user), queries.registered_members(models, user)
    return {one: saved[one].told if one in saved else registered.get(one, one) for one in models}


def _name(told: dict[str, Any], makers: dict[str, Maker]) -> str:
    maker = makers.get(str(told.get("path", "")))
    return maker.run.name if maker else clean(str(told.get("name") or told.get("path") or "not named"))[:NAME_LENGTH]


def _origin(maker: Maker | None) -> str:
    """How a policy came to be: the kind of its run, the reward, and what else tells it from its neighbours."""
    if maker is None:
        return ""
    config = maker.run.config
    settings = [
        f"{queries.words(name).lower()} {queries.plain(config[name])}"
        for name in SETTINGS.get(maker.run.kind, ())
        if name in config
    ]
    by = [f"reward {maker.rewards}"] if maker.rewards else []
    return f"{maker.run.get_kind_display()}: {', '.join(by + settings)}" if by + settings else ""


# Figures

COLUMNS = (
    ("Optimised reward", lambda told: number(figure(told.get("reward")))),
    ("Gain in it", lambda told: number(figure(as_dict(told.get("against_first")).get("reward_gain")), "+")),
    ("Held-out reward", lambda told: number(figure(told.get("held_out")))),
    ("KL to the first", lambda told: number(figure(told.get("kl")))),
    ("Tokens a response", lambda told: _plain(told.get("length"), ".1f")),
    ("Diversity", lambda told: _plain(told.get("diversity"), ".1%")),
    ("Repetition", lambda told: _plain(told.get("repetition"), ".1%")),
    ("Tokens generated", lambda told: _plain(told.get("num_tokens"), ",.0f")),
    ("Seconds", lambda told: _plain(told.get("seconds"), ",.1f")),
)


def _plain(value: Any, form: str) -> str:
    return f"{value:{form}}" if is_number(value) else NOT_MEASURED


def _figures(rows: Iterable[dict[str, Any]], names: Sequence[str]) -> list[Range]:
    return [found for row in rows for name in names if (found := figure(row.get(name)))]


def _policy(
    told: dict[str, Any], name: str, makers: dict[str, Maker], win_rates: Scale, gains: Scale, *, is_first: bool
) -> Policy:
    against = as_dict(told.get("against_first"))
    maker = makers.get(str(told.get("path", "")))
    gain, win_rate = figure(against.get("held_out_gain")), figure(against.get("win_rate"))
    return Policy(
        name,
        maker.run.pk if maker else None,
        _origin(maker),
        is_first,
        verdict=verdict([_from_even(win_rate)] if win_rate else []),
        win_rate=share_row("Win rate", against.get("win_rate"), "", win_rates),
        controlled_win_rate=share_row("At equal length", against.get("length_controlled_win_rate"), "", win_rates),
        held_out_gain=Row("Gain", number(gain, "+"), "", plots.strip(gain, gains, guide=0) if gain else None),
        cells=[say(told) for _, say in COLUMNS],
    )


def _from_even(win_rate: Range) -> Range:
    return Range(*(None if end is None else end - EVEN for end in win_rate))  # type: ignore[arg-type]


def _basis(report: dict[str, Any]) -> str:
    """What was compared on what, and by whom."""
    counts = {
        "num_prompts": "each policy answered {:,} prompts",
        "num_samples": "{:,} times each",
    }
    known = [words.format(report[name]) for name, words in counts.items() if is_number(report.get(name))]
    judged = JUDGED_BY.get(str(report.get("held_out_votes")))
    parts = [", ".join(known)] if known else []
    parts += [f"the answers are compared by {judged}"] if judged else []
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "." if text else ""


def _chart(told: Sequence[dict[str, Any]], names: Sequence[str]) -> Chart | None:
    """Held-out gain against the root of KL: what each policy has made of how far it went."""
    points = []
    for name, one in zip(names, told, strict=True):
        kl, gain = figure(one.get("kl")), figure(as_dict(one.get("against_first")).get("held_out_gain"))
        if kl and gain:
            points.append(Point(math.sqrt(max(0.0, kl.value)), gain, f"{name}: {number(gain, '+')}, KL {kl.value:.2f}"))
    if not points:
        return None
    across = scale_of([point.x for point in points], include=(0.0,), is_padded=False)
    canvas = Canvas(LARGE, across, scale_of(ends(points), include=(0.0,)))
    return canvas.chart(
        [Curve("held_out", points, is_scattered=True)],
        about=f"Gain in held-out reward over {names[0]} against the square root of the KL to it: "
        + "; ".join(point.told for point in points)
        + ".",
        x_label=f"√KL to {_short(names[0])}",
        y_label=f"Held-out gain over {_short(names[0])}",
        marks=[Mark(point.x, point.y.value, _short(point.told.rpartition(": ")[0])) for point in points],
        levels=[(0.0, "")],
    )


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"


# Samples


def _examples(told: Sequence[dict[str, Any]], names: Sequence[str]) -> list[tuple[str, list[Example]]]:
    """The report's first half differs most, its second half was drawn at random."""
    half = math.ceil(len(told) / 2)
    sorts = {"Where they differ most": told[:half], "Drawn at random": told[half:]}
    found = {
        title: [example for one in own[:NUM_PAIRS] if (example := _example(one, names))] for title, own in sorts.items()
    }
    return [(title, own) for title, own in found.items() if own]


def _example(told: dict[str, Any], names: Sequence[str]) -> Example | None:
    responses, messages = told.get("responses"), messages_of(told)
    if not messages or not isinstance(responses, list) or len(responses) != len(names):
        return None
    held_out = told.get("held_out")
    rewards = held_out if isinstance(held_out, list) and len(held_out) == len(names) else [None] * len(names)
    best = max((reward for reward in rewards if is_number(reward)), default=None)
    answers = [
        Answer(name, clean(str(text)), f"{reward:.2f}" if is_number(reward) else "", reward == best is not None)
        for name, text, reward in zip(names, responses, rewards, strict=True)
    ]
    return Example(summary(messages), clean(conversation(messages)), answers)
