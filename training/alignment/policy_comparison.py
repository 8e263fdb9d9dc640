"""Policies side by side: the same prompts answered by each, and each held against the first one.

Files, each a stage that a restarted run does not repeat:

    held_out/                the rewards that grade, where they are trained here: `held_out_reward`
    policy_1.jsonl …         one line a prompt: {"prompt", "responses", "num_tokens", "seconds", "measured"}
    kl_2.jsonl …             one line a prompt: the KL of its responses from the first policy, or null
    scores.jsonl             one line a prompt: {"rewards", "held_out"}: of each policy's responses
    report.json              figures with intervals, and samples: see `compare_policies`
    responses.jsonl          one line a prompt: {"prompt", "responses": {name: texts}}, to be judged by people

A figure is {"value", "interval"} as in `measures`; prompts, not responses, count as independent.

**Win rate.** Each response of a policy meets each of the first one's to the same prompt; the higher held-out reward
wins, and equal ones share. **Length-controlled**: rewards and people like long answers, so a policy may win by length.
The chance to win is fitted as a logistic function of the difference in length, and told at a difference of none.

Source: Y. Dubois, B. Galambosi, P. Liang and T. Hashimoto, "Length-controlled AlpacaEval: a simple way to debias
automatic evaluators", 2024; without its difficulty of instructions, which takes more policies than two to tell.
"""

import copy
import dataclasses
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Self

import numpy as np
from accelerate import Accelerator
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit, stdtrit

from training.alignment.config import ComparePoliciesConfig, ConfigError, split_names
from training.alignment.generation import Generated, Generator, texts
from training.alignment.held_out_reward import HeldOut, held_out_reward, part_of
from training.alignment.implicit_reward import require_same_tokens
from training.alignment.learning_curve import in_hash_order
from training.alignment.measures import Clustered, Figure, Floats, clustered_interval
from training.alignment.policies import load_policy
from training.alignment.preferences import Messages, PromptedResponses, encode_prompt, prompt_key, read_rankings
from training.alignment.reward import Scored, as_json, load_reward, score_cache
from training.alignment.reward_model import agree, join_processes
from training.alignment.reward_net import fit_length
from training.alignment.run_dir import Interrupted, RunDir, StopFlag, append_lines, whole_lines, write_json, write_whole
from training.alignment.sft import Stage
from training.alignment.text_measures import diversity, repetition
from training.alignment.tracking import divergences, in_chunks

HELD_OUT, SAMPLE = Stage("held-out reward", 0.0, 0.3), Stage("sample", 0.3, 0.8)
MEASURE, SCORE = Stage("measure", 0.8, 0.9), Stage("score", 0.9, 1.0)
NUM_SHOWN = 50
NUM_TOGETHER = 16  # prompts that are measured or scored between two looks at the stop flag
RIDGE = 1e-4  # of the logistic fit: keeps it finite where length tells all

Work = Callable[[Sequence[int]], list[Any]]
"""Makes the rows of some prompts, by their places."""


@dataclass(frozen=True)
class Answers:
    """One policy's responses to one prompt."""

    responses: list[str]
    num_tokens: list[int]
    """Of each, the end included."""
    seconds: float
    """That it took to write them."""
    measured: list[Generated]
    """Responses at temperature 1, on which the KL is measured."""
    backend: str = ""
    """What generated them."""

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        measured = [Generated(ids, is_ended) for ids, is_ended in row["measured"]]
        return cls(row["responses"], row["num_tokens"], row["seconds"], measured, row["backend"])

    def to_row(self, prompt: Messages) -> dict[str, Any]:
        measured = [[one.ids, one.is_ended] for one in self.measured]
        return {"prompt": prompt, **vars(self), "measured": measured}


def compare_policies(config: ComparePoliciesConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """Sample from each policy, grade all responses together, and write report.json and responses.jsonl.

    report.json: {"kind", "num_prompts", "num_samples", what `HeldOut.told` tells, "backend", "policies": [{"name",
    "path", "reward", "held_out", "kl" (from the first policy), "length" (tokens a response, the end included),
    "num_tokens" and "seconds" to generate them, over all processes, "diversity", "repetition", "against_first":
    {"win_rate", "length_controlled_win_rate", "held_out_gain", "reward_gain"}}], "samples": [{"prompt", "responses",
    "held_out"}]}.
    There is no "against_first" of the first one, no KL between policies of different tokens, and no "reward" where none
    is named.

    Returns:
        {"num_policies", "num_prompts", "num_samples", "best" (the name of the policy with the highest held-out reward),
        "win_rate", "win_rate_interval" and "length_controlled_win_rate" of the second one against the first, and what
        `HeldOut.told` tells}.

    Raises:
        ConfigError: fewer than two policies, no test prompt, or a reward that cannot serve.
        Interrupted: `stop` became true; what is finished is left.
    """
    return _Run(config, run_dir, stop, join_processes()).result()


class _Run:
    """The stages of one run, each of which finds its file written or writes it."""

    def __init__(self, config: ComparePoliciesConfig, run_dir: RunDir, stop: StopFlag, accelerator: Accelerator):
        self.config, self.run_dir, self.stop, self.accelerator = config, run_dir, stop, accelerator
        names = split_names(config.policies)
        if len(names) < 2:
            raise ConfigError("policies: name two or more")
        if len(split_names(config.reward_model)) > 1:
            raise ConfigError("reward_model: name one, or none")
        self.paths = [run_dir.locate(name) for name in names]
        self.prompts = prompts_to_compare_on(run_dir.resolve(config.preferences), config.num_prompts, config.seed)
        if not self.prompts:
            raise ConfigError("preferences: the test split has no prompt to compare on")

    def result(self) -> dict[str, Any]:
        config = self.config
        held_out = held_out_reward(config, self.run_dir, self.accelerator, self.stop, HELD_OUT)
        answers = [self._answers(number) for number in range(len(self.paths))]
        kls = [None, *(self._kls(number, answers[number]) for number in range(1, len(self.paths)))]
        scores = self._scores(held_out, answers)
        policies = describe(self.paths, answers, kls, scores)
        told = {"num_prompts": len(self.prompts), "num_samples": config.num_samples, **held_out.told()}
        if self.accelerator.is_main_process:
            self._write(told, policies, answers, scores)
        self.accelerator.wait_for_everyone()
        second = policies[1]["against_first"]
        return {
            "num_policies": len(policies),
            **told,
            "best": max(policies, key=lambda one: one["held_out"]["value"])["name"],
            "win_rate": second["win_rate"]["value"],
            "win_rate_interval": second["win_rate"]["interval"],
            "length_controlled_win_rate": second["length_controlled_win_rate"]["value"],
        }

    def _answers(self, number: int) -> list[Answers]:
        """One policy's responses to all prompts."""
        stage = part_of(SAMPLE, number, len(self.paths))
        size = max(1, self.config.generation_batch_size // self.config.num_samples)
        rows = self._rows(f"policy_{number + 1}.jsonl", size, stage, lambda: self._answering(self.paths[number]))
        return [Answers.from_row(row) for row in rows]

    @contextmanager
    def _answering(self, path: str) -> Iterator[Work]:
        generator = Generator(path, None, self.config, self.accelerator.device)
        try:
            yield lambda places: self._answer(generator, [self.prompts[place] for place in places])
        finally:
            generator.close()

    def _answer(self, generator: Generator, prompts: Sequence[Messages]) -> list[dict[str, Any]]:
        """Rows of some prompts; their time is that of what is graded, not of what else is measured."""
        config, begun = self.config, time.perf_counter()
        generated = generator.generate_ids(prompts, config.num_samples, config.seed)
        seconds = (time.perf_counter() - begun) / len(prompts)
        measured = generated
        if config.temperature != 1 or config.top_p != 1:
            plain = copy.copy(generator)
            plain.config = dataclasses.replace(config, temperature=1.0, top_p=1.0)
            measured = plain.generate_ids(prompts, config.num_samples, config.seed)
        found = texts(generator.tokenizer, generated)
        return [
            Answers(responses, [len(one.ids) + one.is_ended for one in tokens], seconds, own, generator.name).to_row(
                prompt
            )
            for prompt, responses, tokens, own in zip(prompts, found, generated, measured, strict=True)
        ]

    def _kls(self, number: int, answers: Sequence[Answers]) -> list[float | None]:
        """(B,) the KL of each prompt's responses from the first policy; None where the two read other tokens."""
        stage = part_of(MEASURE, number - 1, len(self.paths) - 1)
        return self._rows(f"kl_{number + 1}.jsonl", NUM_TOGETHER, stage, lambda: self._measuring(number, answers))

    @contextmanager
    def _measuring(self, number: int, answers: Sequence[Answers]) -> Iterator[Work]:
        (model, tokenizer), (first, first_tokenizer) = (load_policy(self.paths[place]) for place in (number, 0))
        for one in (model, first):
            one.to(self.accelerator.device).eval()
        fits = min(fit_length(self.config.max_length, one, tokenizer) for one in (model, first))
        limit = fits - self.config.max_new_tokens

        def measure(places: Sequence[int]) -> list[float | None]:
            asked = {place: encode_prompt(tokenizer, self.prompts[place], limit) for place in places}
            pairs = [(asked[place], one) for place in places for one in answers[place].measured]
            found = iter(divergences(model, first, pairs))
            return [fmean(next(found).kl for _ in answers[place].measured) for place in places]

        is_same = _reads_the_same(tokenizer, first_tokenizer)
        yield measure if is_same else lambda places: [None for _ in places]

    def _scores(self, held_out: HeldOut, answers: Sequence[Sequence[Answers]]) -> list["Scores"]:
        rows = self._rows("scores.jsonl", NUM_TOGETHER, SCORE, lambda: self._scoring(held_out, answers))
        return [Scores(**{name: [_floats(own) for own in values] for name, values in row.items()}) for row in rows]

    @contextmanager
    def _scoring(self, held_out: HeldOut, answers: Sequence[Sequence[Answers]]) -> Iterator[Work]:
        """All policies' responses to a prompt are scored together, as rewards that compare them must."""
        name = self.config.reward_model
        path = self.run_dir.locate(name)
        proxy = load_reward(path, self.accelerator.device, cache=score_cache()) if name else None

        def score(places: Sequence[int]) -> list[dict[str, Any]]:
            prompted = [
                PromptedResponses(self.prompts[place], tuple(text for own in answers for text in own[place].responses))
                for place in places
            ]
            grades = held_out.score_prompts(prompted)
            rewards = proxy.score_prompts(prompted) if proxy else [Scored([]) for _ in places]
            return [
                {"held_out": self._by_policy(grade.scores), "rewards": self._by_policy(reward.scores)}
                for grade, reward in zip(grades, rewards, strict=True)
            ]

        yield score

    def _by_policy(self, scores: Sequence[float]) -> list[list[float | None]]:
        size = self.config.num_samples
        return [as_json(scores[start : start + size]) for start in range(0, len(scores), size)]

    def _rows(
        self, name: str, size: int, stage: Stage, prepare: Callable[[], AbstractContextManager[Work]]
    ) -> list[Any]:
        """One row for each prompt, from a file: what is not in it yet is made, `size` prompts at a time, and added."""
        path = self.run_dir.path / name
        done, num_bytes = whole_lines(path, size, len(self.prompts))
        self.accelerator.wait_for_everyone()  # all have counted before one cuts
        if path.exists() and self.accelerator.is_main_process:
            os.truncate(path, num_bytes)
        if done < len(self.prompts):
            at_once = size * self.accelerator.num_processes
            with prepare() as work:
                for start in range(done, len(self.prompts), at_once):
                    if agree(self.accelerator, self.stop()):
                        raise Interrupted(f"stopped before {name} was whole")
                    places = range(start, min(start + at_once, len(self.prompts)))
                    rows = in_chunks(self.accelerator, places, size, work)
                    if self.accelerator.is_main_process:
                        append_lines(path, rows)
                        progress = stage.progress(places.stop / len(self.prompts))
                        self.run_dir.log(step=places.stop, phase=stage.phase, progress=progress)
        self.accelerator.wait_for_everyone()
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def _write(
        self,
        told: dict[str, Any],
        policies: list[dict[str, Any]],
        answers: Sequence[Sequence[Answers]],
        scores: Sequence["Scores"],
    ) -> None:
        backends = {own.backend for one in answers for own in one}
        report = {
            "kind": self.config.kind,
            **told,
            "backend": ", ".join(sorted(backends)),
            "policies": policies,
            "samples": shown(self.prompts, answers, scores, random.Random(self.config.seed)),
        }
        write_json(self.run_dir.path / "report.json", report)
        names = [one["name"] for one in policies]
        rows = [
            {
                "prompt": prompt,
                "responses": {name: one[place].responses for name, one in zip(names, answers, strict=True)},
            }
            for place, prompt in enumerate(self.prompts)
        ]
        write_whole(self.run_dir.path / "responses.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


# Figures


@dataclass(frozen=True)
class Scores:
    """Of one prompt's responses: of each policy, of each response; nan where one is missing."""

    held_out: list[Floats]
    rewards: list[Floats]
    """Empty where no reward was named."""


def describe(
    paths: Sequence[str],
    answers: Sequence[Sequence[Answers]],
    kls: Sequence[Sequence[float | None] | None],
    scores: Sequence[Scores],
) -> list[dict[str, Any]]:
    """What report.json tells of each of P policies.

    Args:
        answers: (P, B).
        kls: (P, B) from the first policy; None of the first.
        scores: (B,).

    Raises:
        ConfigError: the held-out reward scored no response of one of them, or of none to the same prompt as the first.
    """
    found = []
    for number, (path, name) in enumerate(zip(paths, called(paths), strict=True)):
        own = answers[number]
        lengths = [length for one in own for length in one.num_tokens]
        held_out = by_prompt([_mean(one.held_out[number]) for one in scores])
        if held_out is None:
            raise ConfigError(f"held_out_reward_model: could score none of the responses of {name}")
        found.append(
            {
                "name": name,
                "path": path,
                "reward": by_prompt([_mean(one.rewards[number]) for one in scores if one.rewards]),
                "held_out": held_out,
                "kl": by_prompt(_floats(kls[number] or [])),
                "length": fmean(lengths),
                "num_tokens": sum(lengths),
                "seconds": sum(one.seconds for one in own),
                "diversity": diversity([one.responses for one in own]),
                "repetition": repetition([text for one in own for text in one.responses]),
                "against_first": against_first(number, answers, scores, name) if number else None,
            }
        )
    return found


def against_first(
    number: int, answers: Sequence[Sequence[Answers]], scores: Sequence[Scores], name: str
) -> dict[str, Figure]:
    """How one of the policies does against the first; see the module's beginning."""
    wins, lengths, prompts = [], [], []
    for place, one in enumerate(scores):
        margins = one.held_out[number][:, None] - one.held_out[0][None, :]
        own, first = (np.array([len(text) for text in answers[which][place].responses]) for which in (number, 0))
        known = np.isfinite(margins)
        wins.append(np.heaviside(margins[known], 0.5))
        lengths.append((own[:, None] - first[None, :])[known])
        prompts.append(np.full(int(known.sum()), place))
    if not sum(map(len, wins)):
        raise ConfigError(f"held_out_reward_model: could score no two responses of {name} and of the first policy")
    pairs = [np.concatenate(values) for values in (wins, lengths, prompts)]
    return {
        "win_rate": Clustered(pairs[2]).share(pairs[0]),
        "length_controlled_win_rate": length_controlled_win_rate(*pairs),
        "held_out_gain": by_prompt([_mean(one.held_out[number]) - _mean(one.held_out[0]) for one in scores]),
        "reward_gain": by_prompt([_mean(one.rewards[number]) - _mean(one.rewards[0]) for one in scores if one.rewards]),
    }


def length_controlled_win_rate(wins: ArrayLike, lengths: ArrayLike, prompts: ArrayLike) -> Figure:
    """The chance to win a pair of equally long responses, with its 95 % interval by prompt.

    P(win) = sigmoid(theta + phi tanh(length / deviation of the lengths)) is fitted by maximum likelihood, with a slight
    penalty on both parameters; sigmoid(theta) is what is asked for. Where lengths do not matter, that is the win rate.
    The interval is that of theta, by the sandwich estimator over prompts and Student's t. Where one always wins, or all
    are ties, it is `clustered_interval`.

    Args:
        wins: (N,) 1, 0, or a half for a tie.
        lengths: (N,) by how many characters the response is longer than the other one.
        prompts: (N,) the number of each pair's prompt.

    Raises:
        ValueError: shapes differ, or there is no pair.
        ArithmeticError: the fit did not converge.

    Sources: Y. Dubois et al. 2024, equation 2; K.-Y. Liang and S. L. Zeger, "Longitudinal data analysis using
    generalized linear models", Biometrika 73(1), 1986.
    """
    y, longer, clusters = (np.asarray(values, dtype=np.float64) for values in (wins, lengths, prompts))
    if y.ndim != 1 or not len(y) or not y.shape == longer.shape == clusters.shape:
        raise ValueError(
            f"wins {y.shape}, lengths {longer.shape} and prompts {clusters.shape} must be of one shape (N,)"
        )
    cluster = np.unique(clusters, return_inverse=True)[1]
    num_clusters = int(cluster.max()) + 1
    if np.ptp(y) == 0:
        counts = np.stack([np.bincount(cluster, y), np.bincount(cluster)], axis=-1)
        return {"value": float(y[0]), "interval": list(clustered_interval(counts.tolist()))}
    deviation = longer.std()
    columns = np.stack([np.ones(len(y)), np.tanh(longer / deviation) if deviation > 0 else np.zeros(len(y))], axis=1)
    theta, bread = _fit(columns, y)
    if num_clusters < 2:
        return {"value": float(expit(theta[0])), "interval": None}
    residuals = columns * (y - expit(columns @ theta))[:, None]
    sums = np.stack([np.bincount(cluster, column, num_clusters) for column in residuals.T], axis=1)
    variance = bread @ (sums.T @ sums) @ bread * num_clusters / (num_clusters - 1)
    half = float(stdtrit(num_clusters - 1, 0.975)) * math.sqrt(variance[0, 0])
    return {"value": float(expit(theta[0])), "interval": [float(expit(theta[0] + sign * half)) for sign in (-1, 1)]}


def _fit(columns: Floats, y: Floats) -> tuple[Floats, Floats]:
    """(F,) logistic coefficients of (N, F) columns, and (F, F) the inverse of the log-likelihood's curvature."""
    penalty = RIDGE * len(y)

    def loss(theta: Floats) -> float:
        logits = columns @ theta
        return float(np.logaddexp(0, logits).sum() - y @ logits + penalty / 2 * theta @ theta)

    def slope(theta: Floats) -> Floats:
        gradient: Floats = columns.T @ (expit(columns @ theta) - y) + penalty * theta
        return gradient

    def curvature(theta: Floats) -> Floats:
        p = expit(columns @ theta)
        bend: Floats = (columns * (p * (1 - p))[:, None]).T @ columns + penalty * np.eye(len(theta))
        return bend

    start = np.zeros(columns.shape[1])
    found = minimize(loss, start, jac=slope, hess=curvature, method="trust-exact", options={"gtol": 1e-8 * len(y)})
    if not found.success:
        raise ArithmeticError(f"length-controlled win rate: {found.message}")
    theta: Floats = found.x
    return theta, np.linalg.inv(curvature(theta)).astype(np.float64)


def by_prompt(values: ArrayLike) -> Figure:
    """The mean of what is known of each prompt, (B,), nan where nothing is."""
    given = np.asarray(values, dtype=np.float64)
    known = given[np.isfinite(given)]
    return Clustered(np.arange(len(known))).mean(known)


def shown(
    prompts: Sequence[Messages], answers: Sequence[Sequence[Answers]], scores: Sequence[Scores], rng: random.Random
) -> list[dict[str, Any]]:
    """Up to 50 prompts with each policy's first response: half of them those that the held-out reward tells apart most,
    then as many others at random.
    """
    firsts = [[float(own[0]) for own in one.held_out] for one in scores]
    spreads = [max(own) - min(own) if np.isfinite(own).all() else -math.inf for own in firsts]
    order = sorted(range(len(prompts)), key=lambda place: -spreads[place])
    num_telling = (min(NUM_SHOWN, len(prompts)) + 1) // 2
    telling, rest = order[:num_telling], order[num_telling:]
    others = rng.sample(rest, min(NUM_SHOWN - num_telling, len(rest)))
    return [
        {
            "prompt": prompts[place],
            "responses": [own[place].responses[0] for own in answers],
            "held_out": as_json(firsts[place]),
        }
        for place in telling + others
    ]


def called(paths: Sequence[str]) -> list[str]:
    """A name for each policy: of a run its folder's, otherwise the last part; numbered where several are the same."""
    names = []
    for path in paths:
        parts = [part for part in path.replace("\\", "/").split("/") if part not in {"", "."}]
        is_run = len(parts) > 1 and parts[-1] == "model"
        names.append(f"run {parts[-2]}" if is_run else parts[-1])
    return [
        f"{name} ({names[: place + 1].count(name)})" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]


def prompts_to_compare_on(path: Path, wanted: int, seed: int) -> list[Messages]:
    """The different prompts of the test split, or `wanted` of them drawn by hashing, in their order; 0 for all."""
    prompts = {prompt_key(ranked.prompt): ranked.prompt for ranked in read_rankings(path, "test")}
    chosen = set(in_hash_order(list(prompts), seed)[: wanted or None])
    return [prompt for key, prompt in prompts.items() if key in chosen]


def _reads_the_same(tokenizer: Any, other: Any) -> bool:
    try:
        require_same_tokens(tokenizer, other)
    except ConfigError:
        return False
    return True


def _mean(scores: Floats) -> float:
    """The mean of the known ones; nan where none is."""
    known = scores[np.isfinite(scores)]
    return float(known.mean()) if len(known) else math.nan


def _floats(values: Sequence[float | None]) -> Floats:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)
