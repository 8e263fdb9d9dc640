"""Guiding annotation: a project's responses into a run's directory, and their scores back to `annotate`.

What both ways have to wait for is long for a large project; `beat` is called all the while, so that the run is not
taken for dead.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.db import transaction

from annotate import guidance
from annotate.guidance import Asked, ScoredPrompt
from training import combination_queries
from training.alignment.run_dir import RunDir, write_json
from training.models import TrainingRun

PROMPTS, SCORES, PROPOSED = "prompts.jsonl", "scores.jsonl", "proposed.json"
Beat = Callable[[], None]


class CannotGuide(Exception):
    """The run has nothing to score, or scores that nothing can be told from; the message says what."""


def place_prompts(run: TrainingRun, run_dir: RunDir, beat: Beat = lambda: None) -> None:
    """Write what the run is to score; a later attempt keeps it, so that scores still belong to lines.

    Raises:
        CannotGuide: the project has nothing to score.
        OSError: the disk cannot be written.
    """
    path = run_dir.path / PROMPTS
    if path.exists():
        return
    assert run.project is not None
    scratch = path.with_name(f"{PROMPTS}.partial")
    num_prompts = 0
    with scratch.open("w", encoding="utf-8") as file:
        for row in guidance.prompts_to_score(run.project, is_only_open=not run.config["num_pairs"]):
            file.write(json.dumps({**row, "id": str(row["id"]), "ranking": []}) + "\n")
            num_prompts += 1
            beat()
        file.flush()
        os.fsync(file.fileno())
    if num_prompts == 0:
        raise CannotGuide(f"Project {run.project} has no open comparison to score.")
    scratch.replace(path)


def hand_over(run: TrainingRun, run_dir: RunDir, beat: Beat = lambda: None) -> dict[str, int]:
    """Give a finished run's scores to `annotate`. A worker that does it again makes no further pairs.

    Returns:
        {"num_new_pairs", "num_comparisons"}: comparisons made, and comparisons that got a priority.

    Raises:
        CannotGuide: the scores are no finite numbers.
    """
    proposed = run_dir.path / PROPOSED
    if not proposed.exists():
        number = run.config["num_pairs"]
        write_json(proposed, propose_pairs(run, number, beat) if number else 0)
    num_new_pairs = json.loads(proposed.read_text(encoding="utf-8"))
    return {"num_new_pairs": num_new_pairs, "num_comparisons": prioritise(run, beat)}


def propose_pairs(run: TrainingRun, number: int, beat: Beat = lambda: None) -> int:
    """Make comparisons of the most informative pairs of responses that the run has scored; return how many.

    Raises:
        CannotGuide: the scores are no finite numbers.
    """
    with _told_in_words():
        return guidance.propose_pairs(scores=scored_prompts(run.run_dir, beat), number=number, **_how(run))


def prioritise(run: TrainingRun, beat: Beat = lambda: None) -> int:
    """Order the project's open comparisons by the run's scores; return how many.

    Raises:
        CannotGuide: the scores are no finite numbers.
    """
    with _told_in_words():
        return guidance.accept_scores(scores=scored_prompts(run.run_dir, beat), progress=beat, **_how(run))


@transaction.atomic
def ask_disagreements(*, run: TrainingRun) -> Asked:
    """Put before annotators what the members of a combination disagree about; asked for again they add nothing."""
    TrainingRun.objects.select_for_update().get(pk=run.pk)  # of two presses the second finds them open
    assert run.project is not None
    return guidance.ask_first(project=run.project, pairs=combination_queries.disagreeing_pairs(run))


def _how(run: TrainingRun) -> dict[str, Any]:
    return {"project": run.project, "strategy": run.config["strategy"], "seed": run.config["seed"]}


@contextmanager
def _told_in_words() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise CannotGuide(f"The reward models' scores cannot be used: {error}") from error


def scored_prompts(folder: Path, beat: Beat = lambda: None) -> Iterator[ScoredPrompt]:
    """What the run has scored, prompt by prompt, each response with the score of each member."""
    with (folder / PROMPTS).open(encoding="utf-8") as prompts, (folder / SCORES).open(encoding="utf-8") as scores:
        for prompt, scored in zip(map(json.loads, prompts), map(json.loads, scores), strict=True):
            beat()
            if any(None in scores for scores in scored["scores"]):
                continue  # a member could not score one: what they disagree about is not known
            responses = [response["id"] for response in prompt["responses"]]
            by_response = zip(*scored["scores"], strict=True)
            yield ScoredPrompt(int(prompt["id"]), dict(zip(responses, by_response, strict=True)))
