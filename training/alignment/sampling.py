"""Sample responses to a range of prompts and score them: the work that rejection sampling gives to many workers.

Prompts are taken in chunks that are laid out from the first line of the file, whichever part of it is sampled here and
by however many processes. A chunk is sampled by itself and scored by itself, so that what comes of a prompt does not
depend on who did which part, to the last bit of a reward: a batch put together otherwise would round otherwise.

    responses.jsonl   a line for each chunk: {"responses", "num_tokens", "backend", "seconds"}
    rewards.jsonl     a line for each chunk: {"rewards", "seconds"}
    the output        a line for each prompt: {"prompt", "responses", "rewards"}; written last, as a whole
    beside it         what the result tells, for who has the output only: samples.json beside samples.jsonl

A run that was stopped goes on after the last whole chunk. First all is sampled, then all is scored, so that policy and
reward need not be in memory together. A text that a prompt got several times is scored once.

**An empty response** is scored like any other, here and wherever responses are: if silence were worth nothing at all, a
policy could escape a low reward by it. It is only never selected, for it leaves nothing to fine-tune on.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.utils import gather_object

from training.alignment.config import ConfigError, SampleConfig
from training.alignment.generation import Generator, texts
from training.alignment.preferences import Messages, PromptedResponses, read_prompts
from training.alignment.reward import Scored, as_json, load_reward, score_cache
from training.alignment.reward_model import agree, join_processes
from training.alignment.run_dir import Interrupted, RunDir, StopFlag, append_lines, whole_lines, write_json, write_whole

BATCHES_TOGETHER = 4
"""In a chunk at the most: where some responses of a batch have ended, those of the next one take their places."""
NUM_CHUNKS = 16
"""That a file is divided into where chunks are then no smaller than a batch, so that as many may work on it."""
SHARE_OF_GENERATING = 0.8  # of the progress, where there is something to score
RESPONSES, REWARDS = "responses.jsonl", "rewards.jsonl"

Chunk = list[Messages]
Work = Callable[[int], dict[str, Any]]
"""What becomes of the chunk of a number: the line of the file."""


def run_sampling(config: SampleConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """Sample and score the prompts in lines `first` to `first + num_prompts` of the file.

    Returns:
        {"output", "num_prompts", "num_samples" for each of them, "num_tokens", "num_missing" rewards, "backend",
        "seconds_generating", "seconds_scoring"}; seconds are those of all processes together.

    Raises:
        ConfigError: there is no such prompt, or a model cannot serve.
        Interrupted: `stop` became true; what is finished is left.
    """
    if not config.policy:
        raise ConfigError("policy: none is given")
    return _Sampling(config, run_dir, stop, join_processes()).result()


def chunk_size(config: SampleConfig, num_prompts: int) -> int:
    """Prompts in a chunk of a file of so many; whatever part of it is asked for, and however many share the work."""
    batch = max(1, config.generation_batch_size // config.num_samples)
    largest = max(1, BATCHES_TOGETHER * config.generation_batch_size // config.num_samples)
    return min(max(batch, -(-num_prompts // NUM_CHUNKS)), largest)


def chunks(lines: range, size: int) -> list[range]:
    """Chunks of consecutive lines, which begin at multiples of `size` whatever the first line is."""
    begins = [lines.start, *range((lines.start // size + 1) * size, lines.stop, size)]
    return [range(begin, min((begin // size + 1) * size, lines.stop)) for begin in begins if begin < lines.stop]


def shards(num_prompts: int, num_shards: int, size: int) -> list[range]:
    """So many parts of whole chunks, as even as these allow; fewer where there are not enough chunks."""
    num_chunks = -(-num_prompts // size)
    ends = [min(num_prompts, number * num_chunks // num_shards * size) for number in range(num_shards + 1)]
    return [range(begin, end) for begin, end in pairwise(ends) if begin < end]


def told_beside(output: Path) -> Path:
    """The file that tells how an output came about; it is there before the output."""
    return output.with_suffix(".json")


def read_samples(path: Path) -> Iterator[dict[str, Any]]:
    """Lines as `run_sampling` writes them; rewards are nan where they are null."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield row | {"rewards": [float("nan") if one is None else one for one in row["rewards"]]}


class _Sampling:
    """One run: its two stages, and what is made of them."""

    def __init__(self, config: SampleConfig, run_dir: RunDir, stop: StopFlag, accelerator: Accelerator) -> None:
        self.config, self.run_dir, self.stop, self.accelerator = config, run_dir, stop, accelerator
        end = config.first + config.num_prompts if config.num_prompts else None
        given = list(read_prompts(run_dir.resolve(config.prompts)))
        prompts = given[config.first : end]
        if not prompts:
            raise ConfigError(f"prompts: the file has none from line {config.first} on")
        lines = range(config.first, config.first + len(prompts))
        places = chunks(lines, chunk_size(config, len(given)))
        self.chunks = [[prompts[line - config.first] for line in place] for place in places]
        self.num_prompts = len(prompts)

    def result(self) -> dict[str, Any]:
        config = self.config
        end = SHARE_OF_GENERATING if config.reward_model else 1.0
        sampled = self._each_chunk(RESPONSES, "generate", (0.0, end), self._generating)
        responses = [own for line in sampled for own in line["responses"]]
        scored = self._scored([line["responses"] for line in sampled], (end, 1.0))
        rewards = [own for line in scored for own in line["rewards"]]
        told = {
            "output": config.output,
            "num_prompts": self.num_prompts,
            "num_samples": config.num_samples,
            "num_tokens": sum(line["num_tokens"] for line in sampled),
            "num_missing": sum(reward is None for own in rewards for reward in own),
            "backend": sampled[-1]["backend"],
            "seconds_generating": sum(line["seconds"] for line in sampled),
            "seconds_scoring": sum(line["seconds"] for line in scored),
        }
        if self.accelerator.is_main_process:
            self._write(told, responses, rewards)
        self.accelerator.wait_for_everyone()
        return told

    def _each_chunk(
        self, name: str, phase: str, progress: tuple[float, float], begin: Callable[[], tuple[Work, Callable[[], None]]]
    ) -> list[dict[str, Any]]:
        """The lines of a stage's file, of which those that are not there yet are made.

        Args:
            begin: loads what the stage needs, where there is something left to do; what works on one chunk, and what
                gives the memory back.
        """
        path = self.run_dir.path / name
        done = self._resume(path)
        if done < len(self.chunks):
            work, end = begin()
            size = self.accelerator.num_processes
            for start in range(done, len(self.chunks), size):
                self._leave_if_asked()
                lines = self._side_by_side(work, start)
                if self.accelerator.is_main_process:
                    append_lines(path, lines)
                    share = (start + len(lines)) / len(self.chunks)
                    self.run_dir.log(
                        step=sum(map(len, self.chunks[: start + len(lines)])),
                        phase=phase,
                        progress=progress[0] + (progress[1] - progress[0]) * share,
                    )
            end()
            self.accelerator.wait_for_everyone()
        return _read_lines(path)

    def _side_by_side(self, work: Work, start: int) -> list[dict[str, Any]]:
        """The lines of as many chunks as there are processes: each does one, all get all."""
        number = start + self.accelerator.process_index
        mine = [_timed(work, number)] if number < len(self.chunks) else []
        return gather_object(mine) if self.accelerator.num_processes > 1 else mine

    def _generating(self) -> tuple[Work, Callable[[], None]]:
        config = self.config
        generator = Generator(self.run_dir.locate(config.policy), None, config, self.accelerator.device)

        def work(number: int) -> dict[str, Any]:
            prompts = self.chunks[number]
            generated = generator.generate_ids(prompts, config.num_samples, config.seed, self._between_batches)
            return {
                "responses": texts(generator.tokenizer, generated),
                "num_tokens": sum(len(one.ids) + one.is_ended for own in generated for one in own),
                "backend": generator.name,
            }

        return work, generator.close

    def _between_batches(self, done: int, of: int) -> None:
        """Alone, a process can leave within a chunk; several have to agree first."""
        if self.accelerator.num_processes == 1:
            self._leave_if_asked()

    def _scored(self, responses: Sequence[list[list[str]]], progress: tuple[float, float]) -> list[dict[str, Any]]:
        if not self.config.reward_model:
            return [{"rewards": [[None] * len(texts) for texts in own], "seconds": 0.0} for own in responses]

        def begin() -> tuple[Work, Callable[[], None]]:
            path = self.run_dir.locate(self.config.reward_model)
            reward = load_reward(path, self.accelerator.device, cache=score_cache())
            return lambda number: {"rewards": score(reward, self.chunks[number], responses[number])}, lambda: None

        return self._each_chunk(REWARDS, "score", progress, begin)

    def _write(
        self, told: dict[str, Any], responses: Sequence[list[str]], rewards: Sequence[list[float | None]]
    ) -> None:
        prompts = (prompt for chunk in self.chunks for prompt in chunk)
        output = self.run_dir.resolve(self.config.output)
        write_json(told_beside(output), told)
        write_whole(
            output,
            "".join(
                json.dumps({"prompt": prompt, "responses": texts, "rewards": own}) + "\n"
                for prompt, texts, own in zip(prompts, responses, rewards, strict=True)
            ),
        )

    def _resume(self, path: Path) -> int:
        """How many chunks are done; what a kill left half written is cut off."""
        num_lines, size = whole_lines(path, 1)
        self.accelerator.wait_for_everyone()  # all have counted before one cuts
        if self.accelerator.is_main_process and path.exists():
            os.truncate(path, size)
        self.accelerator.wait_for_everyone()
        return num_lines

    def _leave_if_asked(self) -> None:
        if agree(self.accelerator, self.stop()):
            raise Interrupted("stopped between two batches")


class Scores(Protocol):
    """A reward, or several behind one."""

    def score_prompts(self, prompts: Sequence[PromptedResponses]) -> list[Scored]: ...


def score(reward: Scores, prompts: Sequence[Messages], responses: Sequence[Sequence[str]]) -> list[list[float | None]]:
    """Rewards of each prompt's responses: each different text scored once, None where missing.

    Args:
        prompts: (B,).
        responses: (B, n).
    """
    distinct = [tuple(dict.fromkeys(own)) for own in responses]
    asked = [PromptedResponses(prompt, own) for prompt, own in zip(prompts, distinct, strict=True)]
    scored = reward.score_prompts(asked) if asked else []
    known = [dict(zip(own, as_json(one.scores), strict=True)) for own, one in zip(distinct, scored, strict=True)]
    return [[found[text] for text in own] for found, own in zip(known, responses, strict=True)]


def _timed(work: Work, number: int) -> dict[str, Any]:
    begun = time.monotonic()
    return {**work(number), "seconds": time.monotonic() - begun}


def _read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
