"""Score responses with the members of an ensemble, so that what they disagree about can be asked first.

    prompts.jsonl     a line for each prompt: {"id", "prompt", "responses", "ranking": []}
    member-0.jsonl …  a line for each prompt: {"scores", "num_truncated"}, written as they are computed
    scores.jsonl      a line for each prompt: {"id", "scores": a list of K for each member}, in nats; written last

One member is in memory at a time, and prompts pass through in chunks, so memory grows neither with the number of
members nor with that of prompts. A run that was stopped goes on after the last whole chunk of the member it was at.
"""

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from training.alignment.combiner import member_paths
from training.alignment.config import ConfigError, ScoreComparisonsConfig
from training.alignment.evaluation import scale
from training.alignment.preferences import read_rankings
from training.alignment.reward import COMBINER, Scored, as_json, load_reward, score_cache
from training.alignment.reward_model import CHUNK, join_processes, score_rankings
from training.alignment.run_dir import RunDir, StopFlag, whole_lines

PROMPTS, SCORES = "prompts.jsonl", "scores.jsonl"


def score_comparisons(config: ScoreComparisonsConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """Score every response in prompts.jsonl with every reward model; the scores are in scores.jsonl.

    Returns:
        {"num_members", "num_prompts", "num_responses", "num_truncated"}, the last one over all members.

    Raises:
        ConfigError: fewer than two reward models, one that is none, or a line that is no prompt.
        Interrupted: `stop` became true.
    """
    members = disagreeing([run_dir.locate(name) for name in config.members])
    if len(members) < 2:
        raise ConfigError("reward_models: one model disagrees with nobody; name two or more")
    accelerator = join_processes()
    num_prompts = sum(1 for _ in read_rankings(run_dir.path / PROMPTS))
    for number in range(len(members)):
        _Member(config, run_dir, accelerator, members=members, number=number, num_prompts=num_prompts).score(stop)
    counts = _join(run_dir, len(members)) if accelerator.is_main_process else {}
    return {"num_members": len(members), "num_prompts": num_prompts, **counts}


def disagreeing(paths: Sequence[str]) -> list[str]:
    """The rewards at these paths, each once; a combiner stands for those of its members that take part."""
    found: dict[str, None] = {}
    for path in paths:
        own = member_paths(Path(path), is_used=True) if (Path(path) / COMBINER).is_file() else []
        found |= dict.fromkeys(disagreeing(own) if own else [path])
    return list(found)


class _Member:
    """One reward model's part of the run."""

    def __init__(
        self,
        config: ScoreComparisonsConfig,
        run_dir: RunDir,
        accelerator: Accelerator,
        *,
        members: Sequence[str],
        number: int,
        num_prompts: int,
    ) -> None:
        self.config, self.run_dir, self.accelerator = config, run_dir, accelerator
        self.members, self.number, self.num_prompts = members, number, num_prompts
        self.path = _member_path(run_dir, number)

    def score(self, stop: StopFlag) -> None:
        done = self._resume()
        if done == self.num_prompts:
            return
        reward = load_reward(
            self.members[self.number],
            self.accelerator.device,
            max_length=self.config.max_length,
            max_tokens=self.config.max_tokens,
            cache=score_cache(),
        )
        nats, _ = scale(reward)
        prompts = islice(read_rankings(self.run_dir.path / PROMPTS), done, None)
        while chunk := list(islice(prompts, CHUNK)):
            for scored in score_rankings(self.accelerator, reward, chunk, stop):
                done += len(chunk)
                self._keep(scored, nats, done)

    def _resume(self) -> int:
        """How many prompts are scored already; what comes after the last whole chunk is cut off."""
        num_lines, size = whole_lines(self.path, CHUNK, self.num_prompts)
        self.accelerator.wait_for_everyone()  # all have counted before one cuts
        if self.accelerator.is_main_process and self.path.exists():
            os.truncate(self.path, size)
        self.accelerator.wait_for_everyone()
        return num_lines

    def _keep(self, scored: list[Scored], nats: float, done: int) -> None:
        if not self.accelerator.is_main_process:
            return
        with self.path.open("a", encoding="utf-8") as file:
            for one in scored:
                scores = as_json([nats * score for score in one.scores])
                file.write(json.dumps({"scores": scores, "num_truncated": one.num_truncated}) + "\n")
        progress = (self.number + done / self.num_prompts) / len(self.members)
        step = self.number * self.num_prompts + done
        self.run_dir.log(step=step, phase="score", progress=progress, member=self.number)


def _member_path(run_dir: RunDir, number: int) -> Path:
    return run_dir.path / f"member-{number}.jsonl"


def _join(run_dir: RunDir, num_members: int) -> dict[str, int]:
    """Write scores.jsonl from the members' files."""
    num_responses = num_truncated = 0
    scratch = run_dir.path / f"{SCORES}.partial"
    with ExitStack() as stack:
        prompts = read_rankings(run_dir.path / PROMPTS)
        members = [
            stack.enter_context(_member_path(run_dir, number).open(encoding="utf-8")) for number in range(num_members)
        ]
        joined = stack.enter_context(scratch.open("w", encoding="utf-8"))
        for ranked, *lines in zip(prompts, *members, strict=True):
            own = [json.loads(line) for line in lines]
            num_responses += len(ranked.responses)
            num_truncated += sum(one["num_truncated"] for one in own)
            joined.write(json.dumps({"id": ranked.id, "scores": [one["scores"] for one in own]}) + "\n")
    scratch.replace(run_dir.path / SCORES)
    return {"num_responses": num_responses, "num_truncated": num_truncated}
