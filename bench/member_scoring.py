"""Scoring with five members together: through `load_reward` and the score cache, against one after another by hand.

Three reward models of one kind from different seeds, words, and a length penalty score 16 samples a prompt, as best of
n and the training of a combiner ask for; see `reward_model_scoring` for the texts. The peer calls each reward model
through `transformers`, a padded batch at a time at the best of some batch sizes, as one would in turn; words and length
cost it what they cost us. Beside it stands the second run, in a new process, when every score is known.
"""

import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.preference_data import build_llama, demonstration_tokenizer, minilm_tokenizer, random_text
from bench.processes import apart, num_threads, prepare
from bench.reward_model_scoring import (
    BATCH_SIZES,
    FRAME_TOKENS,
    NUM_SAMPLES,
    PROMPT_TOKENS,
    RESPONSE_LENGTHS,
    TOLERANCE,
    Scores,
    score_with_transformers,
)
from bench.run import Row, Skipped

SEEDS = range(3)
AIM, CACHED_AIM = 4.0, 100.0
VOCABULARY = 5000


def run() -> Iterator[Row]:
    num_prompts = 64 if os.environ.get("PLUMBLINE_BENCH_FULL") else 8
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            tokenizer = minilm_tokenizer()
        except Skipped as reason:
            print(f"  our own tokenizer is used: {reason}")
            tokenizer = demonstration_tokenizer()
        drawn = random.Random(0)
        prompts = [
            (
                random_text(tokenizer, PROMPT_TOKENS - FRAME_TOKENS, drawn),
                [random_text(tokenizer, drawn.choice(RESPONSE_LENGTHS) - 1, drawn) for _ in range(NUM_SAMPLES)],
            )
            for _ in range(num_prompts)
        ]
        models = [build_llama(tokenizer, folder / f"llama-{seed}", seed) for seed in SEEDS]
        others = _build_others(folder, sorted(word for word in tokenizer.get_vocab() if word.isalpha())[:VOCABULARY])
        yield from _compare(models, others, prompts, folder / "scores.sqlite3")


def _build_others(folder: Path, words: Sequence[str]) -> list[Path]:
    """A member that knows words, and one that dislikes length."""
    import numpy as np

    from training.alignment.baselines import WordReward
    from training.alignment.member_config import LengthRule, write_member

    weights = np.random.default_rng(0).normal(size=len(words))
    vocabulary = {word: number for number, word in enumerate(words)}
    return [
        WordReward(vocabulary, weights, penalty=1.0).save(folder / "words"),
        write_member(folder / "length", LengthRule(target=50, tolerance=10)),
    ]


def _compare(
    models: Sequence[Path], others: Sequence[Path], prompts: Sequence[tuple[str, list[str]]], cache: Path
) -> Iterator[Row]:
    pairs = [([{"role": "user", "content": prompt}], text) for prompt, texts in prompts for text in texts]
    ours, again = (apart(score_here, [*models, *others], prompts, cache) for _ in range(2))
    peers = {
        size: [apart(score_with_transformers, model, pairs, size, False) for model in models] for size in BATCH_SIZES
    }
    best = min(peers, key=lambda size: sum(one.cpu_seconds for one in peers[size]))
    rest = apart(score_here, others, prompts, None)
    by_hand = [score for one in peers[best] for score in one.values] + rest.values
    seconds = sum(one.seconds for one in (*peers[best], rest))
    cpu_seconds = sum(one.cpu_seconds for one in (*peers[best], rest))
    difference = max(abs(one - other) for one, other in zip(ours.values, by_hand, strict=True))
    if difference > TOLERANCE or again.values != ours.values:
        print(f"    SCORES DIFFER by {difference:.1e}")
    count = len(models) + len(others)
    for name, own, aim in ((f"scoring with {count} members", ours, AIM), ("the same again, cached", again, CACHED_AIM)):
        note = (
            f"scores differ by {difference:.1e} at most; in processor time {cpu_seconds / own.cpu_seconds:.2f}; the "
            f"peer computes batches of {best}; {num_threads()} threads"
        )
        rates = [len(pairs) / side for side in (own.seconds, seconds)]
        yield Row(name, rates[0], rates[1], "responses/s", seconds / own.seconds, aim, note=note)


def score_here(members: Sequence[Path], prompts: Sequence[tuple[str, list[str]]], cache: Path | None) -> Scores:
    from training.alignment.encodings import share_encodings
    from training.alignment.preferences import PromptedResponses
    from training.alignment.reward import load_reward
    from training.alignment.score_cache import ScoreCache

    prepare()
    kept = ScoreCache(cache) if cache else None
    rewards = share_encodings([load_reward(member, cache=kept) for member in members])
    asked = [PromptedResponses([{"role": "user", "content": prompt}], tuple(texts)) for prompt, texts in prompts]
    warm_up = PromptedResponses([{"role": "user", "content": f"{os.getpid()} and {time.time()}"}], asked[0].responses)
    for reward in rewards:
        reward.score_prompts([warm_up])  # what starts at the first call is not counted
    start = time.perf_counter(), time.process_time()
    values = [score for reward in rewards for one in reward.score_prompts(asked) for score in one.scores]
    return Scores(values, time.perf_counter() - start[0], time.process_time() - start[1])
