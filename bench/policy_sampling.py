"""Best of n's first half: 16 samples to each of 64 prompts, scored, against a plain script.

The peer is what one writes with `transformers` in a few lines: `generate(num_return_sequences=16)` for some prompts at
a time, then the reward model over padded batches; each at the best of some batch sizes. Both sides have the same
weights, sample from the same law (temperature 1, all tokens) and score what they sampled; runs take turns.

The policy is a Llama that knows nothing, so its responses would never end. Its head is given a bias by which the end
has the same probability at each token: lengths are geometric with the mean of hh_helpful's responses, which lie alike,
and the median prompt is hh_helpful's too. Beside it, where `over_optimisation` has trained it, stands the policy of the
demonstration, which ends by itself. Of a step of RLHF the share of scoring the responses is measured as well.
"""

import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.preference_data import LLAMA, POSITIONS, build_llama, demonstration_tokenizer, minilm_tokenizer, random_text
from bench.processes import apart, num_threads, prepare
from bench.reward_model_scoring import FRAME_TOKENS, NUM_SAMPLES, PROMPT_TOKENS, RESPONSE_LENGTHS
from bench.run import Row, Skipped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_PROMPTS = 64
MAX_NEW_TOKENS = 256
MEAN_LENGTH = statistics.fmean(RESPONSE_LENGTHS)
GENERATED_TOGETHER = (32, 64, 128, 256)
SCORED_TOGETHER = (16, 64)
AIM = 3.0

Prompts = Sequence[list[dict[str, str]]]


@dataclass(frozen=True)
class Timed:
    """One side's run."""

    generating: float
    """Seconds."""
    scoring: float
    num_tokens: int
    """Of the responses."""

    @property
    def seconds(self) -> float:
        return self.generating + self.scoring


def run() -> Iterator[Row]:
    is_full = bool(os.environ.get("PLUMBLINE_BENCH_FULL"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            tokenizer = minilm_tokenizer()
        except Skipped as reason:
            print(f"  our own tokenizer is used: {reason}")
            tokenizer = demonstration_tokenizer()
        reward_model = build_llama(tokenizer, folder / "reward_model")
        policy = _build_policy(tokenizer, folder / "policy")
        drawn = random.Random(0)
        prompts = [
            [{"role": "user", "content": random_text(tokenizer, PROMPT_TOKENS - FRAME_TOKENS, drawn)}]
            for _ in range(NUM_PROMPTS if is_full else 16)
        ]
        yield _compare(policy, reward_model, prompts, num_runs=3 if is_full else 1)


def _build_policy(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> Path:
    """A Llama of 14 million parameters with MiniLM's vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **LLAMA,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _compare(policy: Path, reward_model: Path, prompts: Prompts, num_runs: int) -> Row:
    tried = prompts[:: max(1, len(prompts) // 16)]
    best = {
        side: min(GENERATED_TOGETHER, key=lambda size: apart(side, policy, reward_model, tried, size, 64).generating)
        for side in (sample_here, sample_with_transformers)
    }
    scored_together = min(
        SCORED_TOGETHER,
        key=lambda size: (
            apart(sample_with_transformers, policy, reward_model, tried, best[sample_with_transformers], size).scoring
        ),
    )
    runs: dict[Callable[..., Timed], list[Timed]] = {side: [] for side in best}
    for _ in range(num_runs):
        for side, size in best.items():
            runs[side].append(apart(side, policy, reward_model, prompts, size, scored_together))
    ours, peer = (sorted(own, key=lambda one: one.seconds)[len(own) // 2] for own in runs.values())
    note = (
        f"generating {ours.generating:.1f} s against {peer.generating:.1f} s, scoring {ours.scoring:.1f} s against "
        f"{peer.scoring:.1f} s; {ours.num_tokens / ours.generating:.0f} tokens/s against "
        f"{peer.num_tokens / peer.generating:.0f}; mean length {_mean_length(ours, prompts):.0f} and "
        f"{_mean_length(peer, prompts):.0f}; batches of {best[sample_here]} and {best[sample_with_transformers]} "
        f"responses, the peer scores {scored_together} at a time; {num_threads()} threads"
    )
    title = f"sampling and scoring {NUM_SAMPLES} responses to {len(prompts)} prompts"
    ratio = peer.seconds / peer.num_tokens * ours.num_tokens / ours.seconds
    rates = [side.num_tokens / side.seconds for side in (ours, peer)]
    return Row(title, rates[0], rates[1], "tokens/s", ratio, AIM, note=note)


def _mean_length(timed: Timed, prompts: Prompts) -> float:
    return timed.num_tokens / (len(prompts) * NUM_SAMPLES)


def sample_here(policy: Path, reward_model: Path, prompts: Prompts, batch_size: int, _: int) -> Timed:
    from training.alignment.config import SampleConfig
    from training.alignment.generation import Generator
    from training.alignment.preferences import PromptedResponses
    from training.alignment.reward_model import RewardModel

    prepare()
    config = SampleConfig(max_new_tokens=MAX_NEW_TOKENS, generation_batch_size=batch_size)
    generator = Generator(policy, None, config, "cpu")
    _let_end(generator.model, generator.tokenizer.eos_token_id)
    reward = RewardModel.load(reward_model, "cpu")
    warm_up = generator.sample(prompts[:1], 2, seed=1)  # what starts at the first call is not counted
    reward.score_prompts([PromptedResponses(prompts[0], tuple(warm_up[0]))])
    start = time.perf_counter()
    texts = generator.sample(prompts, NUM_SAMPLES, seed=0)
    generated = time.perf_counter()
    reward.score_prompts([PromptedResponses(one, tuple(own)) for one, own in zip(prompts, texts, strict=True)])
    return Timed(generated - start, time.perf_counter() - generated, _num_tokens(generator.tokenizer, texts))


def sample_with_transformers(
    policy: Path, reward_model: Path, prompts: Prompts, batch_size: int, scored_together: int
) -> Timed:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    prepare()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    _let_end(model, tokenizer.eos_token_id)
    scorer = AutoModelForSequenceClassification.from_pretrained(reward_model, dtype=torch.float32).eval()
    scorer_tokenizer = AutoTokenizer.from_pretrained(reward_model)

    @torch.inference_mode()
    def generate(some: Prompts, num_samples: int) -> list[str]:
        inputs = tokenizer.apply_chat_template(
            some, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        inputs.pop("token_type_ids", None)
        output = model.generate(
            **inputs,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=num_samples,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    @torch.inference_mode()
    def score(some: Sequence[list[dict[str, str]]]) -> list[float]:
        inputs = scorer_tokenizer.apply_chat_template(some, padding=True, return_dict=True, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        return scorer(**inputs).logits[:, 0].tolist()

    def conversation(prompt: list[dict[str, str]], text: str) -> list[dict[str, str]]:
        return [*prompt, {"role": "assistant", "content": text}]

    score([conversation(prompts[0], text) for text in generate(prompts[:1], 2)])
    start = time.perf_counter()
    texts: list[list[str]] = []
    at_once = batch_size // NUM_SAMPLES
    for first in range(0, len(prompts), at_once):
        flat = generate(prompts[first : first + at_once], NUM_SAMPLES)
        texts += [flat[place : place + NUM_SAMPLES] for place in range(0, len(flat), NUM_SAMPLES)]
    generated = time.perf_counter()
    pairs = [conversation(prompt, text) for prompt, own in zip(prompts, texts, strict=True) for text in own]
    for first in range(0, len(pairs), scored_together):
        score(pairs[first : first + scored_together])
    return Timed(generated - start, time.perf_counter() - generated, _num_tokens(tokenizer, texts))


def _let_end(model: Any, end: int) -> None:
    """Give an untrained model's head a bias by which a response ends with probability 1 / MEAN_LENGTH at each token."""
    import torch

    head = model.get_output_embeddings()
    bias = torch.zeros(head.weight.shape[0])
    bias[end] = math.log(len(bias) / (MEAN_LENGTH - 1))  # the other logits are nearly alike
    head.bias = torch.nn.Parameter(bias)


def _num_tokens(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[Sequence[str]]) -> int:
    return sum(
        len(ids)
        for own in texts
        for ids in tokenizer(list(own), add_special_tokens=False)["input_ids"]  # what is read by people and rewards
    )
