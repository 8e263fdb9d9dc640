"""Training a reward model on the same rankings: rankings a second here over those of TRL's RewardTrainer.

TRL knows pairs only: a list of nine becomes 36 pairs, each padded to the longest of its batch, and the prompt that all
of them share goes through the model 72 times instead of once. Both sides start from the same weights, read the same
token ids, one epoch of them in the same number of optimizer steps at the same learning rates, on as many threads, each
in a process of its own. Beside each ratio stands what it could be if a token cost the same on both sides: TRL's tokens,
in batches of 8 pairs padded to the longest, over ours, each prompt once. Rankings with a text longer than the maximum
are left out on both sides, because TRL drops what we would cut.

A few rankings of each source; PLUMBLINE_BENCH_FULL=1 takes all of them, PLUMBLINE_BENCH_DATA=name,name some sources.
"""

import contextlib
import math
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.preference_data import (
    build_llama,
    demonstration_tokenizer,
    minilm_tokenizer,
    random_text,
    read_rows,
    write_preferences,
)
from bench.processes import apart, num_threads, peak_memory, prepare
from bench.run import Row, Skipped
from bench.trl_peer import Measured, Task, best_settings, encode_pairs, measured, padded_tokens, train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from training.alignment.preferences import RankedResponses

LEARNING_RATE = 5e-4
SHARE_OF_BOUND = 0.85
PAIRS_OF_BOUND = 8
GRADIENT_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Case:
    """Rankings to train on, and by how much we should be faster."""

    source: str
    title: str
    aim: float
    num_rankings: int
    batch_size: int
    max_length: int = 1024


SYNTHETIC = Case("synthetic", "synthetic, K = 9, prompt 512, responses 64", 20.0, 6, 2)
CASES = (
    Case("hh_helpful", "hh_helpful, K = 2", 3.0, 128, 16),
    Case("finegrained_qa", "finegrained_qa, K = 4", 8.0, 20, 4),
    Case("alpaca_eval", "alpaca_eval, K = 4-8", 8.0, 12, 3),
    SYNTHETIC,
)


@dataclass(frozen=True)
class Job:
    """What our side is told."""

    backbone: Path
    folder: Path
    """Of its run; preferences.jsonl is there."""
    batch_size: int
    max_length: int


def run() -> Iterator[Row]:
    wanted = os.environ.get("PLUMBLINE_BENCH_DATA", "")
    for case in CASES:
        if not wanted or case.source in wanted.split(","):
            try:
                with tempfile.TemporaryDirectory() as scratch:
                    yield from _run_case(case, Path(scratch))
            except Skipped as reason:
                print(f"  {case.title}: skipped: {reason}")


def _run_case(case: Case, scratch: Path) -> Iterator[Row]:
    tokenizer = _tokenizer()
    backbone = build_llama(tokenizer, scratch / "backbone")
    rows = synthetic_rows(tokenizer, case.num_rankings) if case is SYNTHETIC else read_rows(case.source, "train")
    rankings, num_left_out, num_all = _whole(case, rows, tokenizer, scratch / "ours" / "preferences.jsonl")
    pairs = encode_pairs(rankings, tokenizer, case.max_length)
    random.Random(0).shuffle(pairs)
    bound = padded_tokens([pair["length"] for pair in pairs], PAIRS_OF_BOUND) / shared_tokens(rankings, tokenizer)
    task = Task(backbone, pairs, math.ceil(len(rankings) / case.batch_size), LEARNING_RATE)

    settings, tried = apart(best_settings, task)
    peer = apart(train, task, settings)
    ours = apart(train_here, Job(backbone, scratch / "ours", case.batch_size, case.max_length))
    ratio = peer.seconds / ours.seconds
    print(f"    {len(rankings)} rankings, {len(pairs)} pairs; {num_left_out} of {num_all} left out as too long")
    print(f"    TRL at {settings} ({tried})")
    note = (
        f"token bound {bound:.1f}, {100 * ratio / bound:.0f} % of it (aim {100 * SHARE_OF_BOUND:.0f} %); in processor "
        f"time {peer.cpu_seconds / ours.cpu_seconds:.2f}; tokens {ours.num_tokens} against {peer.num_tokens} "
        f"({peer.num_tokens / ours.num_tokens:.1f} times); memory {ours.memory:.0f} against {peer.memory:.0f} MiB; "
        f"{num_threads()} threads; {ours.num_steps} against {peer.num_steps} steps"
    )
    if case is SYNTHETIC:
        note += f"; {_check_gradients(backbone, rankings[0], case.max_length)}"
    rates = [len(rankings) / side.seconds for side in (ours, peer)]
    yield Row(f"reward-model training, {case.title}", rates[0], rates[1], "rankings/s", ratio, case.aim, note=note)


def _tokenizer() -> "PreTrainedTokenizerBase":
    try:
        return minilm_tokenizer()
    except Skipped as reason:
        print(f"  our own tokenizer is used: {reason}")
        return demonstration_tokenizer()


def _whole(
    case: Case, rows: Sequence[dict[str, Any]], tokenizer: "PreTrainedTokenizerBase", path: Path
) -> "tuple[list[RankedResponses], int, int]":
    """As many decided rankings as the case takes, of those whose texts all fit; how many of how many do not."""
    from training.alignment.preferences import encode_to_score

    decided = [
        (row, ranked) for row, ranked in zip(rows, write_preferences(rows, path), strict=True) if ranked.is_decided
    ]
    fitting = [
        (row, ranked)
        for row, ranked in decided
        if not any(
            encode_to_score(tokenizer, ranked.prompt, text, case.max_length).is_truncated for text in ranked.responses
        )
    ]
    random.Random(0).shuffle(fitting)
    taken = fitting if os.environ.get("PLUMBLINE_BENCH_FULL") else fitting[: case.num_rankings]
    return write_preferences([row for row, _ in taken], path), len(decided) - len(fitting), len(decided)


def shared_tokens(rankings: "Sequence[RankedResponses]", tokenizer: "PreTrainedTokenizerBase") -> int:
    """Tokens of the rankings with each prompt once."""
    from training.alignment.preferences import encode

    total = 0
    for ranked in rankings:
        encoded = [encode(tokenizer, ranked.prompt, text, 2**20) for text in ranked.responses]
        total += encoded[0].num_prompt_tokens + sum(len(one.ids) - one.num_prompt_tokens for one in encoded)
    return total


def train_here(job: Job) -> Measured:
    """Train with our own engine; to be called in a process of its own."""
    from training.alignment.config import RewardModelConfig
    from training.alignment.reward_training import train_reward_model
    from training.alignment.run_dir import Interrupted, RunDir

    prepare()
    config = RewardModelConfig(
        backbone=str(job.backbone),
        num_epochs=1,
        batch_size=job.batch_size,
        learning_rate=LEARNING_RATE,
        max_length=job.max_length,
        save_minutes=600,
        precision=best_precision(),
    )
    run_dir = RunDir.create(job.folder, config)
    num_steps = math.ceil(sum(1 for _ in (job.folder / config.preferences).open()) / job.batch_size)
    held = peak_memory()
    times: list[tuple[float, float]] = []
    peaks: list[float] = []

    def is_done() -> bool:
        """The run looks at it after each step; what comes after the last one is not training."""
        times.append((time.time(), time.process_time()))
        peaks.append(peak_memory())
        return len(times) >= num_steps

    with contextlib.suppress(Interrupted):
        train_reward_model(config, run_dir, is_done)
    tokens = [line["tokens"] for line in run_dir.read_metrics() if line["phase"] == "train"]
    return measured(times[: len(tokens)], tokens, peaks[len(tokens) - 1] - held)


def best_precision() -> str:
    """bf16 where this CPU multiplies in it, which TRL is tried in too."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "auto"


def synthetic_rows(tokenizer: "PreTrainedTokenizerBase", count: int) -> list[dict[str, Any]]:
    """Lists of nine, of random words: a prompt of about 512 tokens, responses of about 64."""
    drawn = random.Random(0)
    return [
        {
            "prompt": [{"role": "user", "content": random_text(tokenizer, 512, drawn)}],
            "responses": [{"role": "assistant", "content": random_text(tokenizer, 64, drawn)} for _ in range(9)],
            "ranking": [[place] for place in drawn.sample(range(9), 9)],
            "split": "train",
        }
        for _ in range(count)
    ]


def _check_gradients(backbone: Path, ranked: "RankedResponses", max_length: int) -> str:
    of_rewards, of_loss = apart(gradient_difference, backbone, ranked, max_length)
    if of_rewards > GRADIENT_TOLERANCE:
        print(f"    GRADIENTS DIFFER by {of_rewards:.1e} of a reward's gradient, more than {GRADIENT_TOLERANCE:.0e}")
    return f"gradients differ by {of_rewards:.1e} of a reward's gradient, {of_loss:.1e} of the loss's"


def gradient_difference(backbone: Path, ranked: "RankedResponses", max_length: int) -> tuple[float, float]:
    """Between the gradients of the mean loss over all pairs: of one shared forward, and of each pair by itself.

    Returns:
        It relative to the gradient of one reward, as single precision rounds what is added up; and relative to that of
        the loss, which is far smaller, because the gradients of better and worse responses cancel.
    """
    import numpy as np
    import torch
    from torch.nn.functional import softplus

    from training.alignment.losses import Judged, Likelihood
    from training.alignment.packing import Packing, build_row, bundle
    from training.alignment.preferences import encode_to_score
    from training.alignment.reward_net import RewardNet, load_backbone

    prepare()
    model, tokenizer = load_backbone(str(backbone))
    ids = [encode_to_score(tokenizer, ranked.prompt, text, max_length).ids for text in ranked.responses]

    def reward(place: int) -> torch.Tensor:
        return model(input_ids=torch.tensor([ids[place]])).logits.squeeze()

    def gradient() -> torch.Tensor:
        found = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
        model.zero_grad()
        return found

    reward(0).backward()
    of_reward = gradient().norm()
    places = list(ranked.ordered_places())
    for better, worse in places:
        (softplus(reward(worse) - reward(better)) / len(places)).backward()
    by_pairs = gradient()
    net = RewardNet(model, Packing.SHARED)
    whole = bundle([np.array(one, dtype=np.int32) for one in ids], Packing.SHARED)
    rewards = net(build_row([whole], Packing.SHARED, model.device)).T
    Likelihood(loss="all_pairs")(rewards, Judged(groups=torch.tensor([ranked.groups]))).sum().backward()
    difference = (gradient() - by_pairs).norm()
    return float(difference / of_reward), float(difference / by_pairs.norm())
