"""Scoring 16 samples a prompt: `RewardModel.score` against `transformers`, a batched forward with padding.

Best-of-n and the policy's training ask for this: many responses to one prompt, which we compute once. The prompts have
hh_helpful's median length; the responses have it too, or, as samples do in earnest, lengths of their own, drawn from
that data. The peer is the same sequence classifier with its own tokenizer at the best of some batch sizes, in the order
of the samples; what it reaches when it may sort them all by length stands beside it. Both read texts and return scores.
"""

import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.preference_data import build_llama, demonstration_tokenizer, minilm_tokenizer, random_text
from bench.processes import apart, num_threads, prepare
from bench.run import Row, Skipped

NUM_SAMPLES = 16
PROMPT_TOKENS, RESPONSE_TOKENS = 104, 56
"""hh_helpful's medians, by MiniLM's tokenizer and with the speakers' names."""
RESPONSE_LENGTHS = (10, 13, 18, 23, 28, 33, 38, 44, 50, 56, 63, 70, 78, 86, 95, 108, 124, 150, 193)
"""Each twentieth of hh_helpful's responses: tokens."""
FRAME_TOKENS = 8
"""Of the names and marks around prompt and response, about."""
BATCH_SIZES = (16, 64)
TOLERANCE = 1e-4
AIM = 4.0

Pairs = Sequence[tuple[list[dict[str, str]], str]]


@dataclass(frozen=True)
class Scores:
    """What one way of scoring gave, and how long it took."""

    values: list[float]
    seconds: float
    cpu_seconds: float
    """Processor time, which others on the machine do not lengthen."""


def run() -> Iterator[Row]:
    num_prompts = 64 if os.environ.get("PLUMBLINE_BENCH_FULL") else 8
    with tempfile.TemporaryDirectory() as scratch:
        try:
            tokenizer = minilm_tokenizer()
        except Skipped as reason:
            print(f"  our own tokenizer is used: {reason}")
            tokenizer = demonstration_tokenizer()
        backbone = build_llama(tokenizer, Path(scratch))
        drawn = random.Random(0)
        for name, lengths in (("of median length", (RESPONSE_TOKENS,)), ("of their own lengths", RESPONSE_LENGTHS)):
            pairs = []
            for _ in range(num_prompts):
                prompt = [{"role": "user", "content": random_text(tokenizer, PROMPT_TOKENS - FRAME_TOKENS, drawn)}]
                pairs += [
                    (prompt, random_text(tokenizer, drawn.choice(lengths) - 1, drawn)) for _ in range(NUM_SAMPLES)
                ]
            yield _compare(backbone, pairs, name)


def _compare(backbone: Path, pairs: Pairs, name: str) -> Row:
    ours = apart(score_here, backbone, pairs)
    peers = {size: apart(score_with_transformers, backbone, pairs, size, False) for size in BATCH_SIZES}
    best = min(peers, key=lambda size: peers[size].cpu_seconds)
    peer, by_length = peers[best], apart(score_with_transformers, backbone, pairs, best, True)
    difference = max(abs(one - other) for one, other in zip(ours.values, peer.values, strict=True))
    if difference > TOLERANCE:
        print(f"    SCORES DIFFER by {difference:.1e}")
    note = (
        f"scores differ by {difference:.1e} at most; in processor time {peer.cpu_seconds / ours.cpu_seconds:.2f}, and "
        f"{by_length.cpu_seconds / ours.cpu_seconds:.2f} when the peer sorts by length first; it computes batches of "
        f"{best}; {num_threads()} threads"
    )
    rates = [len(pairs) / side.seconds for side in (ours, peer)]
    title = f"scoring {NUM_SAMPLES} samples a prompt, {name}"
    return Row(title, rates[0], rates[1], "responses/s", peer.seconds / ours.seconds, AIM, note=note)


def score_here(backbone: Path, pairs: Pairs) -> Scores:
    from training.alignment.reward_model import RewardModel

    prepare()
    model = RewardModel.load(backbone)
    model.score(pairs[:NUM_SAMPLES])  # what starts at the first call is not counted
    start = time.perf_counter(), time.process_time()
    values = model.score(pairs)
    return Scores(values, time.perf_counter() - start[0], time.process_time() - start[1])


def score_with_transformers(backbone: Path, pairs: Pairs, batch_size: int, is_sorted: bool) -> Scores:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    prepare()
    model = AutoModelForSequenceClassification.from_pretrained(backbone, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    texts = [[*prompt, {"role": "assistant", "content": response}] for prompt, response in pairs]

    @torch.inference_mode()
    def score(chosen: Sequence[int]) -> list[float]:
        inputs = tokenizer.apply_chat_template(
            [texts[number] for number in chosen], padding=True, return_dict=True, return_tensors="pt"
        )
        inputs.pop("token_type_ids", None)
        return model(**inputs).logits[:, 0].tolist()

    score(range(min(batch_size, len(texts))))
    start = time.perf_counter(), time.process_time()
    order = list(range(len(texts)))
    if is_sorted:
        order.sort(key=lambda number: len(pairs[number][0][-1]["content"]) + len(pairs[number][1]))
    values = dict.fromkeys(order, 0.0)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        values.update(zip(chosen, score(chosen), strict=True))
    in_turn = [values[number] for number in range(len(texts))]
    return Scores(in_turn, time.perf_counter() - start[0], time.process_time() - start[1])
