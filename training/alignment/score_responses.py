"""Score responses from a file, however many there are: a line in, a line out, memory for a few hundred of them.

    responses file    a line for each prompt: {"prompt": messages or text, "responses": […]} or {"prompt", "response"};
                      a preference set is such a file
    scores.jsonl      a line for each: {"id", "scores", "num_truncated"}, "aspects" where there are several heads, and
                      "spread" between a combiner's members; null where a response could not be scored

A prompt is computed once for all responses of its line. A run that was stopped goes on after the last whole chunk.
"""

import json
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from training.alignment.config import ConfigError, ScoreConfig
from training.alignment.preferences import PromptedResponses, read_responses
from training.alignment.reward import OVERALL, Reward, Scored, as_json, load_reward, score_cache, uncached
from training.alignment.reward_model import CHUNK, RewardModel, agree, join_processes
from training.alignment.run_dir import Interrupted, RunDir, StopFlag, whole_lines

SCORES = "scores.jsonl"


def score_responses(config: ScoreConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """Score every line of the file; the scores are in scores.jsonl, in the file's order.

    Returns:
        {"num_prompts", "num_responses", "num_truncated"}.

    Raises:
        ConfigError: a line holds no prompt with responses; the message tells the line and the field.
        Interrupted: `stop` became true.
    """
    accelerator = join_processes()
    source, target = run_dir.resolve(config.responses), run_dir.path / SCORES
    reward = load_reward(
        run_dir.locate(config.reward_model),
        accelerator.device,
        max_length=config.max_length,
        max_tokens=config.max_tokens,
        cache=score_cache(),
    )
    num_prompts = sum(1 for _ in read_responses(source))  # and every line is known to be in order
    if num_prompts == 0:
        raise ConfigError("responses: the file is empty")
    done = _resume(target, accelerator.is_main_process)
    accelerator.wait_for_everyone()
    rows = islice(read_responses(source), done, None)
    while chunk := list(islice(rows, CHUNK)):
        if agree(accelerator, stop()):
            raise Interrupted(f"stopped after scoring {done} of {num_prompts} prompts")
        mine = _score(reward, chunk[accelerator.process_index :: accelerator.num_processes])
        shares = gather_object([mine]) if accelerator.num_processes > 1 else [mine]
        lines = [shares[place % len(shares)][place // len(shares)] for place in range(len(chunk))]
        done += len(chunk)
        if accelerator.is_main_process:
            with target.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            run_dir.log(step=done, phase="score", progress=done / num_prompts)
    return _counts(target) if accelerator.is_main_process else {}


def _score(reward: Reward, rows: Sequence[PromptedResponses]) -> list[dict[str, Any]]:
    by_aspect = _by_aspect(reward, rows)
    usual = OVERALL if OVERALL in by_aspect else reward.aspects[0]
    found = []
    for number, row in enumerate(rows):
        own = by_aspect[usual][number]
        told: dict[str, Any] = {"id": row.id, "scores": as_json(own.scores)}
        if len(by_aspect) > 1:
            told["aspects"] = {aspect: as_json(scored[number].scores) for aspect, scored in by_aspect.items()}
        if own.spread is not None:
            told["spread"] = as_json(own.spread)
        found.append({**told, "num_truncated": own.num_truncated})
    return found


def _by_aspect(reward: Reward, rows: Sequence[PromptedResponses]) -> dict[str, list[Scored]]:
    if len(reward.aspects) == 1:
        return {reward.aspects[0]: reward.score_prompts(rows)}
    model = uncached(reward)
    if not isinstance(model, RewardModel):
        return {aspect: reward.score_prompts(rows, aspect) for aspect in reward.aspects}
    scored = iter(model.score_aspects([row for row in rows for _ in reward.aspects], [*reward.aspects] * len(rows)))
    by_row = [[next(scored) for _ in reward.aspects] for _ in rows]  # one pass: equal texts are computed once
    return {aspect: [row[head] for row in by_row] for head, aspect in enumerate(reward.aspects)}


def _resume(target: Path, is_main: bool) -> int:
    """How many lines are there in whole chunks; what comes after them is cut off."""
    num_lines, size = whole_lines(target, CHUNK)
    if is_main and target.exists():
        os.truncate(target, size)
    return num_lines


def _counts(target: Path) -> dict[str, int]:
    counts = {"num_prompts": 0, "num_responses": 0, "num_truncated": 0}
    with target.open(encoding="utf-8") as file:
        for line in file:
            told = json.loads(line)
            counts["num_prompts"] += 1
            counts["num_responses"] += len(told["scores"])
            counts["num_truncated"] += told["num_truncated"]
    return counts
