"""Best of n's first half: 16 samples to each of 64 prompts, scored, against a plain script.

The peer is what one writes with `transformers` in a few lines: `generate(num_return_sequences=16)` for some prompts at
a time, then the reward model over padded batches; each at the best of some batch sizes. Both sides have the same
weights, sample from the same law (temperature 1, all tokens) and score what they sampled; runs take turns.

The policy is a Llama that knows nothing, so its responses would never end. Its head is given a bias by which the end
has the same probability at each token: lengths are geometric with the mean of hh_helpful's responses, which lie alike,
and the prompts have hh_helpful's median length. A step of RLHF with the same models, responses of the median length,
tells which share of it scoring takes.
"""

import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.preference_data import LLAMA, POSITIONS, build_llama, demonstration_tokenizer, minilm_tokenizer, random_text
from bench.processes import apart, num_threads, prepare
from bench.reward_model_scoring import FRAME_TOKENS, NUM_SAMPLES, PROMPT_TOKENS, RESPONSE_LENGTHS, RESPONSE_TOKENS
from bench.run import Row, Skipped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_PROMPTS = 64
MAX_NEW_TOKENS = 256
MEAN_LENGTH = statistics.fmean(RESPONSE_LENGTHS)
GENERATED_TOGETHER = (32, 64, 128)
SCORED_TOGETHER = (16, 64)
AIM, SHARE_AIM = 3.0, 0.1

Prompts = Sequence[list[dict[str, str]]]


@dataclass(frozen=True)
class Timed:
    """One side's run, in seconds."""

    generating: float
    scoring: float
    cpu_seconds: float
    """Processor time of both, which others on the machine do not lengthen."""
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
            for _ in range(NUM_PROMPTS if is_full else 8)
        ]
        yield _compare(policy, reward_model, prompts, num_runs=3 if is_full else 1)
        yield _reward_share(policy, reward_model, folder, prompts, num_steps=8 if is_full else 2)


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
    sides = (sample_here, sample_with_transformers)
    found = {
        (side, size): [apart(side, policy, reward_model, prompts, size)]
        for size in GENERATED_TOGETHER
        for side in sides
    }
    best = {side: min(GENERATED_TOGETHER, key=lambda size: found[side, size][0].cpu_seconds) for side in sides}
    for _ in range(num_runs - 1):
        for side, size in best.items():
            found[side, size].append(apart(side, policy, reward_model, prompts, size))
    ours, peer = (sorted(found[one], key=lambda run: run.seconds)[len(found[one]) // 2] for one in best.items())
    per_token = [(one.seconds / one.num_tokens, one.cpu_seconds / one.num_tokens) for one in (ours, peer)]
    ratio, cpu_ratio = (theirs / own for own, theirs in zip(*per_token, strict=True))
    note = (
        f"{ours.seconds:.1f} s against {peer.seconds:.1f} s; generating {ours.generating:.1f} against "
        f"{peer.generating:.1f}, scoring {ours.scoring:.1f} against {peer.scoring:.1f}; in processor time "
        f"{cpu_ratio:.2f}; responses have {_mean_length(ours, prompts):.0f} and {_mean_length(peer, prompts):.0f} "
        f"tokens; {best[sample_here]} and {best[sample_with_transformers]} at a time; {num_threads()} threads"
    )
    title = f"sampling and scoring {NUM_SAMPLES} responses to {len(prompts)} prompts"
    rates = [one.num_tokens / one.seconds for one in (ours, peer)]
    return Row(title, rates[0], rates[1], "tokens/s", ratio, AIM, note=note)


def _reward_share(policy: Path, reward_model: Path, folder: Path, prompts: Prompts, num_steps: int) -> Row:
    share = apart(measure_reward_share, policy, reward_model, folder, prompts, num_steps)
    note = f"8 prompts a step, 8 responses of {RESPONSE_TOKENS} tokens each; policy and reward model of one size"
    return Row("scoring in a step of RLHF", 100 * share, 100 * SHARE_AIM, "% of it", SHARE_AIM / share, 1.0, note=note)


def measure_reward_share(policy: Path, reward_model: Path, folder: Path, prompts: Prompts, num_steps: int) -> float:
    from training.alignment.config import RlhfConfig
    from training.alignment.member_config import LengthRule, write_member
    from training.alignment.policy import train_policy
    from training.alignment.run_dir import RunDir, StopFlag

    prepare()
    rows = [
        {
            "prompt": prompt,
            "responses": [{"role": "assistant", "content": text} for text in ("Yes.", "No.")],
            "ranking": [[0], [1]],
            "split": "test" if number == 0 else "train",
        }
        for number, prompt in enumerate(prompts)
    ]
    preferences = folder / "preferences.jsonl"
    preferences.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = RlhfConfig(
        preferences=str(preferences),
        policy=str(policy),
        reward_model=str(reward_model),
        held_out_reward_model=str(write_member(folder / "length", LengthRule(target=50, tolerance=10))),
        guard="off",
        num_checked=1,
        num_steps=num_steps,
        num_prompts=8,
        num_samples=8,
        max_new_tokens=RESPONSE_TOKENS,
        check_steps=1000,
    )
    share: float = train_policy(config, RunDir.create(folder / "rlhf", config), StopFlag())["reward_share"]
    return share


def _mean_length(timed: Timed, prompts: Prompts) -> float:
    return timed.num_tokens / (len(prompts) * NUM_SAMPLES)


def sample_here(policy: Path, reward_model: Path, prompts: Prompts, batch_size: int) -> Timed:
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
    start, cpu = time.perf_counter(), time.process_time()
    texts = generator.sample(prompts, NUM_SAMPLES, seed=0)
    generated = time.perf_counter()
    reward.score_prompts([PromptedResponses(one, tuple(own)) for one, own in zip(prompts, texts, strict=True)])
    ended, cpu = time.perf_counter(), time.process_time() - cpu
    return Timed(generated - start, ended - generated, cpu, _num_tokens(generator.tokenizer, texts))


def sample_with_transformers(policy: Path, reward_model: Path, prompts: Prompts, batch_size: int) -> Timed:
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
    start, cpu = time.perf_counter(), time.process_time()
    texts: list[list[str]] = []
    at_once = batch_size // NUM_SAMPLES
    for first in range(0, len(prompts), at_once):
        flat = generate(prompts[first : first + at_once], NUM_SAMPLES)
        texts += [flat[place : place + NUM_SAMPLES] for place in range(0, len(flat), NUM_SAMPLES)]
    generated = time.perf_counter()
    cpu = time.process_time() - cpu
    pairs = [conversation(prompt, text) for prompt, own in zip(prompts, texts, strict=True) for text in own]
    scoring = []
    for at_once in SCORED_TOGETHER:
        begun, begun_cpu = time.perf_counter(), time.process_time()
        for first in range(0, len(pairs), at_once):
            score(pairs[first : first + at_once])
        scoring.append((time.perf_counter() - begun, time.process_time() - begun_cpu))
    seconds, scoring_cpu = min(scoring)
    return Timed(generated - start, seconds, cpu + scoring_cpu, _num_tokens(tokenizer, texts))


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
