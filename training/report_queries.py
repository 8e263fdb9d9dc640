"""What a reward model is worth, for people: report.json and curve.json of run directories in words, rows and pictures.

A trainer writes both files (`training.alignment.evaluation.report`, `training.alignment.learning_curve`). Any part of
them may be missing or null: an older run has less, and some figures cannot be had from some data.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from training import plots, queries
from training.models import TrainingRun
from training.plots import Range, Scale, Strip, Tick
from training.report_figures import (
    NOT_MEASURED,
    Row,
    as_dict,
    dicts,
    figure,
    is_number,
    number,
    points,
    read_json,
    share,
    share_row,
)

REPORT, CURVE = "report.json", "curve.json"
MAX_OPEN_ROWS = 12

TOLD_HERE = {
    *("accuracy_with_ties", "kendall_tau", "top_1", "log_loss", "brier", "ece", "ece_if_calibrated", "temperature"),
    *("num_tied_pairs", "longer_wins", "leave_one_out", "ceiling", "accuracy_gain", "accuracy_gain_interval"),
    "mcnemar_p",
}  # of a run's result; the report says it with intervals
SLICES = {
    "aspect": "Aspect",
    "source": "Source of the judgments",
    "annotator": "Annotator",
    "num_responses": "Number of responses ranked",
    "strength": "Strength of the preference",
    "length_difference": "Difference in length, of the longer response",
}
ACCURACY_HELP = "Of the pairs that people put in order, how many this reward model puts in the same order."
LONGER_HELP = "A rule that reads nothing and takes the longer response is right that often on the same pairs."
LEAVE_ONE_OUT_HELP = "How often one annotator agrees with the majority of the others who judged the same responses."
BOUNDS_HELP = "Since people differ, the accuracy of the best possible model lies between these."
SAME_ITEMS_HELP = "This reward model's accuracy where several people judged: to be held against the two lines above."
MORE_FIGURES = {
    "accuracy_with_ties": (
        "Accuracy, ties included",
        "Pairs that people called equal count, too: its rewards of those have to be near each other.",
    ),
    "top_1": ("Finds the best", "How often the response it likes best is one that people put first."),
    "kendall_tau": ("Kendall's tau", "Agreement of whole orders: 1 is the same order, 0 is chance, -1 is reversed."),
    "log_loss": ("Log-loss", "Surprise at what people chose, in nats: a coin has 0.693, less is better."),
    "brier": ("Brier score", "Mean squared error of its probabilities: a coin has 0.25, less is better."),
    "ece": ("Calibration error", "How far its probabilities are from observed shares, on average."),
}
SHARES = {"accuracy_with_ties", "top_1", "ece"}  # told in per cent


@dataclass(frozen=True)
class Slice:
    name: str
    accuracy: str
    strip: Strip | None
    num_pairs: Any
    num_prompts: Any
    log_loss: str
    ece: str
    kendall_tau: str
    top_1: str


@dataclass(frozen=True)
class SliceTable:
    key: str
    title: str
    rows: list[Slice]

    @property
    def is_open(self) -> bool:
        return len(self.rows) <= MAX_OPEN_ROWS

    @property
    def is_whole(self) -> bool:
        """Its rows are of whole rankings, not of parts of some."""
        return any(row.kendall_tau for row in self.rows)


@dataclass(frozen=True)
class Comparison:
    """Two reward models on the same pairs; `table` counts pairs by which of them is right."""

    verdict: str
    first: Row
    second: Row
    log_loss_gain: str
    table: dict[str, Any]


@dataclass(frozen=True)
class Report:
    headline: list[Row]
    ticks: list[Tick]
    basis: str
    more: list[Row]
    reliability: plots.Plot | None
    reliability_rows: list[dict[str, str]]
    slices: list[SliceTable]
    length: list[str]
    comparison: Comparison | None


def report(run: TrainingRun, user: Any = None) -> Report | None:
    """The report, for a user, in a run's directory; nothing where there is none."""
    told = read_json(run.run_dir / REPORT)
    if not told:
        return None
    accuracies = [found for found in _accuracies(told) if found]
    scale = plots.scale_around(accuracies)
    return Report(
        headline=_headline(told, scale),
        ticks=plots.strip_ticks(scale),
        basis=_basis(told),
        more=_more(told),
        reliability=_reliability(told),
        reliability_rows=[_reliability_row(one) for one in dicts(told.get("reliability"))],
        slices=[
            SliceTable(key, title, [_slice(one, scale) for one in rows])
            for key, title in SLICES.items()
            if len(rows := dicts(as_dict(told.get("slices")).get(key))) > 1
        ],
        length=_length(as_dict(told.get("length"))),
        comparison=_comparison(as_dict(told.get("comparison")), scale, user),
    )


# What it is worth


def _accuracies(told: dict[str, Any]) -> Iterable[Range | None]:
    """All accuracies of a report, which share one axis."""
    yield figure(as_dict(told.get("figures")).get("accuracy"))
    yield figure(as_dict(told.get("length")).get("longer_wins"))
    ceiling = as_dict(told.get("ceiling"))
    yield from (figure(ceiling.get(name)) for name in ("leave_one_out", "accuracy"))
    yield _bounds(ceiling)
    for rows in as_dict(told.get("slices")).values():
        yield from (Range(found.value) for one in dicts(rows) if (found := figure(one.get("accuracy"))))


def _bounds(ceiling: dict[str, Any]) -> Range | None:
    low, high = ceiling.get("low"), ceiling.get("high")
    if not (is_number(low) and is_number(high)):
        return None
    return Range((low + high) / 2, low, high)


def _headline(told: dict[str, Any], scale: Scale) -> list[Row]:
    """The accuracy, and what it has to be held against, whether known or not."""
    ceiling = as_dict(told.get("ceiling"))
    bounds = _bounds(ceiling)
    rows = [
        share_row("Accuracy", as_dict(told.get("figures")).get("accuracy"), ACCURACY_HELP, scale),
        share_row("Longer wins", as_dict(told.get("length")).get("longer_wins"), LONGER_HELP, scale),
    ]
    if not ceiling:
        unknown = "not known: nowhere did two people judge the same responses"
        return [*rows, Row("Human ceiling", unknown, LEAVE_ONE_OUT_HELP)]
    rows.append(share_row("One person against the others", ceiling.get("leave_one_out"), LEAVE_ONE_OUT_HELP, scale))
    said = f"{bounds.low:.1%} to {bounds.high:.1%}" if bounds else NOT_MEASURED
    rows.append(Row("Best possible model", said, BOUNDS_HELP, plots.strip(bounds, scale) if bounds else None, True))
    if ceiling.get("accuracy"):
        rows.append(share_row("Accuracy on those items", ceiling["accuracy"], SAME_ITEMS_HELP, scale))
    return rows


def _basis(told: dict[str, Any]) -> str:
    """What the figures were measured on."""
    parts = [
        ("num_pairs", "{} ordered pairs"),
        ("num_tied_pairs", "{} tied pairs"),
        ("num_rankings", "{} rankings"),
        ("num_prompts", "{} prompts"),
        ("num_truncated", "{} responses cut to the maximum length"),
    ]
    known = [words.format(told[name]) for name, words in parts if is_number(told.get(name))]
    return "Measured on " + ", ".join(known) + "." if known else ""


def _more(told: dict[str, Any]) -> list[Row]:
    figures = as_dict(told.get("figures"))
    rows = []
    for name, (label, help) in MORE_FIGURES.items():
        found = figure(figures.get(name))
        rows.append(Row(label, share(found) if name in SHARES else number(found), help + _expected(name, told)))
    if is_number(told.get("temperature")):
        help = "Differences of rewards are divided by it to make them probabilities; fitted on validation."
        rows.append(Row("Temperature", f"{told['temperature']:.3g}", help))
    return rows


def _expected(name: str, told: dict[str, Any]) -> str:
    """Even of a perfectly calibrated model some error is measured, and more of it on fewer pairs."""
    expected = told.get("ece_if_calibrated") if name == "ece" else None
    return f" On so many pairs a perfectly calibrated model would show {expected:.1%}." if is_number(expected) else ""


def _reliability(told: dict[str, Any]) -> plots.Plot | None:
    """Predicted probability against observed share; on the diagonal a model is as right as it says."""
    found = [(one["confidence"], point) for one in dicts(told.get("reliability")) if (point := _observed(one))]
    if not found:
        return None
    scale = plots.scale_around([point for _, point in found], include=(0.5, 1.0, *(x for x, _ in found)))
    off = sum(1 for x, (_, low, high) in found if low is not None and high is not None and not low <= x <= high)
    return plots.Axes(scale, scale).plot(
        found,
        about=f"Reliability diagram: in {len(found) - off} of {len(found)} groups of pairs the observed share agrees "
        "with the predicted probability within its interval. The figures are in the table.",
        x_label="Predicted probability",
        y_label="Observed share",
        x_ticks=[(value, f"{value:.0%}") for value in plots.tenths(scale)],
        lines=[("guide", [(scale.low, scale.low), (scale.high, scale.high)])],
    )


def _observed(one: dict[str, Any]) -> Range | None:
    return (
        figure({"value": one.get("accuracy"), "interval": one.get("interval")})
        if is_number(one.get("confidence"))
        else None
    )


def _reliability_row(one: dict[str, Any]) -> dict[str, str]:
    confidence = f"{one['confidence']:.1%}" if is_number(one.get("confidence")) else NOT_MEASURED
    observed = share(figure({"value": one.get("accuracy"), "interval": one.get("interval")}))
    return {"confidence": confidence, "observed": observed, "num_pairs": str(one.get("num_pairs", ""))}


def _slice(one: dict[str, Any], scale: Scale) -> Slice:
    accuracy = figure(one.get("accuracy"))
    return Slice(
        name=str(one.get("name", "")),
        accuracy=share(accuracy),
        strip=plots.strip(accuracy, scale) if accuracy else None,
        num_pairs=one.get("num_pairs", ""),
        num_prompts=one.get("num_prompts", ""),
        log_loss=number(figure(one.get("log_loss"))),
        ece=share(figure(one.get("ece"))),
        kendall_tau=number(figure(one.get("kendall_tau"))) if "kendall_tau" in one else "",
        top_1=share(figure(one.get("top_1"))) if "top_1" in one else "",
    )


def _length(told: dict[str, Any]) -> list[str]:
    """Length bias in plain words, the verdict first."""
    lines = []
    if partial := figure(told.get("partial_correlation")):
        lines.append(f"{_lean(partial)} (partial correlation of reward and length {number(partial, '+')}).")
    if correlation := figure(told.get("correlation")):
        lines.append(f"Correlation of reward and length among the responses to one prompt: {number(correlation, '+')}.")
    longer, shorter = (figure(told.get(f"accuracy_{which}_preferred")) for which in ("longer", "shorter"))
    if longer and shorter:
        lines.append(
            f"Right on {share(longer)} of the pairs where people preferred the longer response, and on "
            f"{share(shorter)} of those where they preferred the shorter."
        )
    if rule := figure(told.get("longer_wins")):
        lines.append(f"Always taking the longer response would be right on {share(rule)}.")
    return lines


def _lean(partial: Range) -> str:
    if partial.low is None or partial.high is None or partial.low <= 0 <= partial.high:
        return "Prefers neither length: beyond what people chose, its lean to one cannot be told from chance"
    return f"Prefers {'longer' if partial.value > 0 else 'shorter'} responses more than people do"


def _comparison(told: dict[str, Any], scale: Scale, user: Any) -> Comparison | None:
    if not told:
        return None
    first, second = names = _model_names([told.get("name_first"), told.get("name_second")], user)
    counts = {name: told.get(f"num_{name}", "") for name in ("both", "only_first", "only_second", "neither")}
    log_loss = figure(told.get("log_loss_gain"))
    return Comparison(
        verdict=_verdict(names, told, [count for count in counts.values() if is_number(count)]),
        first=share_row(first, told.get("accuracy_first"), "", scale),
        second=share_row(second, told.get("accuracy_second"), "", scale),
        log_loss_gain=number(log_loss, "+") if log_loss else "",
        table=counts,
    )


def _model_names(values: Sequence[Any], user: Any) -> list[str]:
    """Models by the runs that saved them, where a run did."""
    parts = [str(value or "the other") for value in values]
    saved = queries.saving_runs(parts, user)
    return [saved[part].told if part in saved else part for part in parts]


def _verdict(names: Sequence[str], told: dict[str, Any], counts: Sequence[float]) -> str:
    gain = figure(told.get("accuracy_gain"))
    if gain is None:
        return f"The accuracy of {names[0]} and {names[1]} was not compared."
    p = told.get("mcnemar_p")
    tail = f" on the same {sum(counts)} pairs" + (f", McNemar {_p(p)}" if is_number(p) else "") + "."
    better, worse = names if gain.value >= 0 else names[::-1]
    by = points(_turned(gain) if gain.value < 0 else gain)
    if gain.low is None or gain.high is None or gain.low <= 0 <= gain.high:
        return f"{names[0]} and {names[1]} cannot be told apart: {better} leads by {by}{tail}"
    return f"{better} is better than {worse} by {by}{tail}"


def _turned(gain: Range) -> Range:
    low, high = (None if end is None else -end for end in (gain.high, gain.low))
    return Range(-gain.value, low, high)


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


# Learning curve


@dataclass(frozen=True)
class Curve:
    plot: plots.Plot | None
    rows: list[dict[str, Any]]
    longer_wins: str
    left_out: list[dict[str, Any]]


def learning_curve(run: TrainingRun) -> Curve | None:
    """curve.json of a run; nothing where there is none."""
    told = read_json(run.run_dir / CURVE)
    rows = dicts(told.get("points"))
    if not rows:
        return None
    return Curve(
        _curve_plot(rows, figure(told.get("longer_wins"))),
        [_curve_row(row) for row in rows],
        share(figure(told.get("longer_wins"))),
        dicts(told.get("left_out")),
    )


def _curve_row(row: dict[str, Any]) -> dict[str, Any]:
    counts = {name: row.get(name, "") for name in ("num_judgments", "num_prompts", "seed")}
    return {**counts, "accuracy": share(figure(row.get("accuracy"))), "log_loss": number(figure(row.get("log_loss")))}


def _curve_plot(rows: list[dict[str, Any]], longer_wins: Range | None) -> plots.Plot | None:
    parts: dict[int, list[tuple[float, Range]]] = {}
    for row in rows:
        if _is_size(row) and (found := figure(row.get("accuracy"))):
            parts.setdefault(row["num_prompts"] if is_number(row.get("num_prompts")) else 0, []).append(
                (row["num_judgments"], found)
            )
    if not parts:
        return None
    # as many prompts are of each seed others, with other numbers of judgments
    means = sorted((fmean(size for size, _ in own), fmean(found.value for _, found in own)) for own in parts.values())
    known = [point for own in parts.values() for point in own]
    sizes = [size for size, _ in known]
    x = Scale(min(sizes) / 1.25, max(sizes) * 1.25, is_log=True)
    y = plots.scale_around([*(found for _, found in known), *([longer_wins] if longer_wins else [])])
    lines = [("curve", means)]
    if longer_wins:
        lines.insert(0, ("guide", [(x.low, longer_wins.value), (x.high, longer_wins.value)]))
    return plots.Axes(x, y).plot(
        known,
        about=_course(means),
        x_label="Judgments learned from, on a log scale",
        y_label="Accuracy",
        x_ticks=[(size, f"{size:,.0f}") for size in plots.thinned([size for size, _ in means])],
        lines=lines,
    )


def _course(means: Sequence[tuple[float, float]]) -> str:
    """The curve in a sentence, for those who do not see it."""
    (first_size, first), (last_size, last) = means[0], means[-1]
    said = "rises from" if last > first else "goes from"
    return f"Accuracy {said} {first:.1%} at {first_size:,.0f} judgments to {last:.1%} at {last_size:,.0f}."


def _is_size(row: dict[str, Any]) -> bool:
    return is_number(row.get("num_judgments")) and row["num_judgments"] > 0
