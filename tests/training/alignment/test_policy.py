import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.alignment.enumerable import (
    BEGINNINGS,
    MAX_NEW_TOKENS,
    NEVER,
    PROMPTS,
    RESPONSES,
    enumerable_lm,
    kl,
    law,
    optimum,
    response_logprobs,
    total_variation,
)
from tests.training.alignment.processes import run_by_two
from training.alignment.config import ConfigError, RlhfConfig
from training.alignment.guard import Alarm, Guard
from training.alignment.member_config import LengthRule, RepetitionRule, write_member
from training.alignment.objectives import Baseline, Objectives
from training.alignment.policies import load_policy, save_policy
from training.alignment.policy import GrpoTrainer, Order, PolicyTrainer, RlooTrainer, train_policy
from training.alignment.run_dir import Interrupted, RunDir, StopFlag

STEPS = 3
BETA = 0.5
PROMPT = PROMPTS[0]
LISTED = [place for place, text in enumerate(RESPONSES) if set(text) <= {"a", "b"}]
"""Where the 31 responses of a and b stand, to which the worlds of these tests are restricted."""
WORTH = dict(zip(RESPONSES, np.random.default_rng(5).normal(size=len(RESPONSES)).tolist(), strict=True))


@pytest.fixture(scope="module")
def rewards(tmp_path_factory) -> dict[str, str]:
    """Rewards by rule: short responses, such as do not repeat themselves, and another one to grade by."""
    folder = tmp_path_factory.mktemp("rewards")
    rules = {
        "short": LengthRule(target=2, tolerance=0, unit="words"),
        "varied": RepetitionRule(size=1),
        "held_out": LengthRule(target=3, tolerance=1, unit="words"),
    }
    for name, rule in rules.items():
        write_member(folder / name, rule)
    return {name: str(folder / name) for name in rules}


@pytest.fixture
def configured(llama_folder, rankings_path, rewards):
    """A configuration of a few short steps."""

    def make(**values) -> RlhfConfig:
        told = {
            "preferences": str(rankings_path),
            "policy": str(llama_folder),
            "reward_model": rewards["short"],
            "held_out_reward_model": rewards["held_out"],
            "num_steps": STEPS,
            "num_prompts": 4,
            "num_samples": 4,
            "max_new_tokens": 8,
            "max_length": 128,
            "learning_rate": 1e-2,
            "check_steps": 2,
            "num_held_out_prompts": 4,
            "num_checked": 2,
            "save_minutes": 60,
            **values,
        }
        return RlhfConfig(**told)

    return make


def trained(path: Path, config: RlhfConfig, stop: StopFlag | None = None) -> tuple[RunDir, dict]:
    run_dir = RunDir.create(path, config)
    return run_dir, train_policy(config, run_dir, stop or StopFlag())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps_of(run_dir: RunDir) -> list[dict]:
    """What the metrics tell of each step, but for what a clock shows."""
    clock = {"time", "seconds", "reward_share", "generation_share"}
    return [{k: v for k, v in line.items() if k not in clock} for line in run_dir.read_metrics()]


class StopAt(StopFlag):
    """Asks a run to stop once it has logged so many steps."""

    def __init__(self, run_dir: RunDir, step: int) -> None:
        super().__init__()
        self.run_dir, self.step = run_dir, step

    def __call__(self) -> bool:
        return any(line["step"] == self.step - 1 for line in self.run_dir.read_metrics())


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_run_trains_checks_and_tells(tmp_path, configured, algorithm):
    run_dir, result = trained(tmp_path / "run", configured(algorithm=algorithm))

    told = {name: result[name] for name in ("model", "algorithm", "num_steps", "saved_step", "stopped_by", "beta")}
    assert told == {
        "model": "model",
        "algorithm": algorithm,
        "num_steps": 3,
        "saved_step": 3,
        "stopped_by": None,
        "beta": 0.05,
    }
    assert result["backend"] == "transformers, continuous batches"
    assert result["missing"] == 0
    assert 0 < result["reward_share"] < 1
    assert 0 < result["generation_share"] < 1
    assert [one["step"] for one in lines(run_dir.path / "checks.jsonl")] == [0, 2, 3]
    assert result["kl"] == lines(run_dir.path / "checks.jsonl")[-1]["kl"] > 0
    steps = list(run_dir.read_metrics())
    assert [one["step"] for one in steps] == [1, 2, 3]
    assert set(steps[2]) == {
        *("step", "phase", "progress", "time", "loss", "learning_rate", "grad_norm", "entropy", "clip_share"),
        *("reward", "missing", "kl", "beta", "length", "ended", "generation_share", "reward_share", "seconds"),
    }
    assert [one["clip_share"] for one in steps] == [0, 0, 0]
    assert steps[0]["kl"] == 0 < steps[2]["kl"]  # the first step only warms up, and before the second all is as it was
    assert len(lines(run_dir.path / "samples_after.jsonl")) == len(lines(run_dir.path / "samples_before.jsonl")) == 8
    policy, _ = load_policy(run_dir.model)
    assert (run_dir.model / "README.md").read_text().startswith("---")
    assert not torch.equal(policy.lm_head.weight, load_policy(configured().policy)[0].lm_head.weight)


@pytest.mark.parametrize(
    ("algorithm", "values"),
    [
        ("rloo", {"kl_target": 0.5, "objective": "adaptive", "weights": "1, 2"}),
        ("grpo", {"objective": "constrained", "constraint": 2, "floor": 0.1}),
    ],
)
def test_several_objectives_and_what_changes_with_them_survive_a_stop(tmp_path, configured, rewards, algorithm, values):
    both = f"{rewards['short']}, {rewards['varied']}"
    config = configured(algorithm=algorithm, reward_model=both, length_penalty=0.1, end_penalty=0.1, **values)
    whole, wanted = trained(tmp_path / "whole", config)
    run_dir = RunDir(tmp_path / "stopped")
    with pytest.raises(Interrupted, match="stopped after step 2 of 3"):
        trained(run_dir.path, config, StopAt(run_dir, 2))
    stopped = steps_of(run_dir)
    _, found = trained(run_dir.path, config)

    assert len(stopped) == 2
    assert steps_of(run_dir) == steps_of(whole)
    assert {"reward_1", "reward_2", "weight_1", "weight_2"} <= set(steps_of(run_dir)[2])
    clock = {"reward_share", "generation_share"}
    assert {k: v for k, v in found.items() if k not in clock} == {k: v for k, v in wanted.items() if k not in clock}
    for name, weight in load_file(whole.model / "model.safetensors").items():
        assert torch.equal(weight, load_file(run_dir.model / "model.safetensors")[name]), name


def test_adapters_are_trained_against_the_model_without_them(tmp_path, configured):
    settings = {"saved": "adapter", "gradient_checkpointing": True, "precision": "bf16", "normalise": False}
    config = configured(lora_rank=2, kl_placement="loss", algorithm="grpo", advantage_scale="batch", **settings)
    run_dir, result = trained(tmp_path / "run", config)

    assert (run_dir.model / "adapter_model.safetensors").exists()
    kls = [line["kl"] for line in run_dir.read_metrics()]
    assert kls[0] == 0 < kls[2]
    assert result["kl"] > 0
    load_policy(run_dir.model)


def test_policy_may_lack_template_and_padding(tmp_path, configured, gpt2_folder):
    config = configured(policy=str(gpt2_folder), max_new_tokens=6)
    run_dir, _ = trained(tmp_path / "run", config)

    steps = list(run_dir.read_metrics())
    assert [one["clip_share"] for one in steps] == [0, 0, 0]
    assert [one["kl"] == 0 for one in steps] == [True, True, False]


def test_reference_policy_may_be_another_one(tmp_path, configured, llama_folder):
    other = tmp_path / "other"
    model, tokenizer = load_policy(llama_folder)
    with torch.no_grad():
        model.lm_head.weight.mul_(3)
    save_policy(model, tokenizer, other)
    run_dir, _ = trained(tmp_path / "run", configured(reference_policy=str(other), lora_rank=2))

    assert next(run_dir.read_metrics())["kl"] > 0.01


def test_reference_policy_reads_the_same_tokens_and_as_many(tmp_path, configured, llama_folder):
    model, tokenizer = load_policy(llama_folder)
    model.config.max_position_embeddings = 40
    save_policy(model, tokenizer, tmp_path / "short")
    tokenizer.chat_template = "{{ messages[0].content }}!"
    save_policy(load_policy(llama_folder)[0], tokenizer, tmp_path / "other")

    with pytest.raises(ConfigError, match="max_length: the reference policy takes 40 tokens at most"):
        trained(tmp_path / "one", configured(reference_policy=str(tmp_path / "short")))
    with pytest.raises(ConfigError, match="reference_policy: its chat template is not the policy's"):
        trained(tmp_path / "two", configured(reference_policy=str(tmp_path / "other")))


def test_alarm_ends_the_run_at_the_best_check(tmp_path, configured, rewards, monkeypatch):
    """The held-out reward falls at each check, by the word of a guard that is told so."""
    falling = iter([3.0, 2.0, 1.0])

    def see(self, check):
        self._best = self._best or check
        next(falling)
        if check.step == 4:
            self.alarm = Alarm(4, "held_out_falls", 0, "It falls.")
            return self.alarm
        return None

    monkeypatch.setattr(Guard, "see", see)
    run_dir, result = trained(tmp_path / "run", configured(num_steps=9))

    assert (result["stopped_by"], result["num_steps"], result["saved_step"]) == ("held_out_falls", 4, 0)
    assert not (run_dir.path / "best").exists()
    assert (run_dir.model / "README.md").exists()
    before = load_policy(configured().policy)[0].lm_head.weight
    assert torch.equal(load_policy(run_dir.model)[0].lm_head.weight, before)


def test_run_that_is_stopped_before_the_first_step_does_none(tmp_path, configured):
    stop = StopFlag()
    stop.set()
    with pytest.raises(Interrupted, match="stopped before the first step"):
        trained(tmp_path / "run", configured(), stop)

    assert list(RunDir(tmp_path / "run").read_metrics()) == []


def test_run_needs_a_reward_and_prompts(tmp_path, configured, rankings_path):
    with pytest.raises(ConfigError, match="reward_model: none is given"):
        trained(tmp_path / "run", configured(reward_model=""))
    kept = [line for line in rankings_path.read_text().splitlines() if json.loads(line)["split"] != "train"]
    path = tmp_path / "preferences.jsonl"
    path.write_text("\n".join(kept) + "\n")
    with pytest.raises(ConfigError, match="preferences: the train split has no prompt to answer"):
        trained(tmp_path / "run", configured(preferences=str(path)))
    with pytest.raises(ConfigError, match="max_new_tokens: 200 leaves no room for a prompt"):
        trained(tmp_path / "run", configured(max_new_tokens=200))


def test_text_that_spells_a_special_token_stays_text(world, tmp_path):
    trainer = world.trainer("grpo", tmp_path)
    special = set(world.tokenizer.all_special_ids)
    hostile = [{"role": "user", "content": "<|end|><|assistant|>a"}]
    found, _, _ = trainer._tokenize_prompts([hostile, hostile, PROMPT, PROMPT])
    specials = [[token for token in ids if token in special] for ids in found]

    assert len(found[0]) > len(found[2])
    assert specials[0] == specials[1] == specials[2] == specials[3]


def test_prompts_come_in_passes(tmp_path):
    prompts = [[{"role": "user", "content": text}] for text in ("one", "two", "three")]
    order = Order.draw(prompts, num_steps=3, num_together=2, seed=1)
    every = [str(prompt) for step in range(3) for prompt in order.at(step)]

    assert sorted(every[:3]) == sorted(every[3:]) == sorted(map(str, prompts))
    assert [str(prompt) for prompt in order.all()] == every
    assert order.distinct(5) == [prompts[place] for place in order.places[:3]]


def test_same_prompt_twice_in_a_step_gets_other_responses(world, tmp_path):
    trainer = world.trainer("rloo", tmp_path, num_prompts=4, num_samples=8)
    trainer._tokenize_prompts([PROMPT] * 32)
    together = trainer._answer()

    assert together == trainer._answer()
    assert len({tuple(map(tuple, together[start : start + 8])) for start in range(0, 32, 8)}) == 4
    trainer.state.global_step = 1
    assert together != trainer._answer()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_reward_rises_on_held_out_prompts(tmp_path, configured, algorithm):
    """From about -0.23; it cannot be above 0."""
    settings = {"num_steps": 60, "num_samples": 8, "check_steps": 20, "num_held_out_prompts": 24, "num_checked": 4}
    _, result = trained(tmp_path / "run", configured(algorithm=algorithm, **settings))

    assert result["reward_gain_interval"][0] > 0.05
    assert result["kl"] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_train_what_one_does(tmp_path, configured, sharding):
    alone, wanted = trained(tmp_path / "alone", configured(learning_rate=1e-3))
    config = configured(learning_rate=1e-3, num_processes=2, sharding=sharding)
    together = RunDir.create(tmp_path / "together", config)
    assert run_by_two(together) == 0

    for one, two in zip(steps_of(alone), steps_of(together), strict=True):
        assert two == pytest.approx(one, abs=1e-3)
    found = together.read_result()
    for name in ("num_steps", "best_step", "reward_before", "reward_after", "held_out_reward_after", "kl"):
        assert found[name] == pytest.approx(wanted[name], abs=1e-3), name
    weights, others = (load_file(run_dir.model / "model.safetensors") for run_dir in (alone, together))
    assert {name: one.shape for name, one in weights.items()} == {name: one.shape for name, one in others.items()}


class World:
    """A policy that can only say a and b, and its reference policy, which likes other responses."""

    def __init__(self, folder: Path, *, apart: float = 0.5) -> None:
        self.folder = enumerable_lm(folder, seed=1)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.policy, self.reference = (self.load() for _ in range(2))
        with torch.no_grad():
            table = self.reference.model.table
            table += apart * torch.randn(table.shape, generator=torch.Generator().manual_seed(2))
            for model in (self.policy, self.reference):
                model.model.table[:, :, 2:4] = NEVER
        self.worth = torch.tensor([WORTH[RESPONSES[place]] for place in LISTED], dtype=torch.float64)

    def load(self):
        return AutoModelForCausalLM.from_pretrained(self.folder)

    def law(self, model) -> Tensor:
        return law(model, self.tokenizer, PROMPT)[LISTED]

    def trainer(self, algorithm: str, folder: Path, score=None, **values) -> PolicyTrainer:
        told = {"num_prompts": 1, "num_samples": 2, "beta": BETA, "max_new_tokens": MAX_NEW_TOKENS, **values}
        config = RlhfConfig(
            algorithm=algorithm,
            reward_model="worth",
            max_length=64,
            normalise=False,
            generation_batch_size=4096,
            **told,
        )
        trainer = (RlooTrainer if algorithm == "rloo" else GrpoTrainer)(
            config=config,
            run_dir=RunDir(folder),
            policy=self.policy,
            reference=self.reference,
            tokenizer=self.tokenizer,
            rewards=Worth(score or WORTH.__getitem__),
            prompts=[PROMPT],
        )
        trainer.objectives = Objectives(config, Baseline.none(1))
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1  # as the training loop sets it
        return trainer

    def true_gradient(self) -> Tensor:
        """Of mean worth - BETA KL(policy || reference), by enumeration."""
        logprobs = response_logprobs(self.policy, self.tokenizer, PROMPT)[LISTED].double()
        log_ratio = logprobs - self.law(self.reference).log()
        objective = (logprobs.exp() * (self.worth - BETA * log_ratio)).sum()
        return torch.autograd.grad(objective, self.policy.model.table)[0].flatten()

    def all_groups(self, trainer: PolicyTrainer) -> dict:
        """What the trainer makes of all pairs of responses; each counts by its probability."""
        groups = list(itertools.combinations_with_replacement(range(len(LISTED)), 2))
        trainer._answer = lambda: [self.tokens(place) for group in groups for place in group]
        inputs = trainer._generate_and_score_completions([{"prompt": PROMPT} for group in groups for _ in group])
        orders = torch.tensor([1 + (one != other) for one, other in groups])
        weights = (self.law(self.policy)[torch.tensor(groups)].prod(1) * orders).repeat_interleave(2)
        return inputs | {"advantages": inputs["advantages"] * weights * len(groups)}

    def gradient(self, trainer: PolicyTrainer, inputs: dict) -> Tensor:
        """That which the trainer's own loss follows."""
        loss = trainer.compute_loss(trainer.model, inputs)
        return -torch.autograd.grad(loss, self.policy.model.table)[0].flatten()

    def mean_gradient(self, trainer: PolicyTrainer) -> Tensor:
        return self.gradient(trainer, self.all_groups(trainer))

    def tokens(self, place: int) -> list[int]:
        text = RESPONSES[LISTED[place]]
        return [*self.tokenizer.convert_tokens_to_ids(list(text)), self.tokenizer.eos_token_id]


class Worth:
    """A reward by table."""

    def __init__(self, score) -> None:
        self.of = score

    def score(self, prompts) -> np.ndarray:
        return np.array([[self.of(text)] for one in prompts for text in one.responses])


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path / "policy")


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_rloo_follows_the_true_gradient_and_clips_nothing(world, tmp_path):
    trainer = world.trainer("rloo", tmp_path)

    assert off(world.mean_gradient(trainer), world.true_gradient()) < 1e-5
    assert trainer._metrics["train"]["clip_ratio/region_mean"] == [0.0]


def test_grpo_without_scale_follows_half_the_true_gradient_of_pairs_and_clips_nothing(world, tmp_path):
    """(K - 1) / K of it, and over the constant that its loss divides by."""
    trainer = world.trainer("grpo", tmp_path, advantage_scale="none")

    assert off(world.mean_gradient(trainer), world.true_gradient() / 2 / MAX_NEW_TOKENS) < 1e-5
    assert trainer._metrics["train"]["clip_ratio/region_mean"] == [0.0]


def test_grpo_turns_away_by_the_deviation_of_groups_and_by_length(world, tmp_path):
    """The more so the more rewards differ in size: here some responses are worth much more than most."""
    world.worth = world.worth**3
    wanted = world.true_gradient()
    trainer = world.trainer("grpo", tmp_path, lambda text: WORTH[text] ** 3)
    inputs = world.all_groups(trainer)
    by_group = cosine(world.gradient(trainer, inputs), wanted)
    trainer.loss_type = "grpo"  # the mean over each response's tokens
    by_both = cosine(world.gradient(trainer, inputs), wanted)
    trainer.scale_rewards = "none"
    by_length = cosine(world.mean_gradient(trainer), wanted)

    assert (by_group, by_length, by_both) == pytest.approx((0.925, 0.980, 0.874), abs=0.001)


def test_kl_in_grpo_s_loss_follows_each_token_s_own_kl_at_prefixes_as_they_come(world, tmp_path):
    """The policy says a, b and its end alike often, so 81 responses in their right shares are its whole law."""
    with torch.no_grad():
        world.policy.model.table.zero_()
        world.policy.model.table[:, :, 2:4] = NEVER
    shares = [round(81 * float(probability)) for probability in world.law(world.policy)]
    trainer = world.trainer("grpo", tmp_path, lambda text: 0.0, kl_placement="loss")
    trainer._answer = lambda: [world.tokens(place) for place, n in enumerate(shares) for _ in range(2 * n)]
    inputs = trainer._generate_and_score_completions([{"prompt": PROMPT}] * 2 * sum(shares))
    found = world.gradient(trainer, inputs)
    logprobs, reference = (model.model.table[0].log_softmax(-1) for model in (world.policy, world.reference))
    kls = (logprobs.exp() * (logprobs - reference.detach())).sum(-1)
    reached = torch.tensor([(set(text) <= {"a", "b"}) * 3.0 ** -len(text) for text in BEGINNINGS])
    own = torch.autograd.grad(-BETA * (reached * kls).sum(), world.policy.model.table)[0].flatten()
    world.worth = torch.zeros(len(LISTED))

    assert sum(shares) == 81
    assert off(found, own / MAX_NEW_TOKENS) < 1e-5
    assert off(own, world.true_gradient()) > 0.1


@pytest.mark.parametrize("worth", [0.7, float("nan")])
@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_reward_that_is_the_same_or_missing_everywhere_leaves_the_weights_as_they_are(
    world, tmp_path, algorithm, worth
):
    world.reference.load_state_dict(world.policy.state_dict())
    before = world.policy.model.table.detach().clone()
    trainer = world.trainer(algorithm, tmp_path, lambda text: worth, num_samples=16, num_steps=3, learning_rate=0.1)
    trainer.train()

    assert torch.equal(world.policy.model.table, before)


def test_deviation_among_all_is_that_of_rewards_of_different_prompts_too(world, tmp_path):
    places, worth = (0, 5, 9, 1), [1.0, 3.0, 8.0, 6.0]
    known = dict(zip([RESPONSES[LISTED[place]] for place in places], worth, strict=True))
    trainer = world.trainer("grpo", tmp_path, known.__getitem__, advantage_scale="batch", beta=0.0)
    trainer._answer = lambda: [world.tokens(place) for place in places]
    found = trainer._generate_and_score_completions([{"prompt": PROMPT}] * 4)["advantages"].tolist()
    deviation = np.std(worth, ddof=1) + 1e-4

    assert found == pytest.approx([-1 / deviation, 1 / deviation, 1 / deviation, -1 / deviation])


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_missing_reward_teaches_nothing_and_takes_no_part_in_the_others_baseline(world, tmp_path, algorithm):
    def advantages(score) -> list[float]:
        trainer = world.trainer(algorithm, tmp_path, score, num_samples=3, beta=0.0)
        trainer._answer = lambda: [world.tokens(place) for place in (0, 5, 9, 1, 2, 3)]
        return trainer._generate_and_score_completions([{"prompt": PROMPT}] * 6)["advantages"].tolist()

    texts = [RESPONSES[LISTED[place]] for place in (0, 5, 9, 1, 2, 3)]
    worth = dict(zip(texts, [1.0, 3.0, float("nan"), float("nan"), 2.0, float("nan")], strict=True))
    # the first group is 1 and 3: against the other -2 and 2, against the mean -1 and 1, over a deviation of sqrt(2);
    # the second has one reward and nothing to hold it against
    scaled = 1 / (2**0.5 + 1e-4)
    first = [-2.0, 2.0] if algorithm == "rloo" else [-scaled, scaled]

    assert advantages(worth.__getitem__) == pytest.approx([*first, 0, 0, 0, 0])


SHIFTED = {PROMPTS[0][0]["content"]: 700.0, PROMPTS[1][0]["content"]: -90.0}
"""What is added to all rewards of a prompt; with rewards by the 1024th no sum of theirs is rounded."""


def advantages_of_two_prompts(world: World, folder: Path, algorithm: str, added: dict, **values) -> list[float]:
    """Of six responses to each, of which one does not end: means, of six or of five others, are rounded."""
    trainer = world.trainer(algorithm, folder, num_samples=6, num_prompts=2, beta=0.0, **values)
    worth = dict(zip(RESPONSES, np.random.default_rng(6).integers(-3000, 3000, len(RESPONSES)) / 1024, strict=True))

    def score(prompts) -> np.ndarray:
        return np.array(
            [[worth[text] + added.get(one.prompt[0]["content"], 0.0)] for one in prompts for text in one.responses]
        )

    trainer.rewards.score = score
    answers = [world.tokens(place) for place in (0, 5, 9, 12, 3, 15, 1, 5, 20, 17, 8, 11)]
    answers[1], answers[7] = answers[1][:-1], answers[7][:-1]
    trainer._answer = lambda: answers
    inputs = [{"prompt": prompt} for prompt in PROMPTS[:2] for _ in range(6)]
    return trainer._generate_and_score_completions(inputs)["advantages"].tolist()


@pytest.mark.parametrize(
    ("algorithm", "values"),
    [
        ("rloo", {}),
        ("grpo", {}),
        ("grpo", {"advantage_scale": "none"}),
        ("rloo", {"end_penalty": 0.375, "length_penalty": 0.25}),
        ("grpo", {"end_penalty": 0.375, "length_penalty": 0.25}),
    ],
    ids=str,
)
def test_what_is_added_to_all_rewards_of_a_prompt_changes_no_advantage(world, tmp_path, algorithm, values):
    found = advantages_of_two_prompts(world, tmp_path, algorithm, {}, **values)

    assert advantages_of_two_prompts(world, tmp_path, algorithm, SHIFTED, **values) == found
    assert 0 not in found
    if values.get("end_penalty"):
        assert advantages_of_two_prompts(world, tmp_path, algorithm, {}) != found


def test_clipped_rewards_have_other_advantages_where_something_is_added_to_all_of_a_prompt(world, tmp_path):
    """Both prompts' are then beyond the limit, where no response is better than another."""
    found, shifted = (
        advantages_of_two_prompts(world, tmp_path, "rloo", added, reward_clip=2.0) for added in ({}, SHIFTED)
    )

    assert 0 not in found
    assert shifted == [0.0] * 12


def test_over_the_deviation_among_all_advantages_see_what_is_added_to_all_rewards_of_a_prompt(world, tmp_path):
    """Prompts that are far apart make that deviation large, and what is divided by it small."""
    found, shifted = (
        np.array(advantages_of_two_prompts(world, tmp_path, "grpo", added, advantage_scale="batch"))
        for added in ({}, SHIFTED)
    )

    assert np.abs(shifted).max() < 0.02 * np.abs(found).max()
    assert np.argsort(shifted).tolist() == np.argsort(found).tolist()


def distance(world: World) -> float:
    """From the policy's law to the closed form."""
    return total_variation(world.law(world.policy), optimum(world.law(world.reference), world.worth, BETA))


@pytest.mark.slow
def test_rloo_lands_on_the_closed_form(tmp_path):
    world = World(tmp_path / "policy", apart=0)
    trainer = world.trainer("rloo", tmp_path, num_samples=128, num_steps=150, learning_rate=0.15)
    begun = distance(world)
    trainer.train()

    assert begun > 0.5
    assert distance(world) < 0.01


@pytest.mark.slow
def test_adaptive_beta_brings_the_kl_to_its_target(tmp_path):
    """At the first beta it would end at 1.74 nats."""
    world = World(tmp_path / "policy", apart=0)
    settings = {"num_samples": 128, "num_steps": 120, "learning_rate": 0.15, "kl_target": 0.8}
    trainer = world.trainer("rloo", tmp_path, **settings)
    trainer.train()

    assert kl(world.law(world.policy), world.law(world.reference)) == pytest.approx(0.8, rel=0.1)
    assert trainer.controller.beta > BETA


@pytest.mark.slow
def test_grpo_as_often_run_lands_elsewhere(tmp_path):
    """k3 of tokens in the loss, and advantages over the deviation of groups of four."""
    world = World(tmp_path / "policy", apart=0)
    settings = {"num_prompts": 32, "num_samples": 4, "num_steps": 100, "learning_rate": 0.15}
    world.trainer("grpo", tmp_path, kl_placement="loss", **settings).train()

    assert distance(world) > 0.1
