"""Score responses from a file, however many there are: a line in, a line out, memory for a few hundred of them.

    responses file    a line for each prompt: {"prompt": messages or text, "responses": […]} or {"prompt", "response"};
                      a preference set is such a file
    scores.jsonl      a line for each: {"id", "scores", "num_truncated"}, and "aspects" where there are several heads

A prompt is computed once for all responses of its line. A run that was stopped goes on after the last whole chunk.
"""

import json
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object

from training.alignment.config import ConfigError, ScoreConfig
from training.alignment.preferences import PromptedResponses, read_responses
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
    model = RewardModel.load(
        run_dir.locate(config.reward_model), accelerator.device, config.max_length, config.max_tokens
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
        mine = _score(model, chunk[accelerator.process_index :: accelerator.num_processes])
        shares = gather_object([mine]) if accelerator.num_processes > 1 else [mine]
        lines = [shares[place % len(shares)][place // len(shares)] for place in range(len(chunk))]
        done += len(chunk)
        if accelerator.is_main_process:
            with target.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            run_dir.log(step=done, phase="score", progress=done / num_prompts)
    return _counts(target) if accelerator.is_main_process else {}


def _score(model: RewardModel, rows: Sequence[PromptedResponses]) -> list[dict[str, Any]]:
    encoded = model.encode_all([(row.prompt, text) for row in rows for text in row.responses])
    rewards = model.rewards(encoded).astype(float)
    scores = (rewards - np.array(model.means)) / np.array(model.stds)
    found: list[dict[str, Any]] = []
    start = 0
    for row in rows:
        own = slice(start, start + len(row.responses))
        told: dict[str, Any] = {"id": row.id, "scores": scores[own, model.head].tolist()}
        if len(model.aspects) > 1:
            told["aspects"] = {aspect: scores[own, head].tolist() for head, aspect in enumerate(model.aspects)}
        found.append({**told, "num_truncated": sum(one.is_truncated for one in encoded[own])})
        start = own.stop
    return found


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
