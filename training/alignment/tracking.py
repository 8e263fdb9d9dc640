"""Check a policy in training on held-out prompts: the same ones at every check, answered from the same seed.

    checks.jsonl                one line a check, see `guard.Check`
    samples/step-000020.jsonl   {"prompt", "response", "reward", "held_out_reward"}: the responses behind it
    alarm.json                  {"step", "reason", "best_step", "words"}, once there is an alarm

A check leaves nothing behind in the process: neither random generators nor the model's state. So a run that is resumed
finds the checks of its file, does none of them again, and goes on as if it had not been interrupted.

**KL and entropy** are those of the policy as such, at temperature 1 and over the whole vocabulary, however the run
samples: they are measured on responses sampled so, which are those that are graded where the run samples so itself, and
others where it does not. At each place of a response both policies' whole distributions are at hand, so the KL there is
computed, not sampled; the sum over a response estimates the KL of responses without bias, as the log-ratio of its
tokens does, but is never below 0 and varies less. It is computed in the precision of the weights: in bfloat16, rounding
alone would make two policies that hardly differ differ by a tenth of a nat.

Source: A. Amini, T. Vieira and R. Cotterell, "Better estimation of the Kullback-Leibler divergence between language
models", 2025.
"""

import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from training.alignment.batching import batches, budget, pad
from training.alignment.config import ConfigError, DpoConfig, RejectionSamplingConfig, RlhfConfig
from training.alignment.generation import Generated, generate_ids, texts
from training.alignment.guard import Alarm, Check, Guard, differences, mean_interval
from training.alignment.held_out_reward import HeldOut
from training.alignment.policies import computes_in_bfloat16, load_policy
from training.alignment.preferences import Messages, PromptedResponses, distinct_prompts, drawn, encode_prompt
from training.alignment.reward import as_json
from training.alignment.reward_net import fit_length
from training.alignment.run_dir import RunDir, append_lines, whole_lines, write_json, write_whole
from training.alignment.text_measures import diversity, repetition

CHECKS, ALARM, SAMPLES = "checks.jsonl", "alarm.json", "samples"
MAX_TOKENS = 16384
NUM_LOGITS = 2**28  # of each policy at a time: a gigabyte of them
NUM_COMPARED = 2**22  # of these at a time: several copies are made of them

Config = RejectionSamplingConfig | RlhfConfig | DpoConfig
Proxy = Callable[[Sequence[PromptedResponses]], list[list[float]]]
Reference = tuple[Any, PreTrainedTokenizerBase] | str | Path
Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Divergence:
    """Of one response: sums over its tokens, its end among them."""

    kl: float
    entropy: float
    num_tokens: int


@dataclass(frozen=True)
class _Answered:
    """One prompt's responses at one check; a score that is missing is None."""

    responses: list[str]
    rewards: list[float | None]
    held_out: list[float | None]
    spreads: list[float]
    lengths: list[int]
    num_ended: int
    divergences: list[Divergence]


def held_out_prompts(config: Config, preferences: Path) -> list[Messages]:
    """The test prompts that a run's policy is checked on.

    Raises:
        ConfigError: there is none.
    """
    prompts = drawn(distinct_prompts(preferences, "test"), config.num_held_out_prompts, random.Random(config.seed))
    if not prompts:
        raise ConfigError("preferences: the test split has no prompt to check the policy on")
    return prompts


class Tracker:
    """Checks of one run.

    Args:
        reference: what KL is measured from: a folder or an id, which is loaded at the first check, or model and
            tokenizer. The model may be the one that is checked, where that has adapters: then it is meant without them.
        prompts: those to check on; not a training prompt among them.
        proxy: scores of each prompt's responses, by the reward that is optimised; nan where there is none. Each process
            calls it for its own share of the prompts, not all as often.
        held_out: grades.

    Attributes:
        checks: those so far, by step.
        alarm: the first that was raised.
    """

    def __init__(
        self,
        config: Config,
        *,
        run_dir: RunDir,
        accelerator: Accelerator,
        reference: Reference,
        prompts: Sequence[Messages],
        proxy: Proxy,
        held_out: HeldOut,
    ) -> None:
        self.config, self.run_dir, self.accelerator = config, run_dir, accelerator
        self.prompts, self.proxy, self.held_out = list(prompts), proxy, held_out
        self.guard = Guard(config.patience, config.guard, held_out.spread_limit)
        self.checks: list[Check] = []
        self._reference = reference
        self._resume()

    @property
    def alarm(self) -> Alarm | None:
        return self.guard.alarm

    @property
    def best_step(self) -> int:
        """That of `Guard.best`."""
        return self.guard.best.step

    def check(self, step: int, model: Any, tokenizer: PreTrainedTokenizerBase) -> Alarm | None:
        """Check the policy as it is after `step`; the alarm, where there is one by then.

        All processes call it with the whole model. A step that has been checked is not checked again. Steps rise.

        Raises:
            ConfigError: no response could be scored by one of the rewards.
            ValueError: a later step has been checked already.
        """
        if all(one.step != step for one in self.checks):
            if self.checks and self.checks[-1].step > step:
                raise ValueError(f"step {step} comes before step {self.checks[-1].step}, which is checked")
            answered = self._answer(model, tokenizer)
            check = self._summarise(step, answered)
            if self.accelerator.is_main_process:
                self._write(check, answered)
            self._see(check)
            self.accelerator.wait_for_everyone()
        return self.alarm if self.alarm is not None and self.alarm.step <= step else None

    def result(self, step: int) -> dict[str, Any]:
        """What an aligned run's result says of the policy after `step`, which is the one that is saved, and of step 0.

        Also writes samples_before.jsonl and samples_after.jsonl. The best step is chosen by the figures that are told
        here, so its held-out reward is somewhat too high where several steps are about equally good.

        Returns:
            {"reward_before", "reward_after", "reward_gain", "reward_gain_interval"}, the same four of
            "held_out_reward_…"; "stopped_by", the alarm's reason or nothing; "kl", "kl_interval", "best_step",
            "num_checks", "num_held_out_prompts", "num_held_out_responses" to each of them; and what `HeldOut.told`
            tells.
        """
        before, after = self.checks[0], self._checked(step)
        if self.accelerator.is_main_process:
            for name, one in (("before", before), ("after", after)):
                text = self._samples(one.step).read_text(encoding="utf-8")
                write_whole(self.run_dir.path / f"samples_{name}.jsonl", text)
        self.accelerator.wait_for_everyone()
        return {
            **_gain("reward", before.reward_by_prompt, after.reward_by_prompt),
            **_gain("held_out_reward", before.held_out_by_prompt, after.held_out_by_prompt),
            "stopped_by": self.alarm.reason if self.alarm is not None and self.config.guard == "stop" else None,
            "kl": after.kl,
            "kl_interval": list(after.kl_interval) if after.kl_interval else None,
            "best_step": self.best_step,
            "num_checks": len(self.checks),
            "num_held_out_prompts": len(self.prompts),
            "num_held_out_responses": self.config.num_checked,
            **self.held_out.told(),
        }

    def _checked(self, step: int) -> Check:
        return next(one for one in self.checks if one.step == step)

    # The check

    def _answer(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> list[_Answered]:
        """All prompts answered; each process answers whole chunks of them, the same ones however many there are."""
        size = max(1, self.config.generation_batch_size // self.config.num_checked)
        with _evaluating(model):
            return in_chunks(
                self.accelerator, self.prompts, size, lambda some: self._answer_chunk(model, tokenizer, some)
            )

    def _answer_chunk(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages]
    ) -> list[_Answered]:
        config = self.config
        graded = self._generate(model, tokenizer, prompts, config.temperature, config.top_p)
        is_plain = config.temperature == 1 and config.top_p == 1
        measured = graded if is_plain else self._generate(model, tokenizer, prompts, 1.0, 1.0)
        divergences = self._divergences(model, tokenizer, prompts, measured)
        responses = texts(tokenizer, graded)
        prompted = [PromptedResponses(one, tuple(own)) for one, own in zip(prompts, responses, strict=True)]
        grades = self.held_out.score_prompts(prompted)
        return [
            _Answered(
                responses=own,
                rewards=as_json(rewards),
                held_out=as_json(grade.scores),
                spreads=[value for value in grade.spread or () if math.isfinite(value)],
                lengths=[len(one.ids) + one.is_ended for one in tokens],
                num_ended=sum(one.is_ended for one in tokens),
                divergences=divergence,
            )
            for own, rewards, grade, tokens, divergence in zip(
                responses, self.proxy(prompted), grades, graded, divergences, strict=True
            )
        ]

    def _generate(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Messages],
        temperature: float,
        top_p: float,
    ) -> list[list[Generated]]:
        config = self.config
        with self._autocast():
            return generate_ids(
                model,
                tokenizer,
                prompts,
                config.num_checked,
                seed=config.seed,
                temperature=temperature,
                top_p=top_p,
                max_new_tokens=config.max_new_tokens,
                max_length=config.max_length,
                batch_size=config.generation_batch_size,
            )

    def _divergences(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Messages],
        generated: Sequence[Sequence[Generated]],
    ) -> list[list[Divergence]]:
        config = self.config
        limit = fit_length(config.max_length, model, tokenizer) - config.max_new_tokens
        asked = [encode_prompt(tokenizer, prompt, limit) for prompt in prompts]
        pairs = [(ids, one) for ids, own in zip(asked, generated, strict=True) for one in own]
        reference, without_adapters = self._reference_of(model)
        found = iter(divergences(model, reference, pairs, without_adapters))
        return [[next(found) for _ in own] for own in generated]

    def _reference_of(self, model: Any) -> tuple[Any, Callable[[], AbstractContextManager[Any]]]:
        if isinstance(self._reference, str | Path):
            loaded, tokenizer = load_policy(self._reference)
            self._reference = loaded.to(self.accelerator.device).eval(), tokenizer
        reference = self._reference[0]
        if reference is model and hasattr(model, "disable_adapter"):
            return reference, model.disable_adapter
        return reference, nullcontext

    def _autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 on a GPU, as in training; on a CPU the model has been told itself."""
        kind = self.accelerator.device.type
        is_used = kind != "cpu" and computes_in_bfloat16(self.config)
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=is_used)

    # Figures

    def _summarise(self, step: int, answered: Sequence[_Answered]) -> Check:
        rewards = _means([one.rewards for one in answered], "reward_model")
        held_out = _means([one.held_out for one in answered], "held_out_reward_model")
        kls = [fmean(one.kl for one in own.divergences) for own in answered]
        kl, half = mean_interval(kls)
        spreads = [value for one in answered for value in one.spreads]
        usual = self.held_out.reference_spread
        divergences = [one for own in answered for one in own.divergences]
        num_responses = len(answered) * self.config.num_checked
        num_missing = sum(
            reward is None or grade is None
            for own in answered
            for reward, grade in zip(own.rewards, own.held_out, strict=True)
        )
        first = self.checks[0] if self.checks else None
        return Check(
            step=step,
            reward=_mean(rewards),
            reward_interval=_around(_mean(rewards), first.reward_by_prompt if first else (), rewards),
            held_out=_mean(held_out),
            held_out_interval=_around(_mean(held_out), first.held_out_by_prompt if first else (), held_out),
            spread=fmean(spreads) / usual if spreads and usual else None,
            kl=kl,
            kl_interval=None if half is None else (max(0.0, kl - half), kl + half),
            length=fmean(length for one in answered for length in one.lengths),
            entropy=sum(one.entropy for one in divergences) / sum(one.num_tokens for one in divergences),
            repetition=repetition([text for one in answered for text in one.responses]),
            diversity=diversity([one.responses for one in answered]),
            ended=sum(one.num_ended for one in answered) / num_responses,
            missing=num_missing / num_responses,
            reward_by_prompt=rewards,
            held_out_by_prompt=held_out,
            time=time.time(),
        )

    # Files

    def _see(self, check: Check) -> None:
        self.checks.append(check)
        alarm = self.guard.see(check)
        if alarm is not None and self.accelerator.is_main_process:
            write_json(self.run_dir.path / ALARM, alarm.to_dict())

    def _resume(self) -> None:
        """See the checks of the file once more; a line that a kill left half written is cut off."""
        path = self.run_dir.path / CHECKS
        num_lines, size = whole_lines(path, 1)
        lines = path.read_text(encoding="utf-8").splitlines()[:num_lines] if num_lines else []
        self.accelerator.wait_for_everyone()  # all have read before one cuts
        if path.exists() and self.accelerator.is_main_process:
            os.truncate(path, size)
        for line in lines:
            self._see(Check.from_dict(json.loads(line)))
        self.accelerator.wait_for_everyone()

    def _write(self, check: Check, answered: Sequence[_Answered]) -> None:
        """The samples before the check that is made of them."""
        path = self._samples(check.step)
        path.parent.mkdir(exist_ok=True)
        rows = (
            {"prompt": prompt, "response": text, "reward": reward, "held_out_reward": grade}
            for prompt, one in zip(self.prompts, answered, strict=True)
            for text, reward, grade in zip(one.responses, one.rewards, one.held_out, strict=True)
        )
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
        append_lines(self.run_dir.path / CHECKS, [check.to_dict()])

    def _samples(self, step: int) -> Path:
        return self.run_dir.path / SAMPLES / f"step-{step:06d}.jsonl"


def read_checks(run_dir: RunDir) -> Iterator[Check]:
    """The checks of a run so far, whole lines only."""
    path = run_dir.path / CHECKS
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield Check.from_dict(json.loads(line))


def in_chunks(
    accelerator: Accelerator, items: Sequence[Item], size: int, work: Callable[[Sequence[Item]], list[Found]]
) -> list[Found]:
    """What `work` makes of all items, `size` at a time; each process does whole chunks of them, and all get all.

    What is in a chunk does not depend on the number of processes.
    """
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    mine = [work(chunk) for chunk in chunks[rank::num_processes]]
    shares = gather_object([mine]) if num_processes > 1 else [mine]
    return [one for place in range(len(chunks)) for one in shares[place % num_processes][place // num_processes]]


@torch.no_grad()  # what is computed in inference mode and kept, such as a cache of positions, could not be trained on
def divergences(
    policy: Any,
    reference: Any,
    pairs: Sequence[tuple[Sequence[int], Generated]],
    as_reference: Callable[[], AbstractContextManager[Any]] = nullcontext,
    max_tokens: int = MAX_TOKENS,
) -> list[Divergence]:
    """Of each response that the policy has written, in nats: the KL from the reference policy and the entropy.

    At each place, the next token's distribution is known of both; what is added up is its KL, sum p (log p - log q),
    and its entropy, - sum p log p. A response that ended has one place more than tokens.

    Args:
        pairs: (N,) tokens of the prompt, and the response that the policy sampled after them at temperature 1.
        as_reference: what makes `reference` the reference policy, where it is the same model.
        max_tokens: in one forward pass, padding included.

    Raises:
        FloatingPointError: a logit is no number, or the policy writes what the reference policy never could.
    """
    device = next(policy.parameters()).device
    vocabulary = policy.config.get_text_config().vocab_size
    max_tokens = max(1, min(budget(max_tokens, device), NUM_LOGITS // vocabulary))
    sequences = [[*prompt, *one.ids] for prompt, one in pairs]
    found: list[Divergence] = [Divergence(0.0, 0.0, 0)] * len(pairs)
    for places in batches([len(ids) for ids in sequences], [1] * len(pairs), max_tokens):
        ids, mask = pad([sequences[place] for place in places], device)
        begins = [len(pairs[place][0]) - 1 for place in places]
        ends = [len(sequences[place]) - (not pairs[place][1].is_ended) for place in places]
        first = min(begins)
        own = _next_logits(policy, ids, mask, first)
        with as_reference():
            other = _next_logits(reference, ids, mask, first)
        counts = _between(begins, ends, ids.shape[1], device)[:, first:]
        size = max(1, NUM_COMPARED // (len(places) * vocabulary))
        parts = zip(*map(_compared, own.split(size, 1), other.split(size, 1)), strict=True)
        kl, entropy = (torch.cat(values, 1).double().where(counts, 0.0) for values in parts)
        for place, *sums in zip(
            places, kl.sum(1).tolist(), entropy.sum(1).tolist(), counts.sum(1).tolist(), strict=True
        ):
            if not (math.isfinite(sums[0]) and math.isfinite(sums[1])):
                raise FloatingPointError(
                    f"a response's KL is {sums[0]} and its entropy {sums[1]}: the policy's weights, or those of the "
                    "reference policy, have left the range of numbers"
                )
            found[place] = Divergence(max(0.0, sums[0]), sums[1], sums[2])
    return found


def _next_logits(model: Any, ids: Tensor, mask: Tensor, first: int) -> Tensor:
    """(B, T - first, V) of the token after each place from `first` on."""
    num_places = ids.shape[1] - first
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=num_places).logits
    return logits[:, -num_places:]


def _compared(own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, V) logits of both -> (B, T) the KL of the first from the second and the entropy, in single precision.

    Models with the same tokens may have more logits than those, each its own number: what only one has is no token.
    """
    num_tokens = min(own.shape[-1], other.shape[-1])
    logprobs, others = (logits[..., :num_tokens].float().log_softmax(-1) for logits in (own, other))
    return _expected(logprobs, logprobs - others), _expected(logprobs, -logprobs)


def _expected(logprobs: Tensor, values: Tensor) -> Tensor:
    """(…, V) both -> (…,) the mean of `values` by these probabilities; what is impossible counts nothing."""
    probabilities = logprobs.exp()
    return (probabilities * values).where(probabilities != 0, 0.0).sum(-1)  # nan is not 0, and stays


def _between(begins: Sequence[int], ends: Sequence[int], width: int, device: torch.device) -> Tensor:
    """(B, T) bool: places from each row's begin to before its end."""
    places = torch.arange(width, device=device)
    begin, end = (torch.tensor(values, device=device)[:, None] for values in (begins, ends))
    return (places >= begin) & (places < end)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Modules behave as in use, and afterwards each as it did before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


def _means(scores: Sequence[Sequence[float | None]], field: str) -> tuple[float | None, ...]:
    """(B,) each prompt's mean over its known scores."""
    known = [[value for value in own if value is not None] for own in scores]
    if not any(known):
        raise ConfigError(f"{field}: could score none of the responses that are checked")
    return tuple(fmean(own) if own else None for own in known)


def _mean(by_prompt: Sequence[float | None]) -> float:
    return fmean(value for value in by_prompt if value is not None)


def _around(value: float, first: Sequence[float | None], now: Sequence[float | None]) -> tuple[float, float] | None:
    """An interval around `value` as wide as that of the difference from the first check; none at that one."""
    if not first:
        return None
    _, half = mean_interval(differences(first, now))
    return None if half is None else (value - half, value + half)


def _gain(name: str, before: Sequence[float | None], after: Sequence[float | None]) -> dict[str, Any]:
    """Means over the prompts that have both, and that of their differences with its interval."""
    both = [(old, new) for old, new in zip(before, after, strict=True) if old is not None and new is not None]
    if not both:
        raise ConfigError(f"{name}_model: could score no prompt before and after")
    gain, half = mean_interval(differences(before, after))
    return {
        f"{name}_before": fmean(old for old, _ in both),
        f"{name}_after": fmean(new for _, new in both),
        f"{name}_gain": gain,
        f"{name}_gain_interval": None if half is None else [gain - half, gain + half],
    }
