"""What a run is told: one frozen dataclass per kind of run.

Standard library only, so that the web and worker processes can read and check a configuration without loading
torch. A configuration travels as `run.json` in the run directory: `{"kind": "reward_model", "config": {…}}`.
Paths in it are absolute or relative to the run directory. Each field's `help` is what a form shows beside it.
"""

import dataclasses
import math
import typing
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

Config = typing.TypeVar("Config")
KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class ConfigError(ValueError):
    """A value that a run cannot work with; the message names the field."""


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with what a form needs to show and to check it."""
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every kind of run has."""

    kind: ClassVar[str]

    seed: int = option(0, "Same seed, same data, same machine: same result.", minimum=0)
    num_processes: int = option(1, "Processes started through accelerate; one for each GPU.", minimum=1, maximum=64)
    save_minutes: float = option(5.0, "Minutes between checkpoints.", minimum=0)

    def __post_init__(self) -> None:
        for item in fields(self):
            check_field(item, getattr(self, item.name))


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig(RunConfig):
    """Train one reward model on rankings: Bradley-Terry for pairs, Plackett-Luce for lists."""

    kind: ClassVar[str] = "reward_model"

    preferences: str = option("preferences.jsonl", "The frozen preference set.")
    backbone: str = option("", "A Hugging Face id, a local folder, or the name of an earlier run.")
    aspect: str = option("overall", "Which judgments to learn from; several, separated by commas, get a head each.")
    num_epochs: float = option(3.0, "Passes over the training rankings; the best on validation is kept.", minimum=0.01)
    learning_rate: float = option(1e-4, "Peak learning rate of AdamW.", minimum=0)
    batch_size: int = option(
        16, "Prompts with their responses, and all judgments of these, in one step over all processes.", minimum=1
    )
    loss: str = option(
        "plackett_luce",
        "plackett_luce: the likelihood of the whole ranking; all_pairs: the mean over its ordered pairs, as in "
        "InstructGPT. For two responses both are Bradley-Terry.",
        choices=("plackett_luce", "all_pairs"),
    )
    ties: str = option(
        "exact",
        "What a tie says. exact: any order of the tied ones, so a tied pair teaches nothing; efron: the same, "
        "approximated; davidson and rao_kupper: that they are about equal, by a tie parameter that is learned. Nobody "
        "has tied the bad ones, nor all but the best where only that was asked for: these teach nothing of each other.",
        choices=("exact", "efron", "davidson", "rao_kupper"),
    )
    margin: float = option(0.0, "Nats by which a strongly preferred response should lead, at least.", minimum=0)
    label_smoothing: float = option(0.0, "Weight of the opposite ranking in the loss.", minimum=0, maximum=0.49)
    flip_rate: float = option(0.0, "Share of judgments taken to be the wrong way round.", minimum=0, maximum=0.49)
    learn_flip_rate: bool = option(False, "Learn that share along with the rewards, starting from flip_rate.")
    annotators: str = option(
        "equal",
        "equal: all judgments alike; weights: by each judgment's own weight; temperatures, flip_rates: learn how "
        "sharply, or how often the right way round, each annotator judges.",
        choices=("equal", "weights", "temperatures", "flip_rates"),
    )
    centring: float = option(
        0.0, "Penalty on rewards away from zero. It shrinks true differences: 0.01 to 0.85 of their size.", minimum=0
    )
    length: str = option(
        "ignore",
        "control: learn what length by itself counts for in the judgments, and leave it out of the rewards, which are "
        "then the same on average for long and short responses to a prompt. Where longer ones are truly better, that "
        "is left out too.",
        choices=("ignore", "control"),
    )
    length_penalty: float = option(
        0.3, "Of control: what keeps the reward itself from following length. 0 for nothing.", minimum=0, maximum=3
    )
    max_length: int = option(1024, "Tokens of prompt and response; a longer prompt loses its beginning.", minimum=16)
    max_tokens: int = option(16384, "Tokens in one forward pass.", minimum=64)
    packing: str = option(
        "auto",
        "shared: a prompt stands once for all its responses; separate: sequences side by side without padding; padded: "
        "batches of similar length; alone: one by one. auto takes the first that gives the model's own rewards.",
        choices=("auto", "shared", "separate", "padded", "alone"),
    )
    warmup_ratio: float = option(0.05, "Share of the steps in which the learning rate rises.", minimum=0, maximum=1)
    weight_decay: float = option(0.01, "AdamW's weight decay.", minimum=0)
    dropout: bool = option(False, "Keep the backbone's dropout; the field trains reward models without.")
    eval_steps: int = option(0, "Optimizer steps between validations; 0 for about five an epoch.", minimum=0)
    patience: int = option(0, "Stop after so many validations without a better one; 0 for never.", minimum=0)
    precision: str = option(
        "auto",
        "What is computed in; weights stay in fp32. auto: bf16 where the hardware multiplies in it, else fp32.",
        choices=("auto", "fp32", "bf16"),
    )
    gradient_checkpointing: bool = option(False, "Compute activations twice instead of keeping them: less memory.")
    lora_rank: int = option(0, "Train low-rank adapters of this rank, and the head; 0 for all weights.", minimum=0)
    lora_alpha: float = option(32.0, "Adapters are scaled by this over their rank.", minimum=0)
    sharding: str = option(
        "none",
        "fsdp: each process holds a part of weights, gradients and optimizer, for models that do not fit.",
        choices=("none", "fsdp"),
    )

    @property
    def aspects(self) -> list[str]:
        return split_names(self.aspect)


@dataclass(frozen=True, kw_only=True)
class LearningCurveConfig(RewardModelConfig):
    """Held-out accuracy against the number of judgments: train on nested parts of the training prompts."""

    kind: ClassVar[str] = "learning_curve"

    num_points: int = option(
        5, "Parts: all training prompts, half of them, a quarter, and so on.", minimum=2, maximum=12
    )
    num_seeds: int = option(1, "Reward models trained on each part, from consecutive seeds.", minimum=1, maximum=20)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(RunConfig):
    """Score responses from a file: {"prompt", "responses"} or {"prompt", "response"} a line, as many as there are."""

    kind: ClassVar[str] = "score"

    responses: str = option("", "A JSONL file of prompts with their responses; a preference set is one.")
    reward_model: str = option("", "A folder, a Hugging Face id, or the name of an earlier run.")
    max_length: int = option(0, "Tokens of prompt and response; 0 for as many as the model was trained on.", minimum=0)
    max_tokens: int = option(16384, "Tokens in one forward pass.", minimum=64)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunConfig):
    """Held-out accuracy of a reward model on a preference set."""

    kind: ClassVar[str] = "evaluate"

    preferences: str = option("preferences.jsonl", "The frozen preference set.")
    reward_model: str = option("", "A folder, a Hugging Face id, or the name of an earlier run.")
    other_reward_model: str = option("", "Another one, to be compared with on the same pairs.")
    aspect: str = option("overall", "Which judgments to compare with; several, separated by commas, or all.")
    split: str = option("test", "Which part of the preference set.", choices=("test", "validation", "train", "all"))
    max_length: int = option(0, "Tokens of prompt and response; 0 for as many as the model was trained on.", minimum=0)
    max_tokens: int = option(16384, "Tokens in one forward pass.", minimum=64)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(RunConfig):
    """What all runs that train a policy are told about its weights."""

    max_length: int = option(1024, "Tokens of prompt and response.", minimum=16)
    lora_rank: int = option(0, "Train low-rank adapters of this rank; 0 for all weights.", minimum=0)
    lora_alpha: float = option(32.0, "Adapters are scaled by this over their rank.", minimum=0)
    saved: str = option(
        "merged",
        "Of adapters. merged: the policy is saved whole, with the adapters in it, for any server; adapter: they alone, "
        "beside the name of the model that they change.",
        choices=("merged", "adapter"),
    )
    precision: str = option(
        "auto",
        "What is computed in; weights stay in fp32. auto: bf16 where the hardware multiplies in it, else fp32.",
        choices=("auto", "fp32", "bf16"),
    )
    gradient_checkpointing: bool = option(False, "Compute activations twice instead of keeping them: less memory.")
    sharding: str = option(
        "none",
        "fsdp: each process holds a part of weights, gradients and optimizer, for models that do not fit.",
        choices=("none", "fsdp"),
    )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How responses are sampled from a policy."""

    temperature: float = option(1.0, "Sampling temperature.", minimum=0.01, maximum=10)
    top_p: float = option(1.0, "Nucleus sampling: the share of probability to sample from.", minimum=0.01, maximum=1)
    max_new_tokens: int = option(256, "Tokens of one response at the most.", minimum=1)
    generation_batch_size: int = option(64, "Responses generated at a time.", minimum=1)
    backend: str = option(
        "auto",
        "What generates. auto: vLLM where it is installed and there is a GPU, else transformers; the run says which.",
        choices=("auto", "vllm", "transformers"),
    )


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """How a policy's training is watched on held-out prompts, and when it is stopped."""

    held_out_reward_model: str = option(
        "",
        "Grades the policy and is never optimised. Empty: some are trained here on the votes that the preference set "
        "has set aside for the guard, which no other reward has learned from.",
    )
    num_guards: int = option(3, "Held-out reward models trained here; their mean grades.", minimum=1, maximum=9)
    guard: str = option(
        "stop",
        "When the reward rises while the held-out reward falls, or the rewards disagree more than on the training "
        "data. stop: end there and keep the best checkpoint by held-out reward; alarm: say so and go on; off: only "
        "record.",
        choices=("stop", "alarm", "off"),
    )
    patience: int = option(3, "Checks in a row that must show it.", minimum=1, maximum=100)
    num_held_out_prompts: int = option(64, "Test prompts on which the policy is checked.", minimum=1)
    num_checked: int = option(4, "Responses to each of them.", minimum=1, maximum=64)


@dataclass(frozen=True, kw_only=True)
class SftConfig(PolicyConfig):
    """Supervised fine-tuning of a policy on examples: a file of them, or responses of a preference set."""

    kind: ClassVar[str] = "sft"

    policy: str = option(
        "", "A Hugging Face id, a local folder, or an earlier run; new:tiny starts a small one from nothing."
    )
    examples: str = option("", 'A JSONL file of {"prompt": messages or text, "completion": text}.')
    preferences: str = option("", "Without examples: a preference set whose best responses are the examples.")
    responses: str = option(
        "chosen",
        "Which of the preference set's responses. chosen: the best of each ranking; edited: those that people edited.",
        choices=("chosen", "edited"),
    )
    num_epochs: float = option(1.0, "Passes over the examples.", minimum=0.01)
    learning_rate: float = option(2e-5, "Peak learning rate.", minimum=0)
    batch_size: int = option(16, "Examples in one optimizer step, over all processes.", minimum=1)
    packing: bool = option(False, "Fill rows with several examples each, which do not see each other.")


@dataclass(frozen=True, kw_only=True)
class SampleConfig(SamplingConfig, RunConfig):
    """Sample responses to prompts and score them: one shard of a larger run, which any worker can do."""

    kind: ClassVar[str] = "sample"

    prompts: str = option("", 'A JSONL file of {"prompt": messages} in the order of sampling.')
    first: int = option(0, "The first line of it that is sampled here, counted from 0.", minimum=0)
    num_prompts: int = option(0, "How many lines; 0 for all from there.", minimum=0)
    policy: str = option("", "A Hugging Face id, a local folder, or the name of an earlier run.")
    reward_model: str = option("", "Scores the responses; empty for none.")
    num_samples: int = option(16, "Responses sampled for each prompt (n).", minimum=1, maximum=256)
    max_length: int = option(1024, "Tokens of prompt and response.", minimum=16)
    output: str = option("samples.jsonl", 'Written as a whole: {"prompt", "responses", "rewards"} a line.')


@dataclass(frozen=True, kw_only=True)
class RejectionSamplingConfig(GuardConfig, SamplingConfig, PolicyConfig):
    """Best of n: sample n responses a prompt, score them, keep the best, fine-tune the policy on those."""

    kind: ClassVar[str] = "rejection_sampling"

    preferences: str = option("preferences.jsonl", "The preference set whose prompts are sampled.")
    policy: str = option("", "A Hugging Face id, a local folder, or the name of an earlier run.")
    reward_model: str = option("", "Selects the best response: a folder, a Hugging Face id, or an earlier run.")
    num_samples: int = option(16, "Responses sampled for each prompt (n).", minimum=1, maximum=256)
    num_rounds: int = option(
        1, "Rounds of sampling and fine-tuning, each from the newest policy (RAFT).", minimum=1, maximum=50
    )
    num_prompts: int = option(0, "Training prompts to sample in each round; 0 for all.", minimum=0)
    num_shards: int = option(
        1,
        "Parts of the prompts that are sampled and scored as runs of their own, side by side on as many workers as "
        "there are. The same seed gives the same samples whatever their number. No more than there are batches, of "
        "generation_batch_size responses.",
        minimum=1,
        maximum=1000,
    )
    keep: str = option(
        "best",
        "best: fine-tune on the best responses to each prompt; pairs: on the best against the worst, by DPO.",
        choices=("best", "pairs"),
    )
    num_kept: int = option(1, "Of best: responses kept for each prompt.", minimum=1, maximum=256)
    minimum_reward: str = option("", "Responses below this reward are never kept; empty for no minimum.")
    minimum_margin: float = option(
        0.0, "Prompts whose best response leads their mean one by less, of pairs their worst, are left out.", minimum=0
    )
    deduplicate: bool = option(True, "Keep each different response to a prompt once at the most.")
    mixed_in: float = option(
        0.0,
        "Original data in the fine-tuning, the best responses of the preference set, as a share of the kept ones.",
        minimum=0,
        maximum=10,
    )
    has_random_twin: bool = option(
        False,
        "Train a second policy on as many responses drawn at random from the same samples, in later rounds from its "
        "own: what it gains is not gained by the reward.",
    )
    num_epochs: float = option(2.0, "Passes over the kept responses.", minimum=0.01)
    learning_rate: float = option(1e-4, "Peak learning rate of the fine-tuning.", minimum=0)
    batch_size: int = option(16, "Kept responses in one optimizer step, over all processes.", minimum=1)
    beta: float = option(0.1, "Of pairs: the weight of the KL to the policy that was sampled.", minimum=1e-6)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_kept > self.num_samples:
            raise ConfigError(f"num_kept: {self.num_kept} of {self.num_samples} samples cannot be kept")
        if self.keep == "pairs" and self.num_samples == 1:
            raise ConfigError("num_samples: 1 makes no pairs")
        if self.lora_rank and self.saved == "adapter" and self.num_rounds > 1:
            raise ConfigError("saved: of several rounds only the merged policy can be saved")
        self.reward_floor  # noqa: B018 -- checks it

    @property
    def reward_floor(self) -> float:
        """`minimum_reward` as a number: minus infinity where there is none.

        Raises:
            ConfigError: it is no number.
        """
        try:
            found = float(self.minimum_reward) if self.minimum_reward.strip() else -math.inf
        except ValueError as error:
            raise ConfigError(f"minimum_reward: {self.minimum_reward!r} is not a number") from error
        if math.isnan(found):
            raise ConfigError("minimum_reward: is not a number")
        return found


@dataclass(frozen=True, kw_only=True)
class RlhfConfig(GuardConfig, SamplingConfig, PolicyConfig):
    """Reinforcement learning on a reward, with KL to a reference policy, by TRL's RLOO or GRPO trainer."""

    kind: ClassVar[str] = "rlhf"

    preferences: str = option("preferences.jsonl", "The preference set whose prompts are answered.")
    policy: str = option("", "A Hugging Face id, a local folder, or the name of an earlier run.")
    reference_policy: str = option("", "What the policy is held to; empty for the policy as it begins.")
    reward_model: str = option("", "What is optimised; several objectives, separated by commas.")
    algorithm: str = option(
        "rloo",
        "rloo: each response against the mean of the others to its prompt, the true gradient; grpo: against the mean "
        "of all, over their deviation.",
        choices=("rloo", "grpo"),
    )
    objective: str = option(
        "weighted",
        "Of several objectives. weighted: their sum by weights; adaptive: weights that rise for the objective that "
        "lags behind; constrained: the sum, as long as one of them keeps above a floor.",
        choices=("weighted", "adaptive", "constrained"),
    )
    weights: str = option("", "A number for each objective in their order, separated by commas; empty for 1 each.")
    constraint: int = option(0, "Of constrained: which objective has a floor, counted from 1.", minimum=0)
    floor: float = option(0.0, "Of constrained: what its mean must not fall below.")
    num_steps: int = option(200, "Optimizer steps.", minimum=1)
    num_prompts: int = option(8, "Prompts in one step, shared equally by all processes.", minimum=1)
    num_samples: int = option(4, "Responses to each of them (K).", minimum=2, maximum=256)
    learning_rate: float = option(1e-5, "Peak learning rate of AdamW; 1e-6 for billions of weights.", minimum=0)
    beta: float = option(0.05, "The weight of the KL to the reference policy, in reward per nat.", minimum=0)
    kl_target: float = option(
        0.0, "Adapt beta until the KL of a response, in nats, is this; 0 keeps beta as it is.", minimum=0
    )
    kl_placement: str = option(
        "reward",
        "reward: the log-ratio of the response taken off the reward (k1), which follows the true gradient; loss: an "
        "estimate of each token (k3) times the token's ratio added to the loss, as TRL runs GRPO, which leaves out "
        "what a token does to later ones and so ends elsewhere; of grpo only.",
        choices=("reward", "loss"),
    )
    advantage_scale: str = option(
        "group",
        "Of grpo: what advantages are divided by. group: the deviation among a prompt's responses, which turns the "
        "gradient away from the true one, as prompts on which it is small count more; batch: among all, so what is "
        "added to all rewards of a prompt counts; none.",
        choices=("group", "batch", "none"),
    )
    normalise: bool = option(
        True, "Take the mean off the reward and divide by its deviation, both as on the reference policy's responses."
    )
    reward_clip: float = option(
        0.0,
        "Rewards, when normalised, stay within this of zero, so what is added to all rewards of a prompt counts; 0 for "
        "no limit.",
        minimum=0,
    )
    length_penalty: float = option(
        0.0, "Reward taken off for a response twice as long as the reference policy's mean, in proportion.", minimum=0
    )
    end_penalty: float = option(
        0.0,
        "Reward taken off where a response was cut off at max_new_tokens, wherever the rewards' zero is.",
        minimum=0,
    )
    check_steps: int = option(20, "Steps between two checks on held-out prompts.", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algorithm != "grpo" and self.kl_placement == "loss":
            raise ConfigError("kl_placement: loss is of grpo only")
        if self.kl_target and not self.beta:
            raise ConfigError("beta: begin above 0 where kl_target is to adapt it")
        if self.num_prompts % self.num_processes:
            raise ConfigError(f"num_prompts: {self.num_prompts} cannot be shared by {self.num_processes} processes")
        if self.objective == "adaptive" and min(self.objective_weights, default=1.0) <= 0:
            raise ConfigError("weights: of adaptive are above zero")
        num_objectives = len(self.objectives)
        if self.weights and len(self.objective_weights) != num_objectives:
            raise ConfigError(f"weights: {len(self.objective_weights)} numbers for {num_objectives} objectives")
        if self.objective == "constrained" and not 1 <= self.constraint <= num_objectives:
            raise ConfigError(f"constraint: {self.constraint} is none of the {num_objectives} objectives")

    @property
    def objectives(self) -> list[str]:
        return split_names(self.reward_model)

    @property
    def objective_weights(self) -> list[float]:
        """One for each objective.

        Raises:
            ConfigError: one is no number, or all are zero.
        """
        return read_weights(self.weights) or [1.0] * len(self.objectives)


@dataclass(frozen=True, kw_only=True)
class DpoConfig(GuardConfig, SamplingConfig, PolicyConfig):
    """Direct preference optimisation: a policy from judgments alone, without a reward model."""

    kind: ClassVar[str] = "dpo"

    preferences: str = option("preferences.jsonl", "The frozen preference set.")
    policy: str = option("", "A Hugging Face id, a local folder, or the name of an earlier run.")
    reference_policy: str = option("", "What the policy is held to; empty for the policy as it begins.")
    aspect: str = option("overall", "Which judgments to learn from.")
    loss: str = option(
        "sigmoid",
        "sigmoid: DPO; robust: corrected for a share of judgments that are the wrong way round, flip_rate; ipo: a "
        "squared loss, which does not run off where all judges agree.",
        choices=("sigmoid", "robust", "ipo"),
    )
    flip_rate: float = option(0.1, "Of robust: the share of judgments taken to be wrong.", minimum=0, maximum=0.49)
    lists: str = option(
        "pairs",
        "What is learned from a ranking of more than two. pairs: all its ordered pairs, which together weigh as much "
        "as one; plackett_luce: the likelihood of the whole ranking.",
        choices=("pairs", "plackett_luce"),
    )
    beta: float = option(0.1, "The weight of the KL to the reference policy.", minimum=1e-6)
    num_epochs: float = option(1.0, "Passes over the training rankings.", minimum=0.01)
    learning_rate: float = option(5e-6, "Peak learning rate of AdamW.", minimum=0)
    batch_size: int = option(16, "Rankings in one optimizer step, over all processes.", minimum=1)
    check_steps: int = option(50, "Steps between two checks on held-out prompts.", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lists == "plackett_luce" and self.loss != "sigmoid":
            raise ConfigError("lists: plackett_luce goes with the loss sigmoid")


@dataclass(frozen=True, kw_only=True)
class ComparePoliciesConfig(SamplingConfig, RunConfig):
    """Policies side by side on the same prompts, each against the first, under rewards that none of them optimised."""

    kind: ClassVar[str] = "compare_policies"

    preferences: str = option("preferences.jsonl", "The preference set whose test prompts are answered.")
    policies: str = option("", "Two or more, separated by commas; the first one is what the others are held against.")
    held_out_reward_model: str = option(
        "", "Compares the responses. Empty: some are trained here on the votes set aside for the guard."
    )
    reward_model: str = option("", "The reward that was optimised, to be shown beside it.")
    num_guards: int = option(3, "Held-out reward models trained here; their mean grades.", minimum=1, maximum=9)
    num_prompts: int = option(64, "Test prompts; 0 for all.", minimum=0)
    num_samples: int = option(4, "Responses of each policy to each prompt.", minimum=1, maximum=64)
    max_length: int = option(1024, "Tokens of prompt and response.", minimum=16)


@dataclass(frozen=True, kw_only=True)
class ScoreComparisonsConfig(RunConfig):
    """Guide annotation: several reward models score a project's responses, and what they disagree about is asked first.

    The models should differ: trained from several seeds, or on several preference sets.
    """

    kind: ClassVar[str] = "score_comparisons"

    reward_models: str = option("", "Two or more, separated by commas: folders, Hugging Face ids, names of runs.")
    strategy: str = option(
        "bald",
        "What disagreement is: bald, what an answer tells about which model is right; or posterior_variance, the "
        "variance of the score difference.",
        choices=("bald", "posterior_variance"),
    )
    num_pairs: int = option(
        0, "New comparisons to make, of two responses to one prompt each: the most informative ones.", minimum=0
    )
    max_length: int = option(0, "Tokens of prompt and response; 0 for as many as the model was trained on.", minimum=0)
    max_tokens: int = option(16384, "Tokens in one forward pass.", minimum=64)

    @property
    def members(self) -> list[str]:
        return split_names(self.reward_models)


COMBINING = (
    "mean",
    "median",
    "worst_case",
    "uncertainty_weighted",
    "rank_aggregate",
    "bayesian_average",
    "stacking",
    "fusion",
)
"""Ways of combining that are always measured; those set by hand stand in `BY_HAND`."""
BY_HAND = ("weighted_mean", "chebyshev", "constrained")


@dataclass(frozen=True, kw_only=True)
class CombineConfig(RunConfig):
    """Combine several rewards into one, fitted and measured on judgments that none of them was trained on.

    All ways of combining are measured side by side; the chosen one is saved as a reward like any other.
    """

    kind: ClassVar[str] = "combine"

    preferences: str = option("preferences.jsonl", "The frozen preference set.")
    members: str = option("", "Two or more rewards, separated by commas: members, runs, folders, Hugging Face ids.")
    method: str = option(
        "fusion",
        "Which one to save. fusion: a small network that learns the best combination; stacking: learned weights; "
        "bayesian_average: weights by how likely each member makes the judgments; worst_case and uncertainty_weighted "
        "guard against what one member overrates, but what a member adds to all its scores of a prompt counts. By "
        "hand: weighted_mean; chebyshev, the member that falls shortest, by weights; and constrained, the mean of the "
        "others as long as one member reaches a floor.",
        choices=(*COMBINING, *BY_HAND),
    )
    incumbent: str = option("", "The reward that is in use now, to be compared with on the same judgments.")
    aspect: str = option("overall", "Which judgments to learn from.")
    num_folds: int = option(
        0,
        "0: fitted on the validation split, measured on the test split. 2 or more: where judgments are few, fitted and "
        "measured on both, crosswise, in so many folds of prompts.",
        minimum=0,
        maximum=20,
    )
    penalty: float = option(0.5, "Of uncertainty_weighted: what a unit of the members' variance costs.", minimum=0)
    weights: str = option(
        "",
        "Of weighted_mean and chebyshev: a number for each member in their order, separated by commas. Of the former "
        "it may be below zero, to take off.",
    )
    constraint: int = option(0, "Of constrained: which member must reach the floor, counted from 1.", minimum=0)
    floor: float = option(0.0, "Of constrained: how much of it is enough, in deviations from its mean.")
    slope: float = option(10.0, "Of constrained: what a deviation below the floor costs.", minimum=0)
    has_gate: bool = option(
        True, "Of fusion: different prompts may trust different members. It sees the prompt, never the response."
    )
    is_monotone: bool = option(True, "Of fusion: a response that a member likes better never scores lower for it.")
    prompt_encoder: str = option(
        "", "Of fusion: a sentence encoder for the gate, a folder or a Hugging Face id; empty for hashed words."
    )
    max_tokens: int = option(16384, "Tokens in one forward pass.", minimum=64)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_folds == 1:
            raise ConfigError("num_folds: 1 leaves nothing to fit on; take 0, or 2 or more")
        num_members = len(split_names(self.members))
        if self.method in {"weighted_mean", "chebyshev"} and len(self.member_weights) != num_members:
            raise ConfigError(f"weights: {len(self.member_weights)} numbers for {num_members} members")
        if self.method == "chebyshev" and min(self.member_weights) <= 0:
            raise ConfigError("weights: of chebyshev are above zero")
        if self.method == "constrained" and not 1 <= self.constraint <= num_members:
            raise ConfigError(f"constraint: {self.constraint} is none of the {num_members} members")

    @property
    def member_weights(self) -> list[float]:
        """As they were set by hand.

        Raises:
            ConfigError: one is no number, or all are zero.
        """
        return read_weights(self.weights)


@dataclass(frozen=True, kw_only=True)
class AverageWeightsConfig(RunConfig):
    """WARM: average the weights of reward models that were trained from the same beginning into one more."""

    kind: ClassVar[str] = "average_weights"

    preferences: str = option("preferences.jsonl", "The frozen preference set on which the average is normalised.")
    models: str = option("", "Two or more reward models, separated by commas.")
    split: str = option("validation", "Which part of it.", choices=("validation", "train", "test", "all"))
    max_tokens: int = option(16384, "Tokens in one forward pass.", minimum=64)


@dataclass(frozen=True, kw_only=True)
class PreviewJudgeConfig(RunConfig):
    """What a judge answers about a few comparisons, before it is let at many."""

    kind: ClassVar[str] = "preview_judge"

    member: str = option("", "The judge: a folder with its member.json.")
    num_comparisons: int = option(3, "Comparisons to look at.", minimum=1, maximum=20)


def split_names(value: str) -> list[str]:
    """Names that are separated by commas or stand on lines of their own."""
    return [name.strip() for name in value.replace("\n", ",").split(",") if name.strip()]


def read_weights(value: str) -> list[float]:
    """Weights that are separated by commas.

    Raises:
        ConfigError: one is no number, or all are zero.
    """
    try:
        found = [float(weight) for weight in split_names(value)]
    except ValueError as error:
        raise ConfigError(f"weights: {value!r} are not numbers, separated by commas") from error
    if not all(map(math.isfinite, found)) or (found and not any(found)):
        raise ConfigError("weights: are not all finite, or are all zero")
    return found


CONFIGS: dict[str, type[RunConfig]] = {
    config.kind: config
    for config in (
        RewardModelConfig,
        LearningCurveConfig,
        EvaluateConfig,
        ScoreConfig,
        SftConfig,
        SampleConfig,
        RejectionSamplingConfig,
        RlhfConfig,
        DpoConfig,
        ComparePoliciesConfig,
        ScoreComparisonsConfig,
        CombineConfig,
        AverageWeightsConfig,
        PreviewJudgeConfig,
    )
}


def config_from_dict(kind: str, values: dict[str, Any]) -> RunConfig:
    """The configuration of a run of `kind`; text is read as the field's type, as from a form or a command line.

    Raises:
        ConfigError: no such kind or field, or a value that the field does not take.
    """
    if kind not in CONFIGS:
        raise ConfigError(f"kind: {kind!r} is not one of {', '.join(sorted(CONFIGS))}")
    return read_fields(CONFIGS[kind], kind, values)


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def read_fields(config: type[Config], kind: str, values: dict[str, Any]) -> Config:
    """A dataclass of `option` fields from their values; text is read as the field's type.

    Raises:
        ConfigError: no such field, or a value that it does not take.
    """
    hints = typing.get_type_hints(config)
    known = {item.name for item in fields(config)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise ConfigError(f"{unknown[0]}: {kind} has no such field; it has {', '.join(sorted(known))}")
    return config(**{name: _read(name, hints[name], value) for name, value in values.items()})


def _read(name: str, kind: type, value: Any) -> Any:
    """`value` as the field's type, where it is text or a whole number that stands for one."""
    if kind is bool and isinstance(value, str):
        if value.lower() not in {"true", "false"}:
            raise ConfigError(f"{name}: {value!r} is neither true nor false")
        return value.lower() == "true"
    if isinstance(value, str) or (kind is float and type(value) is int):
        try:
            return kind(value)
        except (ValueError, OverflowError) as error:
            raise ConfigError(f"{name}: {value!r} is not {KINDS[kind]}") from error
    return value


def check_field(item: dataclasses.Field[Any], value: Any) -> None:
    """Whether a field of `option` takes the value.

    Raises:
        ConfigError: it does not; the message names the field.
    """
    kind = typing.cast(type, item.type)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ConfigError(f"{item.name}: {value!r} is not {KINDS[kind]}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{item.name}: {value} is not a finite number")
    minimum, maximum, choices = (item.metadata[key] for key in ("minimum", "maximum", "choices"))
    if minimum is not None and value < minimum:
        raise ConfigError(f"{item.name}: {value} is below {minimum:g}")
    if maximum is not None and value > maximum:
        raise ConfigError(f"{item.name}: {value} is above {maximum:g}")
    if choices and value not in choices:
        raise ConfigError(f"{item.name}: {value!r} is not one of {', '.join(choices)}")
