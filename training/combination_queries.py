"""What combining rewards brought, for people: report.json of a run of kind `combine` in words, rows and pictures.

A trainer writes it (`training.alignment.combining`). Any part of it may be missing, null or of another shape: then
that part is not shown, or says that it was not measured.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from annotate.guidance import Pair
from annotate.identity import messages_digest
from annotate.models import Option, Prompt, Response
from training import plots, queries
from training.models import TrainingRun
from training.plots import Range, Scale, Tick
from training.report_figures import (
    NOT_MEASURED,
    Row,
    as_dict,
    dicts,
    figure,
    is_number,
    number,
    read_json,
    share_row,
    signed_points,
)
from training.report_queries import REPORT

TOLD_HERE = {
    *("method", "log_loss", "log_loss_gain", "log_loss_gain_interval", "num_members", "num_used", "num_fit_rankings"),
    *("num_left_out", "num_missing"),
}  # of a run's result
NUM_DISAGREEMENTS = 50
TEXT_LENGTH = 4000
SUMMARY_LENGTH = 120
COIN = math.log(2)  # log-loss of a coin
CHANCE_P = 0.0005
NUM_SHADES = 5
METHODS = {
    "mean": ("Mean", "The plain average of the members' standardised scores."),
    "median": ("Median", "The middle one of the members' scores: one member that is far off does not move it."),
    "worst_case": ("Worst case", "The lowest of the members' scores: what one member overrates is not believed."),
    "uncertainty_weighted": ("Uncertainty-weighted", "The mean less a penalty for how far members are apart."),
    "rank_aggregate": ("Rank aggregation", "Members' scores as percentiles, averaged: their units do not matter."),
    "bayesian_average": ("Bayesian averaging", "Weights by how likely each member makes the held-out judgments."),
    "stacking": ("Stacking", "Weights that make the held-out judgments likeliest for the members together."),
    "weighted_mean": ("Weighted mean", "The mean of the members' scores, by weights set by hand."),
    "chebyshev": ("Chebyshev", "What the member that falls shortest gives, by weights set by hand."),
    "constrained": ("Constrained", "The mean of the other members, as long as one of them reaches a floor."),
    "fusion": ("Fusion network", "A small network that learns from judgments how to combine the members' scores."),
}
PROBLEMS = {
    "constant": "It gives every response to a prompt the same score, so it tells nothing.",
    "flipped": "It agrees with people less often than a coin: its sign seems to be the wrong way round.",
    "missing": "It could not score most of the responses.",
}
BETTER, WORSE, EITHER, NO_DIFFERENCE = (
    "better",
    "worse",
    "better by one measure, worse by the other",
    "no difference that shows",
)
OF_A_MEMBER = {BETTER: "helps", WORSE: "harms", EITHER: "helps by one measure, harms by the other"}


@dataclass(frozen=True)
class Named:
    """A member as people know it; `run` made it, if one did."""

    text: str
    run: int | None = None


@dataclass(frozen=True)
class Scored:
    """A member or a way of combining, by what it is worth on held-out pairs."""

    name: Named
    help: str
    accuracy: Row
    log_loss: Row
    is_chosen: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Gain:
    """How far one is ahead of another on the same pairs, and what that says in words."""

    name: Named
    accuracy: Row
    log_loss: Row
    p: str
    verdict: str
    is_chosen: bool = False


@dataclass(frozen=True)
class GainTable:
    """Gains over one opponent, or what each member adds."""

    key: str
    title: str
    about: str
    rows: list[Gain]
    accuracy_ticks: list[Tick]
    log_loss_ticks: list[Tick]


@dataclass(frozen=True)
class Cell:
    """A number in a shaded cell; `shade` is from 0 to NUM_SHADES, and the number says the same."""

    text: str
    shade: int = 0


@dataclass(frozen=True)
class Matrix:
    names: list[Named]
    rows: list[tuple[Named, list[Cell]]]


@dataclass(frozen=True)
class Bar:
    """A share as a bar in per cent of the width."""

    name: Named
    text: str
    width: str


@dataclass(frozen=True)
class Weights:
    title: str
    bars: list[Bar]
    example: str = ""


@dataclass(frozen=True)
class Opinion:
    """What one member gives two responses, and which it prefers."""

    name: Named
    first: str
    second: str
    prefers: str


@dataclass(frozen=True)
class Disagreement:
    summary: str
    prompt: str
    responses: list[str]
    opinions: list[Opinion]
    spread: str
    comparison: int | None
    can_be_asked: bool


@dataclass(frozen=True)
class Combination:
    basis: str
    warnings: list[str]
    scored: list[tuple[str, list[Scored]]]
    accuracy_ticks: list[Tick]
    log_loss_ticks: list[Tick]
    gains: list[GainTable]
    correlation: Matrix | None
    weights: list[Weights]
    gate: list[Weights]
    disagreements: list[Disagreement]

    @property
    def num_askable(self) -> int:
        return sum(one.can_be_asked for one in self.disagreements)


def combination(run: TrainingRun, user: Any = None) -> Combination | None:
    """The report, for a user, in a run's directory; nothing where there is none, or the run combined nothing."""
    if run.kind != TrainingRun.Kind.COMBINE:
        return None
    told = read_json(run.run_dir / REPORT)
    members, combiners = dicts(told.get("members")), dicts(told.get("combiners"))
    if not (members or combiners):
        return None
    named = _Names(_paths(told), user, run.project_id)
    chosen = told.get("method")
    both = [*members, *combiners]
    accuracies = plots.scale_around(_figures(both, "accuracy"))
    losses = _scale_of_losses(_figures(both, "log_loss"))
    return Combination(
        basis=_basis(told),
        warnings=_warnings(members, combiners, named),
        scored=[
            ("Members", [_member(one, named, accuracies, losses) for one in members]),
            ("Combined", [_combiner(one, chosen, accuracies, losses) for one in combiners]),
        ],
        accuracy_ticks=plots.strip_ticks(accuracies),
        log_loss_ticks=plots.loss_ticks(losses, COIN),
        gains=_gain_tables(told, combiners, named),
        correlation=_correlation(told.get("correlation"), [named[one.get("name")] for one in members]),
        weights=[
            Weights(_method(one)[0], _bars(one.get("weights"), named))
            for one in combiners
            if as_dict(one.get("weights"))
        ],
        gate=[_group(one, named) for one in dicts(as_dict(told.get("gate")).get("groups"))],
        disagreements=_disagreements(run, told, named),
    )


# Names


class _Names:
    """Members as people know them: by the run that saved one or the name it is registered under, else by its folder."""

    def __init__(self, paths: Mapping[str, str], user: Any, project: int | None) -> None:
        saved = queries.saving_runs(list(paths.values()), user)
        registered = queries.registered_members(list(paths.values()), user, project)
        self._named = {
            name: Named(saved[path].told, saved[path].pk)
            if path in saved
            else Named(registered.get(path) or _short(name))
            for name, path in paths.items()
        }

    def __getitem__(self, name: Any) -> Named:
        return self._named.get(name, Named(_short(name))) if isinstance(name, str) else Named("not named")


def _paths(told: dict[str, Any]) -> dict[str, str]:
    """The path of each member by its name."""
    named = {
        str(one.get("name", "")): str(one.get("path") or one.get("name", "")) for one in dicts(told.get("members"))
    }
    against = as_dict(told.get("against_incumbent")).get("name")
    return {str(against): str(against), **named} if against else named


def _short(name: str) -> str:
    """A Hugging Face id or a name as it is; of a folder, what tells it from its neighbours."""
    return (
        "/".join(name.rstrip("/").split("/")[-2:])[:TEXT_LENGTH] or "not named" if "/" in name else name[:TEXT_LENGTH]
    )


def _method(told: dict[str, Any]) -> tuple[str, str]:
    method = str(told.get("method", ""))
    return METHODS.get(method, (queries.words(method) or "Not named", ""))


# What each is worth


def _figures(rows: Iterable[dict[str, Any]], name: str) -> list[Range]:
    return [found for one in rows if (found := figure(one.get(name)))]


def _scale_of_losses(found: Sequence[Range]) -> Scale:
    """An axis of log-losses that holds all of them, and a coin's."""
    ends = [COIN, *(end for one in found for end in one.ends)]
    return _widened(math.floor(10 * min(ends)) / 10, math.ceil(10 * max(ends)) / 10)


def _widened(low: float, high: float) -> Scale:
    return Scale(low, high if high > low else low + max(0.1, abs(low)))


def _member(told: dict[str, Any], named: _Names, accuracies: Scale, losses: Scale) -> Scored:
    known = [queries.words(str(told["kind"])).lower()] if told.get("kind") else []
    if is_number(told.get("temperature")):
        known.append(f"temperature {told['temperature']:.3g}")
    if is_number(told.get("num_missing")) and told["num_missing"]:
        known.append(f"{told['num_missing']:,} responses it could not score")
    return Scored(
        named[told.get("name")],
        ", ".join(known),
        accuracy=share_row("Accuracy", told.get("accuracy"), "", accuracies),
        log_loss=_loss_row(told.get("log_loss"), losses),
        problem=str(told["problem"]) if told.get("problem") else "",
    )


def _combiner(told: dict[str, Any], chosen: Any, accuracies: Scale, losses: Scale) -> Scored:
    label, help = _method(told)
    return Scored(
        Named(label),
        help,
        accuracy=share_row("Accuracy", told.get("accuracy"), "", accuracies),
        log_loss=_loss_row(told.get("log_loss"), losses),
        is_chosen=told.get("method") == chosen,
    )


def _loss_row(told: Any, scale: Scale) -> Row:
    found = figure(told)
    return Row("Log-loss", number(found), "", plots.strip(found, scale, guide=COIN) if found else None)


def _basis(told: dict[str, Any]) -> str:
    """What was fitted and measured on what."""
    fit, test = as_dict(told.get("num_fit")), as_dict(told.get("num_test"))
    counted = [
        (
            "Measured on",
            [(test, "pairs", "ordered pairs"), (test, "rankings", "rankings"), (test, "prompts", "prompts")],
        ),
        ("fitted on", [(fit, "rankings", "rankings"), (fit, "prompts", "prompts")]),
    ]
    parts = []
    for verb, counts in counted:
        known = [f"{own[name]:,} {words}" for own, name, words in counts if is_number(own.get(name))]
        parts += [f"{verb} " + ", ".join(known)] if known else []
    basis = "; ".join(parts)
    if is_number(told.get("cross_fitted")) and told["cross_fitted"]:
        basis += f", crosswise in {told['cross_fitted']:,} folds: each prompt by what was fitted on others"
    sentences = [basis[:1].upper() + basis[1:] + "."] if basis else []
    if is_number(told.get("num_left_out")) and told["num_left_out"]:
        sentences.append(f"{told['num_left_out']:,} rankings were left out: a member was trained on their prompts.")
    return " ".join(sentences)


def _warnings(members: Iterable[dict[str, Any]], combiners: Iterable[dict[str, Any]], named: _Names) -> list[str]:
    """Broken members, each with what is wrong, and what combiners say of themselves."""
    found = []
    for one in members:
        if problem := one.get("problem"):
            why = PROBLEMS.get(str(problem), str(problem)[:TEXT_LENGTH])
            found.append(f"{named[one.get('name')].text} is left out. {why}")
    return found + [
        f"{_method(one)[0]}: {str(one['warning'])[:TEXT_LENGTH]}" for one in combiners if one.get("warning")
    ]


# Gains


def _gain_tables(told: dict[str, Any], combiners: Sequence[dict[str, Any]], named: _Names) -> list[GainTable]:
    chosen = told.get("method")
    best = next((name for one in combiners if (name := as_dict(one.get("against_best_member")).get("name"))), None)
    incumbent = as_dict(told.get("against_incumbent"))
    ours = next((one for one in combiners if one.get("method") == chosen), {"method": chosen})
    tables = [
        _gain_table(
            "best",
            "Against the best single member",
            f"The best one by log-loss is {named[best].text}." if best else "",
            [(Named(_method(one)[0]), as_dict(one.get("against_best_member")), one is ours) for one in combiners],
        ),
        _gain_table(
            "mean",
            "Against the mean",
            "A combination that has to be learned should be ahead of the one that needs no learning.",
            [
                (Named(_method(one)[0]), as_dict(one.get("against_mean")), one is ours)
                for one in combiners
                if one.get("method") != "mean"
            ],
        ),
        _gain_table(
            "incumbent",
            "Against the incumbent given",
            "",
            [(Named(f"{_method(ours)[0]} against {named[incumbent.get('name')].text}"), incumbent, True)],
        ),
        _gain_table(
            "adds",
            "What each member adds",
            f"{_method(ours)[0]} with all members against the same without that one.",
            [(named[one.get("name")], one, False) for one in dicts(told.get("leave_one_out"))],
        ),
    ]
    return [table for table in tables if table.rows]


def _gain_table(key: str, title: str, about: str, told: Sequence[tuple[Named, dict[str, Any], bool]]) -> GainTable:
    rows = [(name, own, is_chosen) for name, own, is_chosen in told if own]
    accuracies = plots.scale_of_gains(_figures([own for _, own, _ in rows], "accuracy_gain"))
    losses = plots.scale_of_gains(_figures([own for _, own, _ in rows], "log_loss_gain"))
    gains = [gain(name, own, accuracies, losses, is_chosen=is_chosen) for name, own, is_chosen in rows]
    return GainTable(
        key,
        title,
        about,
        [replace(one, verdict=OF_A_MEMBER.get(one.verdict, one.verdict)) for one in gains] if key == "adds" else gains,
        accuracy_ticks=plots.gain_ticks(accuracies, in_points=True),
        log_loss_ticks=plots.gain_ticks(losses),
    )


def gain(name: Named, told: dict[str, Any], accuracies: Scale, losses: Scale, *, is_chosen: bool = False) -> Gain:
    """A paired comparison as a row."""
    accuracy, log_loss, p = figure(told.get("accuracy_gain")), figure(told.get("log_loss_gain")), told.get("mcnemar_p")
    return Gain(
        name,
        Row("Accuracy", signed_points(accuracy), "", plots.strip(accuracy, accuracies, guide=0) if accuracy else None),
        Row("Log-loss", number(log_loss, "+"), "", plots.strip(log_loss, losses, guide=0) if log_loss else None),
        p=("< 0.001" if p < CHANCE_P else f"{p:.3f}") if is_number(p) else "",
        verdict=verdict([found for found in (accuracy, log_loss) if found]),
        is_chosen=is_chosen,
    )


def verdict(gains: Sequence[Range]) -> str:
    """What gains say, as far as their intervals are to one side of nothing."""
    if not gains:
        return "not compared"
    is_better = any(one.low is not None and one.low > 0 for one in gains)
    is_worse = any(one.high is not None and one.high < 0 for one in gains)
    return {(True, False): BETTER, (False, True): WORSE, (True, True): EITHER}.get((is_better, is_worse), NO_DIFFERENCE)


# Members among each other


def _correlation(told: Any, names: list[Named]) -> Matrix | None:
    rows = told if isinstance(told, list) else []
    if len(rows) != len(names) or not all(isinstance(row, list) and len(row) == len(names) for row in rows):
        return None
    return Matrix(names, [(name, [_cell(value) for value in row]) for name, row in zip(names, rows, strict=True)])


def _cell(value: Any) -> Cell:
    if not is_number(value):
        return Cell("none")
    return Cell(f"{value:.2f}", shade=min(NUM_SHADES, round(NUM_SHADES * abs(value))) if abs(value) < 1 else NUM_SHADES)


def _bars(told: Any, named: _Names) -> list[Bar]:
    return [_bar(named[name], weight) for name, weight in as_dict(told).items() if is_number(weight)]


def _bar(name: Named, weight: float) -> Bar:
    return Bar(name, f"{weight:.1%}", f"{100 * min(1.0, max(0.0, weight)):.1f}%")


def _group(told: dict[str, Any], named: _Names) -> Weights:
    prompts = told.get("prompts")
    title = f"{prompts:,} prompts" if is_number(prompts) else "Prompts"
    return Weights(title, _bars(told.get("weights"), named), example=_text(told.get("example"))[:TEXT_LENGTH])


# Where they disagree


def _disagreements(run: TrainingRun, told: dict[str, Any], named: _Names) -> list[Disagreement]:
    listed = _listed(told)
    places = _places(run, listed)
    comparisons = _comparisons(list(places.values()))
    return [
        _disagreement(one, named, comparisons.get(places.get(place)), can_be_asked=place in places)
        for place, one in enumerate(listed)
    ]


def disagreeing_pairs(run: TrainingRun) -> list[Pair]:
    """What members disagree about, the most disagreement first, as far as the run's project has it."""
    return list(_places(run, _listed(read_json(run.run_dir / REPORT))).values())


def _listed(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Disagreements about two texts; several judgments of the same two are told once."""
    found: dict[tuple[str, frozenset[str]], dict[str, Any]] = {}
    for one in dicts(told.get("disagreements")):
        responses = one.get("responses")
        if isinstance(responses, list) and len(responses) == 2 and all(isinstance(text, str) for text in responses):
            found.setdefault((_text(one.get("prompt")), frozenset(responses)), one)
    return list(found.values())[:NUM_DISAGREEMENTS]


def _disagreement(told: dict[str, Any], named: _Names, comparison: int | None, *, can_be_asked: bool) -> Disagreement:
    prompt = _text(told.get("prompt"))
    spread = told.get("spread")
    return Disagreement(
        summary=prompt[:SUMMARY_LENGTH] + ("…" if len(prompt) > SUMMARY_LENGTH else "") or "No prompt",
        prompt=prompt[:TEXT_LENGTH],
        responses=[text[:TEXT_LENGTH] for text in told["responses"]],
        opinions=[_opinion(named[name], scores) for name, scores in as_dict(told.get("scores")).items()],
        spread=f"{spread:.2f}" if is_number(spread) else "",
        comparison=comparison,
        can_be_asked=can_be_asked,
    )


def _opinion(name: Named, scores: Any) -> Opinion:
    known = [one for one in scores if is_number(one)] if isinstance(scores, list) and len(scores) == 2 else []
    if len(known) != 2:
        return Opinion(name, NOT_MEASURED, NOT_MEASURED, "")
    first, second = known
    prefers = "neither" if first == second else "A" if first > second else "B"
    return Opinion(name, f"{first:+.2f}", f"{second:+.2f}", prefers)


def _text(prompt: Any) -> str:
    """A prompt as text; of a conversation all messages, each with its role."""
    messages = _messages(prompt)
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}:\n{message['content']}" for message in messages)


def _messages(prompt: Any) -> list[dict[str, str]]:
    """A prompt as messages; text is what a user said."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    messages = [
        one for one in dicts(prompt) if isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
    ]
    return [{"role": one["role"], "content": one["content"]} for one in messages]


def _places(run: TrainingRun, listed: Sequence[dict[str, Any]]) -> dict[int, Pair]:
    """By their number, disagreements whose prompt and two responses the run's project has."""
    digests = [messages_digest(_messages(one.get("prompt"))) for one in listed]
    own = Prompt.objects.filter(project=run.project_id, digest__in=digests)
    prompts = dict(own.values_list("digest", "pk"))
    ids: dict[tuple[int, str], int] = {}
    responses = Response.objects.filter(prompt__in=prompts.values()).order_by("pk")
    for prompt, content, pk in responses.values_list("prompt", "content", "pk"):
        ids.setdefault((prompt, content), pk)
    found = {}
    for place, one in enumerate(listed):
        prompt = prompts.get(digests[place], 0)
        first, second = (ids.get((prompt, text)) for text in one["responses"])
        if first and second and first != second:
            found[place] = Pair(prompt, (first, second))
    return found


def _comparisons(pairs: Sequence[Pair]) -> dict[Pair | None, int]:
    """The comparison that holds both responses of a pair; of several, the one that holds least besides."""
    options = Option.objects.filter(response__in=[response for pair in pairs for response in pair.responses])
    holding: dict[int, dict[int, int]] = {}
    for response, comparison, size in options.values_list("response", "comparison", "comparison__num_responses"):
        holding.setdefault(response, {})[comparison] = size
    found: dict[Pair | None, int] = {}
    for pair in pairs:
        first, second = (holding.get(response, {}) for response in pair.responses)
        if both := first.keys() & second.keys():
            found[pair] = min(both, key=lambda comparison: (first[comparison], comparison))
    return found
