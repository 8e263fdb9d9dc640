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
        "approximated; davidson and rao_kupper: that they are about equal, by a tie parameter that is learned.",
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
        "batches of similar length. auto takes the first that gives the model's own rewards.",
        choices=("auto", "shared", "separate", "padded"),
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
class SftConfig(RunConfig):
    """Supervised fine-tuning of a policy on examples: a file of them, or the best responses of a preference set."""

    kind: ClassVar[str] = "sft"

    policy: str = option(
        "", "A Hugging Face id, a local folder, or an earlier run; new:tiny starts a small one from nothing."
    )
    examples: str = option("", 'A JSONL file of {"prompt": messages or text, "completion": text}.')
    preferences: str = option("", "Without examples: a preference set whose best responses are the examples.")
    num_epochs: float = option(1.0, "Passes over the examples.", minimum=0.01)
    learning_rate: float = option(2e-5, "Peak learning rate.", minimum=0)
    batch_size: int = option(16, "Examples in one optimizer step, over all processes.", minimum=1)
    max_length: int = option(1024, "Tokens of prompt and response.", minimum=16)


@dataclass(frozen=True, kw_only=True)
class RejectionSamplingConfig(RunConfig):
    """Best of n: sample n responses a prompt, score them, keep the best, fine-tune the policy on those."""

    kind: ClassVar[str] = "rejection_sampling"

    preferences: str = option("preferences.jsonl", "The preference set whose prompts are sampled.")
    policy: str = option("", "A Hugging Face id, a local folder, or the name of an earlier run.")
    reward_model: str = option("", "Selects the best response: a folder, a Hugging Face id, or an earlier run.")
    held_out_reward_model: str = option(
        "",
        "Grades the outcome and never selects. Empty: one is trained here, from another seed, for the purpose.",
    )
    num_samples: int = option(16, "Responses sampled for each prompt (n).", minimum=1, maximum=256)
    num_prompts: int = option(0, "Training prompts to sample; 0 for all.", minimum=0)
    num_held_out_prompts: int = option(64, "Test prompts on which before and after are compared.", minimum=1)
    temperature: float = option(1.0, "Sampling temperature.", minimum=0.01, maximum=10)
    top_p: float = option(1.0, "Nucleus sampling: the share of probability to sample from.", minimum=0.01, maximum=1)
    max_new_tokens: int = option(256, "Tokens of one response at the most.", minimum=1)
    generation_batch_size: int = option(64, "Responses generated at a time.", minimum=1)
    num_epochs: float = option(2.0, "Passes over the winners.", minimum=0.01)
    learning_rate: float = option(1e-4, "Peak learning rate of the fine-tuning.", minimum=0)
    batch_size: int = option(16, "Winners in one optimizer step, over all processes.", minimum=1)
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
        "guard against what one member overrates. By hand: weighted_mean; chebyshev, the member that falls shortest, "
        "by weights; and constrained, the mean of the others as long as one member reaches a floor.",
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
        try:
            found = [float(weight) for weight in split_names(self.weights)]
        except ValueError as error:
            raise ConfigError(f"weights: {self.weights!r} are not numbers, separated by commas") from error
        if not all(map(math.isfinite, found)) or (found and not any(found)):
            raise ConfigError("weights: are not all finite, or are all zero")
        return found


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


CONFIGS: dict[str, type[RunConfig]] = {
    config.kind: config
    for config in (
        RewardModelConfig,
        LearningCurveConfig,
        EvaluateConfig,
        ScoreConfig,
        SftConfig,
        RejectionSamplingConfig,
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
