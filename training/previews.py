"""Trying a judge: a few of a project's comparisons into a run's directory, and what it said of them beside people."""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from annotate.models import OVERALL, Comparison, Judgment, Option, Project
from training import launch
from training.alignment.config import ConfigError
from training.alignment.member_config import MemberConfig, read_member
from training.alignment.run_dir import RunDir, write_whole
from training.models import TrainingRun
from training.report_figures import as_dict, dicts, is_number

PROMPTS, PREVIEW = "prompts.jsonl", "preview.json"
NUM_LOOKED_AT = 1000  # of the newest judgments
MAX_SHOWN = 40_000  # characters of one text


def place_comparisons(run: TrainingRun, run_dir: RunDir) -> None:
    """Write the comparisons that the judge is asked about; a later attempt keeps them.

    Raises:
        CannotPrepare: the project has none.
        ConfigError: the judge's folder holds no member.
        OSError: a file cannot be read or written.
    """
    path = run_dir.path / PROMPTS
    if path.exists():
        return
    assert run.project is not None
    aspect = read_member(Path(run.config["member"])).aspect
    rows = [_row(one) for one in comparisons_to_show(run.project, aspect, run.config["num_comparisons"])]
    if not rows:
        raise launch.CannotPrepare(f"Project {run.project} has no comparison yet.")
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def comparisons_to_show(project: Project, aspect: str, number: int) -> list[Comparison]:
    """Those that were judged last, for this aspect where there are such; else those that were not judged yet."""
    own = Comparison.objects.filter(project=project).select_related("prompt")
    found: dict[int, None] = {}
    for wanted in dict.fromkeys((aspect, OVERALL)):
        judged = Judgment.objects.filter(project=project, aspect=wanted).order_by("-pk")
        found |= dict.fromkeys(judged.values_list("comparison", flat=True)[:NUM_LOOKED_AT])
    chosen = list(found)[:number] or list(own.order_by("pk").values_list("pk", flat=True)[:number])
    by_pk = own.in_bulk(chosen)
    return [by_pk[pk] for pk in chosen]


def _row(comparison: Comparison) -> dict[str, Any]:
    options = Option.objects.filter(comparison=comparison).select_related("response").order_by("position")
    responses = [{"id": option.response_id, "content": option.response.content} for option in options]
    return {"id": str(comparison.pk), "prompt": comparison.prompt.messages, "responses": responses}


# The page


@dataclass(frozen=True)
class ShownResponse:
    letter: str
    text: str
    score: str
    is_best: bool
    said: str
    """By annotators."""


@dataclass(frozen=True)
class ShownQuestion:
    """Something the judge was asked."""

    about: str
    text: str
    answer: str
    reply: str
    probabilities: list[dict[str, str]]
    is_truncated: bool


@dataclass(frozen=True)
class ShownComparison:
    number: int
    pk: int
    prompt: list[dict[str, str]]
    responses: list[ShownResponse]
    verdict: str
    seconds: str
    questions: list[ShownQuestion]


@dataclass(frozen=True)
class Preview:
    run: TrainingRun
    config: MemberConfig | None
    comparisons: list[ShownComparison]
    error: str


def preview(run: TrainingRun) -> Preview:
    """What a run asked its judge, as far as it has got. Any part of what it left may be missing."""
    rows, told = _rows(run.run_dir / PROMPTS), {str(one.get("id")): one for one in _list(run.run_dir / PREVIEW)}
    config = member_of(run)
    judged = _judged([int(row["id"]) for row in rows], config.aspect if config else OVERALL)
    shown = [
        shown_comparison(number, row, told.get(row["id"], {}), judged.get(int(row["id"]), Judged()))
        for number, row in enumerate(rows, start=1)
    ]
    return Preview(run, config, shown, run.error)


def member_of(run: TrainingRun) -> MemberConfig | None:
    """The member that a run asks; nothing where its folder is gone."""
    try:
        return read_member(Path(run.config["member"]))
    except (OSError, ConfigError):
        return None


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except (OSError, ValueError):
        return []


def _list(path: Path) -> list[dict[str, Any]]:
    try:
        return dicts(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return []


@dataclass(frozen=True)
class Judged:
    """What people said of a comparison: rankings as groups of response ids, the best first."""

    rankings: Sequence[Sequence[Sequence[int]]] = ()
    of: str = ""
    """What they judged, where it is not what the judge is asked about."""

    def said(self, response: int, among: Collection[int]) -> str:
        if not self.rankings:
            return "not judged yet"
        number = f"first in {self.num_first(response, among)} of {len(self.rankings)} judgments"
        return f"{number} ({self.of})" if self.of else number

    def num_first(self, response: int, among: Collection[int]) -> int:
        """How often it came first; what an annotator wrote instead is not among the responses, and left out."""
        bests = (next((group for group in ranking if set(group) & set(among)), ()) for ranking in self.rankings)
        return sum(response in best for best in bests)


def _judged(comparisons: Sequence[int], aspect: str) -> dict[int, Judged]:
    """By comparison, judgments of the aspect; where there are none, overall ones."""
    found: dict[tuple[int, str], list[Any]] = {}
    judged = Judgment.objects.filter(comparison__in=comparisons, aspect__in=(aspect, OVERALL)).order_by("pk")
    for pk, judged_aspect, ranking in judged.values_list("comparison", "aspect", "ranking"):
        found.setdefault((pk, judged_aspect), []).append(ranking)
    overall = {pk: Judged(own, OVERALL) for (pk, of), own in found.items() if of == OVERALL}
    return overall | {pk: Judged(own) for (pk, of), own in found.items() if of == aspect}


def shown_comparison(number: int, row: dict[str, Any], told: dict[str, Any], judged: Judged) -> ShownComparison:
    letters = [letter_of(place) for place in range(len(row["responses"]))]
    scores = _scores(told, len(letters))
    best = max((score for score in scores if score is not None), default=None)
    ids = [response["id"] for response in row["responses"]]
    liked = [judged.num_first(response, ids) for response in ids]
    responses = [
        ShownResponse(
            letter,
            response["content"][:MAX_SHOWN],
            score="" if score is None else f"{score:.3g}",
            is_best=score is not None and score == best,
            said=judged.said(response["id"], ids),
        )
        for letter, response, score in zip(letters, row["responses"], scores, strict=True)
    ]
    return ShownComparison(
        number,
        int(row["id"]),
        prompt=[{"role": one["role"], "content": one["content"][:MAX_SHOWN]} for one in row["prompt"]],
        responses=responses,
        verdict=_verdict(letters, scores, liked),
        seconds=f"{told['seconds']:.2f} s" if is_number(told.get("seconds")) else "",
        questions=[_question(one, letters) for one in dicts(told.get("questions"))],
    )


def letter_of(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else str(place + 1)


def _scores(told: dict[str, Any], number: int) -> list[float | None]:
    scores = told.get("scores")
    found = [one if is_number(one) else None for one in scores] if isinstance(scores, list) else []
    return (found + [None] * number)[:number]


def _verdict(letters: Sequence[str], scores: Sequence[float | None], liked: Sequence[int]) -> str:
    """Whom the judge and most annotators put first."""
    if not any(score is not None for score in scores):
        return ""
    judged = _tops(letters, [-math.inf if score is None else score for score in scores])
    said = f"The judge puts {_and(judged)} first"
    if not any(liked):
        return f"{said}."
    people = _tops(letters, liked)
    if len(people) > 1:
        return f"{said}; annotators are divided between {_and(people)}."
    if judged == people:
        return f"{said}, as annotators most often do."
    return f"{said}, annotators most often {people[0]}."


def _tops(letters: Sequence[str], values: Sequence[float]) -> list[str]:
    return [letter for letter, value in zip(letters, values, strict=True) if value == max(values)]


def _and(letters: Sequence[str]) -> str:
    return letters[0] if len(letters) == 1 else f"{', '.join(letters[:-1])} and {letters[-1]}"


def _question(told: dict[str, Any], letters: Sequence[str]) -> ShownQuestion:
    listed = told.get("responses")
    places = [
        one for one in (listed if isinstance(listed, list) else []) if isinstance(one, int) and 0 <= one < len(letters)
    ]
    named = [letters[place] for place in places]
    value, failure = told.get("value"), told.get("failure")
    return ShownQuestion(
        about=f"{named[0]} shown as A, {named[1]} as B" if len(named) == 2 else f"Response {_and(named or ['?'])}",
        text=str(told.get("text", "")),
        answer=f"{value:.3g}" if is_number(value) else f"no answer: {failure or 'unknown'}",
        reply=str(told.get("reply") or ""),
        probabilities=[
            {"option": str(option), "share": f"{share:.1%}", "percent": f"{100 * share:.1f}"}
            for option, share in as_dict(told.get("probabilities")).items()
            if is_number(share)
        ],
        is_truncated=bool(told.get("is_truncated")),
    )
