"""Which reward model is a project's current one, and whether another may take its place.

The gate, on held-out judgments of the project:

- against the current reward model, on the same pairs: it may not be worse by accuracy nor by log-loss. That is, no 95 %
  interval of a gain may lie below zero as a whole, and no estimated gain below -0.02 (2 points of accuracy; 0.02 nats
  of log-loss), as the interval of few judgments holds zero whatever they say;
- where no reward model is in use yet: the accuracy's 95 % interval must lie above a coin's as a whole.

What was measured is read from the report of a run: the combination itself, where it was told of the current reward
model, or the newest evaluation of both. An evaluation counts if it is on the test split, of overall judgments alone,
and if no reward in it has learned from judgments of its prompts. It tells so itself; of an older one it is taken from
the runs that made the rewards: their preference sets must have held the same prompts back. Of a combination that was
cross-fitted its own report counts, as each fold was measured by combiners that were fitted on the others.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlencode

from django.db.models import Q, QuerySet

from annotate.models import OVERALL, Project
from training import comparison_queries, export, plots, queries, references
from training.alignment.config import split_names
from training.combination_queries import Gain, Named, gain
from training.models import PreferenceSet, Promotion, TrainingRun
from training.plots import Range, Tick
from training.report_figures import (
    Row,
    as_dict,
    dicts,
    figure,
    is_number,
    number,
    read_json,
    share,
    share_row,
    signed_points,
)
from training.report_queries import REPORT

Kind = TrainingRun.Kind
TEST_SPLIT = "test"
MAX_LOOKED_AT = 100
FEW_PROMPTS = 20  # intervals are by prompt
LARGEST_LOSS = 0.02  # that may be estimated: of accuracy as a share, of log-loss in nats
MEMBERS_OF = {Kind.COMBINE: "members", Kind.AVERAGE_WEIGHTS: "models"}


@dataclass(frozen=True)
class Test:
    """What a promotion goes by: gains over the current reward model or, where there is none, the accuracy alone."""

    run: int
    """Whose report says it."""
    preference_set: int
    num_pairs: float | None
    accuracy: dict[str, Any] | None = None
    accuracy_gain: dict[str, Any] | None = None
    log_loss_gain: dict[str, Any] | None = None
    mcnemar_p: float | None = None
    num_prompts: float | None = None

    @property
    def is_passed(self) -> bool:
        if self.accuracy is not None:
            alone = figure(self.accuracy)
            return alone is not None and alone.low is not None and alone.low > 0.5
        return all(found is not None and _is_no_loss(found) for found in self.gains)

    @property
    def gains(self) -> list[Range | None]:
        return [figure(self.accuracy_gain), figure(self.log_loss_gain)]

    @property
    def is_worse_beyond_chance(self) -> bool:
        return any(found is not None and found.high is not None and found.high < 0 for found in self.gains)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _is_no_loss(gain: Range) -> bool:
    return gain.high is not None and gain.high >= 0 and gain.value >= -LARGEST_LOSS


@dataclass(frozen=True)
class Uncounted:
    """The newest test that does not count, and why."""

    run: int | None
    """None: of another project."""
    why: str


@dataclass(frozen=True)
class Gate:
    """Whether a run's reward model may take the place of the current one."""

    current: Promotion | None
    test: Test | None
    uncounted: Uncounted | None = None
    """Newer than the test that counts."""
    obstacle: str = ""
    """Why another test on the run's preference set would not count either; empty where it may."""

    @property
    def is_open(self) -> bool:
        return self.test is not None and self.test.is_passed


def current(project: Project | None) -> Promotion | None:
    """The newest promotion: what it promoted is the project's current reward model."""
    return Promotion.objects.filter(project=project).select_related("run", "created_by", "project").first()


def current_for(preference_set: Any, user: Any) -> Promotion | None:
    """The newest promotion of the project that a preference set, or its number, belongs to."""
    if not preference_set:
        return None
    own = Promotion.objects.for_user(user).filter(project__preference_sets=preference_set)
    return own.select_related("run", "project").first()


def is_promotable(run: TrainingRun) -> bool:
    """Whether it made a reward model for a project."""
    is_reward = run.kind in references.REWARD_KINDS and run.status == TrainingRun.Status.SUCCEEDED
    return is_reward and run.project_id is not None


def gate(run: TrainingRun) -> Gate:
    in_use = current(run.project)
    incumbent = in_use.run if in_use else None
    learned = _learned_from([run, incumbent] if incumbent else [run])
    obstacle, uncounted = _foreseen_obstacle(run, incumbent, learned), None
    for measuring in _measurements(run, incumbent):
        why = _why_other(measuring, run)
        why_learned = "" if why else _why_learned(measuring, learned)
        if test := None if why or why_learned else _read(measuring, incumbent):
            is_repeatable = measuring.kind == Kind.EVALUATE and measuring.preference_set_id == run.preference_set_id
            return Gate(in_use, test, uncounted, "" if is_repeatable else obstacle)
        if why_learned and measuring.preference_set_id == run.preference_set_id:
            obstacle = obstacle or ("" if _is_combined_again(run, incumbent) else why_learned)
        if uncounted is None and (measuring.kind == Kind.EVALUATE or (measuring.run_dir / REPORT).is_file()):
            shown = measuring.pk if measuring.project_id == run.project_id else None
            uncounted = Uncounted(shown, why or why_learned or "its report does not tell it")
    return Gate(in_use, None, uncounted, obstacle)


# What was measured


def _measurements(run: TrainingRun, incumbent: TrainingRun | None) -> QuerySet[TrainingRun]:
    """Finished runs that measured the reward model beside the current one, or by itself, the newest first."""
    ours = str(run.model_dir.resolve())
    if incumbent is None:
        which = Q(pk=run.pk) | Q(kind=Kind.EVALUATE, config__reward_model=ours)
    else:
        theirs = str(incumbent.model_dir.resolve())
        either = Q(config__reward_model=ours, config__other_reward_model=theirs)
        either |= Q(config__reward_model=theirs, config__other_reward_model=ours)
        which = (Q(kind=Kind.EVALUATE) & either) | Q(pk=run.pk, kind=Kind.COMBINE, config__incumbent=theirs)
    found = TrainingRun.objects.filter(which, status=TrainingRun.Status.SUCCEEDED)
    return found.select_related("preference_set")[:MAX_LOOKED_AT]


def _why_other(measuring: TrainingRun, run: TrainingRun) -> str:
    """Why it is no test of a reward model of the run's project; empty where it is one."""
    if measuring.preference_set is None or measuring.preference_set.project_id != run.project_id:
        return "it is not on judgments of this project"
    if measuring.kind == Kind.EVALUATE and measuring.config.get("split") != TEST_SPLIT:
        return "it is not on the test split"
    if split_names(str(measuring.config.get("aspect") or OVERALL)) != [OVERALL]:
        return "it is not of overall judgments alone"
    return ""


def _why_learned(measuring: TrainingRun, learned: Sequence[TrainingRun]) -> str:
    """Why its prompts are not held out; empty where they are.

    Evaluations tell it themselves, and older ones are held against the runs that made the rewards. Runs that combine
    leave out what was learned from.
    """
    if measuring.kind == Kind.COMBINE:
        return ""
    told = (measuring.result or {}).get("num_learned_prompts")
    if is_number(told):
        return f"a reward has learned from {told:,} of its prompts" if told else ""
    return _why_not_held_out(measuring.preference_set, learned)


def _read(measuring: TrainingRun, incumbent: TrainingRun | None) -> Test | None:
    """What its report says, if it says all that the gate asks for."""
    told = read_json(measuring.run_dir / REPORT)
    if incumbent is None:
        return _lone_test(measuring, told)
    if measuring.kind == Kind.COMBINE:
        prompts = as_dict(told.get("num_test")).get("prompts")
        return _paired_test(measuring, {"num_prompts": prompts, **as_dict(told.get("against_incumbent"))})
    counts = {name: told.get(name) for name in ("num_pairs", "num_prompts")}
    found = {**as_dict(told.get("comparison")), **counts}
    if measuring.config["reward_model"] == str(incumbent.model_dir.resolve()):
        found |= {name: _turned(found.get(name)) for name in ("accuracy_gain", "log_loss_gain")}
    return _paired_test(measuring, found)


def _lone_test(measuring: TrainingRun, told: dict[str, Any]) -> Test | None:
    if measuring.kind == Kind.COMBINE:
        chosen = (one for one in dicts(told.get("combiners")) if one.get("method") == told.get("method"))
        accuracy, counts = next(chosen, {}).get("accuracy"), as_dict(told.get("num_test"))
        num_pairs, num_prompts = counts.get("pairs"), counts.get("prompts")
    else:
        accuracy = as_dict(told.get("figures")).get("accuracy")
        num_pairs, num_prompts = told.get("num_pairs"), told.get("num_prompts")
    if not figure(accuracy):
        return None
    pairs, prompts = _number(num_pairs), _number(num_prompts)
    return Test(measuring.pk, _set_of(measuring), pairs, accuracy=_figure(accuracy), num_prompts=prompts)


def _paired_test(measuring: TrainingRun, told: dict[str, Any]) -> Test | None:
    gains = {name: _figure(told.get(name)) for name in ("accuracy_gain", "log_loss_gain")}
    if not all(gains.values()):
        return None
    pairs, prompts, p = (_number(told.get(name)) for name in ("num_pairs", "num_prompts", "mcnemar_p"))
    return Test(measuring.pk, _set_of(measuring), pairs, mcnemar_p=p, num_prompts=prompts, **gains)


def _set_of(measuring: TrainingRun) -> int:
    assert measuring.preference_set_id is not None  # `_why_other` asks for one
    return measuring.preference_set_id


def _figure(told: Any) -> dict[str, Any] | None:
    """A figure as it is kept: plain numbers, nothing besides."""
    found = figure(told)
    if found is None:
        return None
    interval = None if found.low is None or found.high is None else [found.low, found.high]
    return {"value": found.value, "interval": interval}


def _turned(told: Any) -> dict[str, Any] | None:
    """A gain seen from the other side."""
    found = _figure(told)
    if found is None:
        return None
    interval = found["interval"] and [-end for end in reversed(found["interval"])]
    return {"value": -found["value"], "interval": interval}


def _number(value: Any) -> float | None:
    return value if is_number(value) else None


def _foreseen_obstacle(run: TrainingRun, incumbent: TrainingRun | None, learned: Sequence[TrainingRun]) -> str:
    """Why a test on the run's own preference set would not count; combining anew, it is another combination's test."""
    if run.preference_set is None:
        return ""
    is_again = _is_combined_again(run, incumbent)
    return _why_not_held_out(
        run.preference_set,
        [
            one
            for one in learned
            if one.preference_set
            and one.preference_set.project_id == run.project_id
            and not (is_again and one.pk == run.pk)
        ],
    )


def _is_combined_again(run: TrainingRun, incumbent: TrainingRun | None) -> bool:
    """Whether it is measured by combining again beside the current one."""
    return incumbent is not None and _is_cross_fitted(run)


def _why_not_held_out(preference_set: PreferenceSet | None, learned: Sequence[TrainingRun]) -> str:
    """Why the test split may hold prompts that the rewards learned from; empty where it holds none.

    A prompt's split is drawn by its text, so sets of one seed and the same share of it test on the same prompts.
    """
    if any(_is_cross_fitted(run) for run in learned):
        return "a reward was cross-fitted, and so on test prompts too"
    if not {_drawn(run.preference_set) for run in learned} <= {None, _drawn(preference_set)}:
        return "a reward has learned from a set whose prompts were split otherwise"
    return ""


def _drawn(preference_set: PreferenceSet | None) -> tuple[Any, ...] | None:
    return (preference_set.seed, preference_set.fractions[export.SPLITS.index(TEST_SPLIT)]) if preference_set else None


def _is_cross_fitted(run: TrainingRun) -> bool:
    """Whether it was fitted on the test split, too."""
    return run.kind == Kind.COMBINE and bool(run.config.get("num_folds"))


def _learned_from(rewards: Sequence[TrainingRun]) -> list[TrainingRun]:
    """The runs that made the rewards, their members, and theirs."""
    left, found = list(rewards), {run.pk: run for run in rewards}
    while left:
        members = [name for one in left for name in split_names(one.config.get(MEMBERS_OF.get(Kind(one.kind), ""), ""))]
        pks = {saved.pk for saved in queries.saving_runs(members).values()} - found.keys()
        left = list(TrainingRun.objects.filter(pk__in=pks).select_related("preference_set"))
        found |= {run.pk: run for run in left}
    return list(found.values())


# For people


@dataclass(frozen=True)
class Drawn:
    """A test in words and in a picture: gains over another, or an accuracy alone."""

    verdict: str
    basis: str
    run: int
    gain: Gain | None = None
    accuracy_ticks: Sequence[Tick] = ()
    log_loss_ticks: Sequence[Tick] = ()
    accuracy: Row | None = None


@dataclass(frozen=True)
class Box:
    """What a run's page says of promoting it."""

    current: Promotion | None
    is_current: bool
    is_open: bool
    rule: str
    drawn: Drawn | None
    uncounted: Uncounted | None
    obstacle: str
    start_kind: str
    start_query: str


def box(run: TrainingRun, user: Any) -> Box | None:
    """For a run that made a project's reward model; for others nothing."""
    if not is_promotable(run):
        return None
    found = gate(run)
    is_current = found.current is not None and found.current.run_id == run.pk
    incumbent = found.current.run if found.current else None
    kind, query = ("", "") if is_current else _start(run, incumbent, user)
    drawn = drawn_test(found.test, run, incumbent) if found.test and not is_current else None
    return Box(
        found.current, is_current, found.is_open, _rule(incumbent), drawn, found.uncounted, found.obstacle, kind, query
    )


NOT_ASKED_AGAIN = {"preferences", "incumbent"}  # the preference set is asked for, the incumbent another


def _start(run: TrainingRun, incumbent: TrainingRun | None, user: Any) -> tuple[str, str]:
    """The kind of run that measures what the gate asks for, and what its start page is filled in with."""
    models = [str(one.model_dir.resolve()) for one in (run, incumbent) if one]
    names = comparison_queries.as_a_person_writes(user, models)
    asked: dict[str, Any] = {"preference_set": run.preference_set_id}
    if _is_combined_again(run, incumbent):
        asked |= {name: value for name, value in run.config.items() if name not in NOT_ASKED_AGAIN}
        return Kind.COMBINE, urlencode({**asked, "incumbent": names[1]})
    asked |= dict(zip(("reward_model", "other_reward_model"), names, strict=False))
    return Kind.EVALUATE, urlencode({**asked, "split": TEST_SPLIT})


def _rule(incumbent: TrainingRun | None) -> str:
    """What the gate asks for."""
    if incumbent is None:
        return "To pass, its accuracy's 95% interval has to lie above one half as a whole."
    return (
        "To pass, neither gain's 95% interval may lie below zero as a whole, nor may either estimated gain be below "
        f"-{100 * LARGEST_LOSS:g} points of accuracy or -{LARGEST_LOSS:g} nats of log-loss."
    )


def stored_test(promotion: Promotion) -> Test | None:
    """The test that a promotion went by; nothing where there was none."""
    try:
        return Test(**promotion.test) if promotion.test else None
    except TypeError:  # of another time
        return None


def drawn_test(test: Test, run: TrainingRun, incumbent: TrainingRun | None) -> Drawn:
    basis = _basis(test)
    if incumbent is None:
        accuracy = figure(test.accuracy)
        scale = plots.scale_around([accuracy] if accuracy else [])
        row = share_row("Accuracy", test.accuracy, "", scale)
        return Drawn(_said(test, None), basis, test.run, accuracy=row, accuracy_ticks=plots.strip_ticks(scale))
    accuracies, losses = (
        plots.scale_of_gains([found] if (found := figure(told)) else [])
        for told in (test.accuracy_gain, test.log_loss_gain)
    )
    return Drawn(
        _said(test, incumbent),
        basis,
        test.run,
        gain=gain(Named(f"{run} less {incumbent}"), test.as_json(), accuracies, losses),
        accuracy_ticks=plots.gain_ticks(accuracies, in_points=True),
        log_loss_ticks=plots.gain_ticks(losses),
    )


def _said(test: Test, incumbent: TrainingRun | None) -> str:
    if incumbent is None:
        better = "It is right more often than a coin" if test.is_passed else "It is not shown to be better than a coin"
        return f"{better}: that is what the first reward model of a project has to be."
    may_be = "is not" if test.is_passed else "is" if test.is_worse_beyond_chance else "may well be"
    return f"It {may_be} worse than {incumbent} on held-out judgments{_chance(test)}."


def _chance(test: Test) -> str:
    """What chance has to do with it, where the intervals leave room for it."""
    is_sure = any(found and found.low is not None and found.low > 0 for found in test.gains)
    return ", as far as can be told" if test.is_passed and not is_sure else ""


def _basis(test: Test) -> str:
    if test.num_pairs is None:
        return ""
    if test.num_prompts is None:
        return f"Measured on {test.num_pairs:,} ordered pairs."
    few = " On so few prompts only large differences show." if test.num_prompts < FEW_PROMPTS else ""
    return f"Measured on {test.num_pairs:,} ordered pairs of {test.num_prompts:,} prompts.{few}"


def told_test(promotion: Promotion) -> str:
    """A promotion's test in a line, for a list."""
    test = stored_test(promotion)
    if test is None:
        return "none"
    pairs = f", {test.num_pairs:,} pairs" if test.num_pairs is not None else ""
    if test.accuracy is not None:
        return f"{share(figure(test.accuracy))}{pairs}"
    return f"{signed_points(figure(test.accuracy_gain))}, {number(figure(test.log_loss_gain), '+')} nats{pairs}"


def written(promotion: Promotion, user: Any) -> str:
    """The current reward model as a person writes it into a form."""
    return comparison_queries.as_a_person_writes(user, [str(promotion.run.model_dir.resolve())])[0]
