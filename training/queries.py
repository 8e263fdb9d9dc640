"""Reads for the pages of runs and preference sets, and figures that join a run's files with what we know."""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import Field, dataclass, fields
from itertools import islice
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any, NamedTuple

from django.conf import settings

from annotate.demonstration.quality import is_known, quality
from annotate.identity import messages_digest
from annotate.models import OVERALL, Figures
from training import launch, references
from training.alignment.config import CONFIGS, split_names
from training.models import Metric, PreferenceSet, RunEvent, TrainingRun
from training.report_figures import is_number
from training.shard_queries import Shards, shards

NUM_LOG_LINES = 100
NUM_SAMPLES = 6
NUM_METRICS = 5000
NUM_TABLE_ROWS = 30
NUM_RECENT = 500
NUM_TOLD = 30
LATEST = ("loss", "accuracy")
CURVES = ("loss", "accuracy", "reward")
SAMPLE_LENGTH = 4000
Z = NormalDist().inv_cdf(0.975)
REWARDS = {
    "reward": "Mean reward, optimised",
    "held_out_reward": "Mean reward, held out",
    "oracle_quality": "Mean true quality (known in the demonstration)",
}
CEILING_HELP = "Since people differ, the best possible model agrees with a further person's judgments that often."


# The result in figures and words


def oracle_quality(run: TrainingRun) -> dict[str, Any]:
    """True quality of the policy's answers before and after; only the demonstration's texts have a known one."""
    if run.project is None or not run.project.is_demonstration:
        return {}
    before, after = (_quality_by_prompt(run.run_dir / f"samples_{when}.jsonl") for when in ("before", "after"))
    prompts = sorted(before.keys() & after.keys())
    if not prompts:
        return {}
    gains = [after[prompt] - before[prompt] for prompt in prompts]
    figures: dict[str, Any] = {
        "oracle_quality_before": fmean(before[prompt] for prompt in prompts),
        "oracle_quality_after": fmean(after[prompt] for prompt in prompts),
    }
    if len(gains) > 1:
        margin = Z * stdev(gains) / len(gains) ** 0.5
        figures["oracle_quality_gain_interval"] = [fmean(gains) - margin, fmean(gains) + margin]
    return figures


def _quality_by_prompt(path: Path) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for sample in _samples(path):
        if is_known(sample["prompt"]):
            quality_of_sample = quality(sample["prompt"], sample["response"])
            found.setdefault(messages_digest(sample["prompt"]), []).append(quality_of_sample)
    return {prompt: fmean(values) for prompt, values in found.items()}


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; a run that is still at it may have written half of the last one."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.endswith("\n"))


@dataclass(frozen=True)
class Line:
    """A label and what it says; `run` is the run that the text names, if it does."""

    label: str
    text: str
    help: str = ""
    run: int | None = None


def human_ceiling(run: TrainingRun) -> dict[str, Any] | None:
    """Between what the best possible accuracy on the judgments it learned from lies, by the project's figures."""
    figures = Figures.objects.filter(project=run.project_id).first()
    aspects = figures.values.get("aspects", {}) if figures else {}
    return aspects.get(run.config.get("aspect") or OVERALL, {}).get("ceiling")


def result_lines(result: dict[str, Any] | None, ceiling: dict[str, Any] | None = None) -> list[Line]:
    """A run's result in words; beside an accuracy the human ceiling, where it is known."""
    left = dict(result or {})
    left.pop("model", None)
    lines = [_accuracy(left)] if "accuracy" in left else []
    if lines and ceiling:
        told = f"{ceiling['low']:.1%} to {ceiling['high']:.1%}, from {ceiling['num_items']} comparisons"
        lines.append(Line("Human ceiling", told, CEILING_HELP))
    lines += [_before_and_after(name, left) for name in REWARDS if f"{name}_before" in left]
    bare = [name for name in left if not (name.endswith("_interval") and name.removesuffix("_interval") in left)]
    return lines + [Line(words(name), _text(left[name]) + _interval(left.get(f"{name}_interval"))) for name in bare]


def headline(result: dict[str, Any] | None) -> str:
    """The one figure of a result for which a list has room."""
    figures = result or {}
    if figures.get("held_out_reward_gain") is not None:
        return _headline_of_policy(figures)
    if figures.get("accuracy") is not None:
        return f"accuracy {figures['accuracy']:.1%}"
    if figures.get("win_rate") is not None:
        return f"win rate {figures['win_rate']:.1%}"
    if figures.get("reward_before") is not None and figures.get("reward_after") is not None:
        return f"reward {figures['reward_before']:.3g} → {figures['reward_after']:.3g}"
    return f"loss {figures['loss']:.3g}" if figures.get("loss") is not None else ""


def _headline_of_policy(figures: dict[str, Any]) -> str:
    """What a policy gained by a reward that was not optimised, and whether its training was stopped for that."""
    interval = _ends(figures.get("held_out_reward_gain_interval"))
    known = f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else ""
    stopped = ", stopped by the guard" if figures.get("stopped_by") else ""
    return f"held-out reward {figures['held_out_reward_gain']:+.2f}{known}{stopped}"


def _accuracy(left: dict[str, Any]) -> Line:
    accuracy, interval = left.pop("accuracy"), left.pop("interval", None)
    if accuracy is None:
        return Line("Pairwise accuracy", "not measured")
    text = f"{accuracy:.1%}{_interval(interval, '.1%')}"
    if {"num_pairs", "num_prompts"} <= left.keys():
        text += f", {left.pop('num_pairs')} pairs of {left.pop('num_prompts')} prompts"
    return Line("Pairwise accuracy", text)


def _before_and_after(name: str, left: dict[str, Any]) -> Line:
    before, after = left.pop(f"{name}_before"), left.pop(f"{name}_after", None)
    _, interval = left.pop(f"{name}_gain", None), left.pop(f"{name}_gain_interval", None)
    if before is None or after is None:
        return Line(REWARDS[name], "not measured")
    text = f"{before:.3g} before, {after:.3g} after; gain {after - before:+.3g}{_interval(interval, '+.3g')}"
    return Line(REWARDS[name], text)


def _interval(told: Any, form: str = ".4g") -> str:
    ends = _ends(told)
    return f" (95% interval {ends[0]:{form}} to {ends[1]:{form}})" if ends else ""


def _ends(told: Any) -> list[float] | None:
    """An interval's ends, where they are known: of too little data a run may say that they are not."""
    is_known = isinstance(told, list) and len(told) == 2 and all(map(is_number, told))
    return told if is_known else None


def words(name: str) -> str:
    text = (
        name.removeprefix("num_").replace("_num_", "_").replace("_", " ").capitalize().replace("Held out", "Held-out")
    )
    return re.sub(r"\b[Kk]l\b", "KL", text)


def _text(value: Any) -> str:
    """A value of any shape in words: what a list or an object holds, one after the other, up to a few dozen."""
    if isinstance(value, dict):
        return _listed([f"{name} {_inside(one)}" for name, one in value.items()])
    if isinstance(value, list):
        return _listed([_inside(one) for one in value])
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _inside(value: Any) -> str:
    return f"({_text(value)})" if isinstance(value, dict | list) else _text(value)


def _listed(parts: list[str]) -> str:
    more = [f"and {len(parts) - NUM_TOLD} more"] if len(parts) > NUM_TOLD else []
    return ", ".join(parts[:NUM_TOLD] + more) or "none"


# One run's page


@dataclass(frozen=True)
class Sample:
    """What the policy answered to one held-out prompt."""

    prompt: str
    before: str
    after: str
    reward_before: float | None
    reward_after: float | None


@dataclass(frozen=True)
class RunPage:
    progress: "Progress"
    config: list[Line]
    result: list[Line]
    samples: list[Sample]
    has_curves: bool
    metrics: list[dict[str, Any]]
    log: str
    events: list[RunEvent]
    model_dir: str


@dataclass(frozen=True)
class Progress:
    """What changes while a run works."""

    percent: int
    phase: str
    latest: list[Line]
    shards: Shards | None = None


def run_page(run: TrainingRun, *, user: Any = None, told_elsewhere: Collection[str] = ()) -> RunPage:
    """A run's page for a user; `told_elsewhere` names the figures of its result that stand there already."""
    result = {name: value for name, value in (run.result or {}).items() if name not in told_elsewhere}
    return RunPage(
        progress=progress(run),
        config=config_lines(run, user),
        result=result_lines(result, human_ceiling(run)),
        samples=samples(run),
        has_curves=run.is_active or Metric.objects.filter(run=run, values__has_any_keys=CURVES).exists(),
        metrics=newest_metrics(run),
        log=log(run),
        events=list(run.events.all()),
        model_dir=str(run.model_dir) if run.model_dir.exists() else "",
    )


def progress(run: TrainingRun) -> Progress:
    latest = _latest(run)
    lines = [Line(words(name), f"{latest[name]:.4g}") for name in LATEST if name in latest]
    parts = shards(run)
    if parts and run.status == TrainingRun.Status.WAITING:
        return Progress(percent=parts.percent, phase=parts.words, latest=[], shards=parts)
    return Progress(percent=int(100 * run.progress), phase=run.phase, latest=lines, shards=parts)


def _latest(run: TrainingRun) -> dict[str, float]:
    """The newest loss and accuracy, where they are not long ago."""
    recent = Metric.objects.filter(run=run).order_by("-line").values_list("values", flat=True)[:NUM_RECENT]
    latest: dict[str, float] = {}
    for values in recent:
        latest = {name: values[name] for name in LATEST if isinstance(values.get(name), int | float)} | latest
    return latest


def newest_metrics(run: TrainingRun) -> list[dict[str, Any]]:
    """What the curves show, as a table: the newest lines that hold a figure, newest first."""
    newest = Metric.objects.filter(run=run).order_by("-line").values_list("values", flat=True)[:NUM_TABLE_ROWS]
    return [{"phase": values.get("phase"), "step": values.get("step"), **_curves(values)} for values in newest]


def _curves(values: dict[str, Any]) -> dict[str, str]:
    return {name: _figure(values.get(name)) for name in CURVES}


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def log(run: TrainingRun) -> str:
    return "\n".join(launch.log_tail(run.run_dir, NUM_LOG_LINES))


def config_lines(run: TrainingRun, user: Any = None) -> list[Line]:
    """The configuration with each field's help; a folder that a run saved is shown as that run if the user sees it."""
    values = {item: run.config[item.name] for item in fields(CONFIGS[run.kind]) if item.name in run.config}
    parts = {item.name: _parts(run.kind, item.name, value) for item, value in values.items()}
    everything = [part for own in parts.values() for part in own]
    saved, registered = saving_runs(everything, user), registered_members(everything, user, run.project_id)
    return [_config_line(item, parts[item.name], saved, registered) for item in values]


def _parts(kind: str, name: str, value: Any) -> list[str]:
    """The members of an ensemble; of anything else, the one value as text."""
    return split_names(value) if references.names_several(kind, name) else [plain(value)]


def _config_line(
    item: "Field[Any]", parts: list[str], saved: dict[str, "SavingRun"], registered: dict[str, str]
) -> Line:
    text = ", ".join(saved[part].told if part in saved else registered.get(part, part) for part in parts)
    only = saved[parts[0]].pk if len(parts) == 1 and parts[0] in saved else None
    return Line(words(item.name), text, item.metadata.get("help", ""), only)


class SavingRun(NamedTuple):
    """The run in whose directory a model is."""

    pk: int
    name: str

    @property
    def told(self) -> str:
        return f"{self.name} (run {self.pk})"


def saving_runs(values: Sequence[str], user: Any = None) -> dict[str, SavingRun]:
    """By a model's folder, the run that saved it; what is no folder of a run that the user sees is left out."""
    numbers = {value: number for value in values if (number := saved_by(value))}
    names = dict(references.runs_of(user).filter(pk__in=numbers.values()).values_list("pk", "name"))
    return {value: SavingRun(number, names[number]) for value, number in numbers.items() if number in names}


def saved_by(value: str) -> int | None:
    """The number of the run in whose directory a model's folder is."""
    try:
        number, model = Path(value).relative_to(Path(settings.RUNS_DIR).resolve()).parts
    except ValueError:
        return None
    return int(number) if model == "model" and number.isdecimal() else None


def registered_members(values: Sequence[str], user: Any = None, project: int | None = None) -> dict[str, str]:
    """By a member's folder, the name of a member in it that the user sees; what is no such folder is left out.

    Equal members share a folder: it is told by that of this project, else by the newest one.
    """
    folder = Path(settings.MEMBERS_DIR).resolve()
    digests = {Path(value).name: value for value in values if Path(value).parent == folder}
    if not digests:
        return {}
    found = references.members_of(user).filter(digest__in=digests).select_related("project")
    best_last = sorted(found, key=lambda member: (member.project_id == project, member.pk))
    return {digests[member.digest]: str(member) for member in best_last}


def plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def samples(run: TrainingRun) -> list[Sample]:
    """A few held-out prompts with what the policy answered before and after."""
    before, after = (_first_by_prompt(run.run_dir / f"samples_{when}.jsonl") for when in ("before", "after"))
    both = islice((prompt for prompt in before if prompt in after), NUM_SAMPLES)
    return [_sample(before[prompt], after[prompt]) for prompt in both]


def _first_by_prompt(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for sample in islice(_samples(path), 100 * NUM_SAMPLES):
        found.setdefault(messages_digest(sample["prompt"]), sample)
    return found


def _sample(before: dict[str, Any], after: dict[str, Any]) -> Sample:
    return Sample(
        prompt=before["prompt"][-1]["content"][:SAMPLE_LENGTH],
        before=before["response"][:SAMPLE_LENGTH],
        after=after["response"][:SAMPLE_LENGTH],
        reward_before=before.get("reward"),
        reward_after=after.get("reward"),
    )


def metric_series(run: TrainingRun, *, after: int, first: int | None) -> dict[str, Any]:
    """Metrics from line `after` on, for a page that has the lines before it.

    `first` names the row of line 0 that the page has seen. A resumed trainer writes lines again, as other rows: then
    the answer begins at line 0, and the page starts its curves anew.
    """
    metrics = Metric.objects.filter(run=run)
    origin = metrics.filter(line=0).values_list("pk", flat=True).first()
    start = after if first == origin else 0
    rows = list(metrics.filter(line__gte=start).values_list("line", "values")[:NUM_METRICS])
    return {
        "first": origin,
        "start": start,
        "rows": [values for _, values in rows],
        "is_more": len(rows) == NUM_METRICS,
        "is_active": run.is_active,
    }


# Preference sets


def split_lines(preference_set: PreferenceSet) -> list[dict[str, Any]]:
    """What each split holds, as rows of a table."""
    return [{"split": split, **counts} for split, counts in preference_set.counts.items()]


def empty_splits(preference_set: PreferenceSet) -> list[str]:
    return [split for split, counts in preference_set.counts.items() if not counts["judgments"]]


def num_simulated(preference_set: PreferenceSet) -> int:
    return sum(counts["simulated"] for counts in preference_set.counts.values())
