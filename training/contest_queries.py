"""What people say of two policies: the verdict so far, and how well the rewards foresaw it.

Of each pair the first judgment counts, as it was first given, and a tie is left out; `annotate.stats.sequential` says
why, and what may be claimed at any time. A vote that is revised afterwards still counts as it was cast: else what is
decided could become undecided. Judgments are those of the overall order, whoever made them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import numpy as np
from django.db.models import QuerySet

from annotate.identity import messages_digest
from annotate.models import OPEN, OVERALL, Annotator, Comparison, Judgment, Project, Revision
from annotate.stats import bias, sequential
from annotate.stats.sequential import Course
from training import contest_samples, contest_services, plots, queries, references
from training.alignment.config import split_names
from training.alignment_queries import clean, conversation, summary
from training.contest_splits import Splits, splits
from training.models import Contest, ContestPair, TrainingRun
from training.plots import Axes, Plot, Range, Scale, Tick
from training.report_figures import Row, as_dict, figure, is_number, points, share

CLAIM = 1 / sequential.ALPHA
LOWEST, HIGHEST = 0.01, 1e6  # e-values that the picture has room for
NUM_CORNERS = 400
NUM_SURPRISES = 8
OPTIMISED = "reward"
REWARDS = {
    OPTIMISED: ("The optimised reward", "reward_model"),
    "held_out_reward": ("The held-out reward", "held_out_reward_model"),
}
HUMAN_HELP = "Of the votes that are no ties, one for each prompt. The interval holds whenever one looks or stops."
FORESEEN_HELP = "How often it gives the new policy's answer more, of all pairs sent."


@dataclass(frozen=True)
class Vote:
    """The first judgment of a pair: 1 for the challenger, -1 for the opponent, 0 for a tie."""

    comparison: int
    outcome: int
    scores: Mapping[str, Sequence[float]]
    annotator: int
    is_simulated: bool


@dataclass(frozen=True)
class Surprise:
    """A pair of which people and the optimised reward say the opposite; `scores` are of the challenger and opponent."""

    summary: str
    prompt: str
    challenger: str
    opponent: str
    scores: tuple[str, str]
    is_won: bool


@dataclass(frozen=True)
class Verdict:
    """A contest as it stands; `words` say what is decided, `next_step` what to do."""

    words: str
    next_step: str
    is_enough: bool
    basis: str
    win_rates: list[Row]
    win_rate_ticks: list[Tick]
    agreement: list[Row]
    agreement_ticks: list[Tick]
    plot: Plot | None
    e_value: str
    p_value: str
    num_open: int
    facts: list[tuple[str, str]]
    splits: Splits | None
    surprises: list[Surprise]


def verdict(contest: Contest, user: Any = None) -> Verdict:
    """What a user sees of a contest."""
    asked = list(contest.pairs.values_list("comparison", "challenger", "opponent", "scores"))
    votes = _votes(contest, {comparison: own for comparison, *own in asked})
    decided = [vote for vote in votes if vote.outcome]
    known = sequential.course([vote.outcome > 0 for vote in decided])
    still_open = Comparison.objects.filter(OPEN, contest_pairs__contest=contest)
    num_open = still_open.exclude(pk__in=_judged(contest).values("comparison")).count()
    accuracies = _accuracies(contest.run, user)
    win_rates = [_human(known), *_foreseen([scores for *_, scores in asked])]
    agreement = _agreement(decided, accuracies)
    scale = plots.scale_around([found for _, found, _ in win_rates if found])
    agreement_scale = plots.scale_around([found for _, found, _ in agreement if found])
    words, is_enough = _words(contest, known)
    return Verdict(
        words=words,
        next_step=_next_step(contest, known, len(votes), num_open, is_enough=is_enough),
        is_enough=is_enough,
        basis=_basis(contest, len(asked), votes, len(decided)),
        win_rates=[_row(*one, scale) for one in win_rates],
        win_rate_ticks=plots.strip_ticks(scale),
        agreement=[_row(*one, agreement_scale) for one in agreement],
        agreement_ticks=plots.strip_ticks(agreement_scale),
        plot=_plot(known) if decided else None,
        e_value=f"{known.e_values[-1]:.3g}" if decided else "1",
        p_value="below 0.001" if known.p_value < 0.001 else f"{known.p_value:.3f}",
        num_open=num_open,
        facts=_facts(contest, votes, len(decided), len(asked), num_open),
        splits=splits(contest.project, list(contest.pairs.values_list("comparison__prompt__digest", flat=True))),
        surprises=_surprises(contest, decided),
    )


Shown = tuple[str, Range | None, str]
"""What is measured, the figure, and what it means."""


def _row(label: str, found: Range | None, help: str, scale: Scale) -> Row:
    return Row(label, share(found), help, plots.strip(found, scale) if found else None)


def _votes(contest: Contest, pairs: dict[int, list[Any]]) -> list[Vote]:
    """The first judgment of each pair, in the order in which they were made."""
    votes: dict[int, Vote] = {}
    first = _first_rankings(contest)
    rows = _judged(contest).order_by("pk").values_list("pk", "comparison", "ranking", "annotator", "annotator__kind")
    for judgment, comparison, newest, annotator, kind in rows:
        ranking = first.get(judgment, newest)
        if comparison not in votes and (outcome := _outcome(ranking, *pairs[comparison][:2])) is not None:
            is_simulated = kind == Annotator.Kind.SIMULATED
            votes[comparison] = Vote(comparison, outcome, as_dict(pairs[comparison][2]), annotator, is_simulated)
    return list(votes.values())


def _judged(contest: Contest) -> QuerySet[Judgment]:
    return Judgment.objects.filter(comparison__contest_pairs__contest=contest, aspect=OVERALL, repeat=0)


def _first_rankings(contest: Contest) -> dict[int, Any]:
    """What judgments that have been revised said at first."""
    revisions = Revision.objects.filter(judgment__in=_judged(contest)).order_by("-pk")
    return dict(revisions.values_list("judgment", "values__ranking"))  # of each judgment the oldest comes last


def _outcome(ranking: Sequence[Sequence[int]], challenger: int, opponent: int) -> int | None:
    places = {response: place for place, group in enumerate(ranking) for response in group}
    if challenger not in places or opponent not in places:
        return None
    return int(np.sign(places[opponent] - places[challenger]))


# What is decided


def _words(contest: Contest, known: Course) -> tuple[str, bool]:
    """The verdict, and whether it is enough."""
    is_effect = contest.aim == Contest.Aim.EFFECT
    decision, num = sequential.decide(known, contest.points / 100 if is_effect else 0.0)
    said = {
        "better": f"People like {contest.challenger_name} better",
        "worse": f"People like {contest.challenger_name} less",
        "not_better": f"{contest.challenger_name} does not win {50 + contest.points:g}% or more",
        "go_on": "Nothing shows yet",
    }[decision]
    if is_effect:
        return (
            f"{said}. That is decided since vote {num}." if decision != "go_on" else f"{said}."
        ), decision != "go_on"
    low, high = known.interval
    width = high - low
    is_enough = width <= contest.points / 50
    return f"{said}. The win rate is known {'to' if is_enough else 'no closer than to'} {_within(width)}.", is_enough


def _within(width: float) -> str:
    return f"{50 * width:.1f} points to either side"


def _next_step(contest: Contest, known: Course, num_votes: int, num_open: int, *, is_enough: bool) -> str:
    if contest.closed_at:
        return "Closed: nobody is asked any more."
    if is_enough:
        return "Enough: what is left can be closed." if num_open else "Enough."
    more = _num_more(contest, known)
    share_decided = (len(known.wins) + 1) / (num_votes + 1)
    wanted = (
        f"Go on: about {round(more / share_decided):,} votes more" if more else "Go on: no number of votes in sight"
    )
    if more and more / share_decided > num_open:
        return f"{wanted}. Only {num_open:,} pairs wait for one."
    return f"{wanted}."


def _num_more(contest: Contest, known: Course) -> int | None:
    """Decided votes."""
    num = len(known.wins)
    if contest.aim == Contest.Aim.PRECISION:
        return max(1, sequential.num_votes_for_precision(contest.points / 100) - num)
    wins = float(known.wins[-1]) if num else 0.0
    return sequential.num_more(wins, num - wins, contest.points / 100)


def _basis(contest: Contest, num_asked: int, votes: Sequence[Vote], num_decided: int) -> str:
    told = f"{len(votes):,} of {num_asked:,} pairs are judged"
    ties = f", {len(votes) - num_decided:,} of them as ties" if len(votes) > num_decided else ""
    return f"{told}{ties}. In brackets: 95% intervals."


# Figures


def _human(known: Course) -> Shown:
    if not len(known.wins):
        return "People", None, HUMAN_HELP
    rate = float(known.wins[-1]) / len(known.wins)
    return "People", Range(rate, *known.interval), HUMAN_HELP


def _foreseen(scores: Sequence[Any]) -> list[Shown]:
    """Each reward's own win rate of the challenger."""
    found = []
    for name, (label, _) in REWARDS.items():
        signs = [sign for one in scores if (sign := _sign(as_dict(one).get(name)))]
        if signs:
            found.append((label, _share([sign > 0 for sign in signs]), FORESEEN_HELP))
    return found


def _agreement(decided: Sequence[Vote], accuracies: Mapping[str, Range]) -> list[Shown]:
    """How often each reward prefers what people prefer, here and where its accuracy was measured."""
    rows: list[Shown] = []
    for name, (label, _) in REWARDS.items():
        signs = [(sign, vote.outcome) for vote in decided if (sign := _sign(vote.scores.get(name)))]
        if signs:
            found = _share([sign == outcome for sign, outcome in signs])
            rows.append((f"{label} on these pairs", found, f"{len(signs):,} votes on this policy's own answers."))
            if name in accuracies:
                told = "On held-out judgments. Where it is higher, the policy has left what the reward knows."
                rows.append((f"{label} when it was made", accuracies[name], told))
    return rows


def _surprises(contest: Contest, decided: Sequence[Vote]) -> list[Surprise]:
    """Those of which the reward was surest."""
    opposite = [vote for vote in decided if _sign(vote.scores.get(OPTIMISED)) == -vote.outcome]
    surest = sorted(opposite, key=lambda vote: -abs(vote.scores[OPTIMISED][0] - vote.scores[OPTIMISED][1]))
    shown = {vote.comparison: vote for vote in surest[:NUM_SURPRISES]}
    related = ("comparison__prompt", "challenger", "opponent")
    pairs = contest.pairs.filter(comparison__in=shown).select_related(*related)
    by_comparison = {pair.comparison_id: pair for pair in pairs}
    return [_surprise(by_comparison[comparison], vote) for comparison, vote in shown.items()]


def _surprise(pair: ContestPair, vote: Vote) -> Surprise:
    messages = pair.comparison.prompt.messages
    challenger, opponent = (f"{score:.3g}" for score in vote.scores[OPTIMISED])
    return Surprise(
        summary(messages),
        clean(conversation(messages)),
        clean(pair.challenger.content),
        clean(pair.opponent.content),
        (challenger, opponent),
        is_won=vote.outcome > 0,
    )


def _sign(scores: Any) -> int:
    if not isinstance(scores, list) or len(scores) != 2 or not all(map(is_number, scores)):
        return 0
    return int(np.sign(scores[0] - scores[1]))


def _share(hits: Sequence[bool]) -> Range | None:
    found = bias.share(sum(hits), len(hits))
    return Range(found.value, found.low, found.high) if found else None


def _accuracies(run: TrainingRun, user: Any) -> dict[str, Range]:
    """The accuracy that each of the run's rewards had when it was made, where one run that the user sees made it."""
    paths = {name: split_names(str(run.config.get(field, ""))) for name, (_, field) in REWARDS.items()}
    saved = queries.saving_runs([path for own in paths.values() for path in own], user)
    results = dict(TrainingRun.objects.filter(pk__in=[one.pk for one in saved.values()]).values_list("pk", "result"))
    own = {name: results.get(saved[only[0]].pk) for name, only in paths.items() if len(only) == 1 and only[0] in saved}
    found = {name: measured for name, result in own.items() if (measured := _accuracy(result))}
    trained_here = _accuracy(run.result, "held_out_accuracy", "held_out_accuracy_interval")
    return ({"held_out_reward": trained_here} if trained_here else {}) | found


def _accuracy(result: Any, name: str = "accuracy", interval: str = "interval") -> Range | None:
    told = as_dict(result)
    return figure({"value": told.get(name), "interval": told.get(interval)})


def _facts(
    contest: Contest, votes: Sequence[Vote], num_decided: int, num_asked: int, num_open: int
) -> list[tuple[str, str]]:
    num_simulated = sum(vote.is_simulated for vote in votes)
    facts = [
        ("Votes that count", f"{num_decided:,}"),
        ("Ties", f"{len(votes) - num_decided:,}"),
        ("Annotators", f"{len({vote.annotator for vote in votes}):,}"),
        ("Pairs sent", f"{num_asked:,} of {contest.num_prompts:,}"),
        ("Waiting for a vote", f"{num_open:,}"),
    ]
    if contest.num_identical:
        facts.append(("Prompts with the same answer twice", f"{contest.num_identical:,}: ties, nobody is asked"))
    return [*facts, ("Votes by simulated annotators", f"{num_simulated:,}")] if num_simulated else facts


def _plot(known: Course) -> Plot:
    """The e-value over the votes, on a logarithmic axis, with the height at which a claim is made."""
    num = len(known.e_values)
    places = np.unique(np.linspace(0, num - 1, NUM_CORNERS).astype(int))
    values = np.clip(known.e_values[places], LOWEST, HIGHEST)
    top = 10.0 ** np.ceil(np.log10(max(100.0, values.max())))
    bottom = 10.0 ** np.floor(np.log10(min(0.1, values.min())))
    corners = [(0.0, 1.0)] + [(place + 1.0, float(value)) for place, value in zip(places, values, strict=True)]
    tens = [10.0**power for power in range(round(np.log10(bottom)), round(np.log10(top)) + 1)]
    steps = np.unique(np.linspace(0, num, plots.MAX_TICKS).round()).tolist()
    return Axes(Scale(0, num), Scale(bottom, top, is_log=True)).plot(
        [],
        about=f"The e-value after each of {num} votes; now it is {known.e_values[-1]:.3g}, and {CLAIM:g} makes a claim",
        x_label="Votes that are no ties",
        y_label="e-value",
        x_ticks=[(step, f"{step:g}") for step in steps],
        y_ticks=[(ten, f"{ten:g}") for ten in tens if ten != CLAIM],
        lines=[("guide", [(0.0, CLAIM), (float(num), CLAIM)]), ("course", corners)],
    )


# Lists, and the form's figures


@dataclass(frozen=True)
class Plan:
    """What sending would do: how many votes the aim needs, and how many pairs there are."""

    num_wanted: int
    num_pairs: int
    num_identical: int
    power: str
    """What the pairs are good for where they are too few; empty where they are enough."""
    more_query: str
    """Starts a comparison of the same policies on all test prompts, where they are too few and that has more."""
    splits: Splits | None

    @property
    def num_sent(self) -> int:
        return min(self.num_wanted, self.num_pairs)


def plan(run: TrainingRun, project: Project, *, challenger: str, opponent: str, aim: str, points: float) -> Plan:
    found = contest_samples.pairs(run, project, challenger, opponent)
    wanted = contest_services.num_votes(aim, points)
    power = _power(aim, points, wanted, len(found.pairs))
    return Plan(
        num_wanted=wanted,
        num_pairs=len(found.pairs),
        num_identical=found.num_identical,
        power=power,
        more_query=_more_query(run) if power else "",
        splits=splits(project, [messages_digest(pair.prompt) for pair in found.pairs]),
    )


def _more_query(run: TrainingRun) -> str:
    """A comparison that has answered all test prompts has no more."""
    if run.kind == TrainingRun.Kind.COMPARE_POLICIES and run.config.get("num_prompts") == 0:
        return ""
    return _compare_query(run, num_prompts="0")


def _power(aim: str, aimed: float, wanted: int, num_pairs: int) -> str:
    if not 0 < num_pairs < wanted:
        return ""
    if aim == Contest.Aim.EFFECT:
        found = sequential.power(0.5 + aimed / 100, num_pairs)
        return f"With {num_pairs:,} votes a win rate of {50 + aimed:g}% is found with a probability of {found:.0%}."
    low, high = sequential.confidence_interval(num_pairs / 2, num_pairs / 2)
    return f"With {num_pairs:,} votes it is known to {points(Range(float(high - low) / 2))} to either side."


@dataclass(frozen=True)
class Box:
    """What a run's page says of contests; `compare_query` starts what makes answers of a policy that has left none."""

    made: list[Contest]
    may_send: bool
    compare_query: str = ""


def box(run: TrainingRun, user: Any) -> Box | None:
    """Nothing for a run that has no policy's answers to show, nor can get them."""
    if contest_samples.challengers(run):
        made = Contest.objects.for_user(user).filter(run=run).select_related("run", "project")
        return Box(list(made), user.has_perm("annotate.change_project"))
    if not run.is_policy:
        return None
    return Box([], may_send=False, compare_query=_compare_query(run))


def _compare_query(run: TrainingRun, **settings: str) -> str:
    """Starts a comparison of a run's policies: those that it has compared, or its own with what that began as."""
    named = str(run.config.get("policies") or "")
    if run.is_policy:
        policies = [str(run.config.get("policy") or references.NEW_TINY), str(run.model_dir.resolve())]
        named = ", ".join(one for one in policies if one != references.NEW_TINY)
    on = {"preference_set": run.preference_set_id} if run.preference_set_id else {}
    return urlencode({"policies": named, **on, **settings})
