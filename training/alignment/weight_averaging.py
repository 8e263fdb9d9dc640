"""WARM: the weights of reward models that were trained from one beginning, averaged into one reward model.

It costs what one model costs, and keeps what the members have in common: what each has memorised of noisy judgments
averages out. This holds where the loss stays low on the straight path between members, which `path_losses` measures,
and so only for members that begin with the same weights, best with the same head too: train them from one reward model
rather than from one language model, whose new head is drawn anew by each seed.

Members' means, deviations and temperatures say nothing about the average's, so these are fitted again.

Source: A. Ramé et al., "WARM: on the benefits of weight averaged reward models", 2024.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer

from training.alignment.calibration import fit_temperature
from training.alignment.config import AverageWeightsConfig, ConfigError, split_names
from training.alignment.evaluation import measure
from training.alignment.preferences import ANY, RankedResponses, read_rankings, tokenizer_digest
from training.alignment.reward import OVERALL
from training.alignment.reward_model import MAX_TOKENS, RewardModel, join_processes, normalisation
from training.alignment.reward_net import load_classifier
from training.alignment.run_dir import (
    Interrupted,
    RunDir,
    StopFlag,
    file_digest,
    replace_folder,
    write_json,
    write_whole,
)
from training.alignment.weights import classifier_state

CONFIG, WEIGHTS, INDEX, ADAPTERS = (
    *("config.json", "model.safetensors", "model.safetensors.index.json", "adapter_config.json"),
)
FITTED = ("reward_mean", "reward_std", "reward_temperature", "reward_reference", "reward_average")
MAY_DIFFER = {*FITTED, "_name_or_path", "transformers_version"}
UNRELATED = 0.5  # of two independent beginnings the relative distance is 1; fine-tuning goes a few percent
POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class PathLosses:
    """Losses on the straight path from one model's weights to another's."""

    shares: tuple[float, ...]
    """Of the second model, from 0 to 1."""
    losses: tuple[float, ...]
    """Of rankings, in nats per choice."""

    @property
    def barrier(self) -> float:
        """How much the path rises above its higher end, in nats; averaging is sound up to about 0.02."""
        return max(self.losses) - max(self.losses[0], self.losses[-1])


def average_weights(config: AverageWeightsConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """Average reward models, and measure what that is worth on rankings that none of them was trained on.

    Returns:
        {"model", "accuracy", "interval", "num_pairs", "num_prompts", "loss"}, measured on the average's raw rewards;
        "num_models", "weights" and "distance", see `average_reward_models`; "member_losses", in nats per choice; and
        "barrier", the highest of the paths from the first model to the others.

    Raises:
        ConfigError: the models cannot be averaged, or the split has no rankings of their aspects.
        Interrupted: `stop` became true.
    """
    accelerator = join_processes()
    if not accelerator.is_main_process:
        return {}
    folders = [Path(run_dir.locate(name)) for name in split_names(config.models)]
    options: dict[str, Any] = {"device": accelerator.device, "max_tokens": config.max_tokens}
    rankings = _rankings_for(folders, config, run_dir)
    averaged = average_reward_models(folders, run_dir.model, rankings=rankings, **options)
    paths: list[PathLosses] = []
    for number, other in enumerate(folders[1:], start=1):
        if stop():
            raise Interrupted(f"stopped after measuring {number - 1} of {len(folders) - 1} paths between models")
        paths.append(path_losses(folders[0], other, rankings, **options))
        run_dir.log(step=number, phase="measure", progress=number / len(folders), barrier=paths[-1].barrier)
    model = RewardModel.load(run_dir.model, **options)
    return {
        "model": run_dir.model.name,
        **measure(rankings, _raw_rewards(model, rankings), config.split),
        **averaged,
        "member_losses": [paths[0].losses[0], *(path.losses[-1] for path in paths)],
        "barrier": max(path.barrier for path in paths),
    }


def average_reward_models(
    folders: Sequence[Path],
    target: Path,
    weights: Sequence[float] | None = None,
    rankings: Sequence[RankedResponses] | None = None,
    *,
    device: str | torch.device | None = None,
    max_tokens: int = MAX_TOKENS,
) -> dict[str, Any]:
    """Make one reward model of several; its folder replaces `target` as a whole.

    Tensors pass through one at a time, so memory holds one of each member's. Adapters are merged first.

    Args:
        weights: of the members, above 0, in any unit; equal by default.
        rankings: that no member was trained on, to fit mean, deviation and temperature of the rewards; without them a
            score is a raw reward.

    Returns:
        {"num_models", "weights", "distance"}: the weights add up to 1; the distance, between 0 and 1, is that of the
        member that is farthest from the first.

    Raises:
        ConfigError: fewer than two folders, one that is no reward model, or some that cannot be averaged: of another
            architecture, tokenizer, aspects or beginning.
        ValueError: weights that are none.
    """
    if len(folders) < 2:
        raise ConfigError("models: an average needs two or more")
    shares = _shares(weights, len(folders))
    found: dict[str, Any] = {"num_models": len(folders), "weights": shares}

    def write(scratch: Path) -> None:
        with _merged(folders) as members:
            for member in members[1:]:
                _require_same_kind(members[0], member)
            found["distance"] = _average(members, shares, scratch / WEIGHTS)
            digests = [_digest(member) for member in members]
            parts = [{"digest": digest, "weight": share} for digest, share in zip(digests, shares, strict=True)]
            told = {name: value for name, value in _config(members[0]).items() if name not in FITTED}
            write_json(scratch / CONFIG, told | {"reward_average": parts})
            AutoTokenizer.from_pretrained(members[0], trust_remote_code=False).save_pretrained(scratch)
        if rankings is not None:
            _normalise(RewardModel.load(scratch, device, max_tokens=max_tokens), rankings, scratch / CONFIG)
        write_whole(scratch / "README.md", _card(_config(scratch), found["distance"]))

    replace_folder(target, write)
    return found


def path_losses(
    first: Path,
    second: Path,
    rankings: Sequence[RankedResponses],
    shares: Sequence[float] = POINTS,
    *,
    device: str | torch.device | None = None,
    max_tokens: int = MAX_TOKENS,
) -> PathLosses:
    """How well the models between two reward models judge, each by its raw rewards.

    Raises:
        ConfigError: the two cannot be averaged, or no ranking puts one response above another.
    """
    with _merged([first, second]) as members:
        _require_same_kind(*members)
        model = RewardModel.load(members[0], device, max_tokens=max_tokens)
        begin = {name: value.clone() for name, value in model.net.model.state_dict().items()}
        end = load_classifier(str(members[1]))[0].state_dict()
    losses = []
    for share in shares:
        between = {name: _between(value, end[name].to(value.device), share) for name, value in begin.items()}
        model.net.model.load_state_dict(between)
        losses.append(measure(rankings, _raw_rewards(model, rankings))["loss"])
    if None in losses:
        raise ConfigError("preferences: no ranking puts one response above another")
    return PathLosses(tuple(shares), tuple(losses))


def _rankings_for(folders: Sequence[Path], config: AverageWeightsConfig, run_dir: RunDir) -> list[RankedResponses]:
    """Those of the split that judge what the models do."""
    aspects = (
        _config(folders[0]).get("reward_aspects", [OVERALL]) if folders and (folders[0] / CONFIG).is_file() else []
    )
    split = None if config.split == ANY else config.split
    found = [one for one in read_rankings(run_dir.resolve(config.preferences), split) if one.aspect in aspects]
    if aspects and not any(one.is_decided for one in found):
        raise ConfigError(
            f"preferences: no ranking of the {config.split} split orders responses by {', '.join(aspects)}"
        )
    return found


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    given = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape != (count,) or not (np.isfinite(given).all() and (given > 0).all()):
        raise ValueError(f"weights must be {count} finite numbers above 0, not {weights}")
    found: list[float] = (given / given.sum()).tolist()
    return found


def _between(one: Tensor, other: Tensor, share: float) -> Tensor:
    return torch.lerp(one, other, share) if one.is_floating_point() else one


def _raw_rewards(model: RewardModel, rankings: Sequence[RankedResponses]) -> list[list[float]]:
    """(K,) for each ranking, in nats, by the head of its aspect."""
    rewards = model.reward_stream((one.prompt, text) for one in rankings for text in one.responses)
    return [[float(next(rewards)[model.head_of(one.aspect)]) for _ in one.responses] for one in rankings]


# Members


@contextmanager
def _merged(folders: Sequence[Path]) -> Iterator[list[Path]]:
    """Folders with whole weights: the same ones, or new ones where there are adapters, for as long as it lasts."""
    with TemporaryDirectory() as scratch:
        members = []
        for number, folder in enumerate(map(Path, folders)):
            if (folder / ADAPTERS).is_file():
                members.append(_merge(folder, Path(scratch) / str(number)))
            elif (folder / CONFIG).is_file():
                members.append(folder)
            else:
                raise ConfigError(f"models: {folder} is no folder of a reward model")
        yield members


def _merge(folder: Path, target: Path) -> Path:
    """Write the classifier that adapters make of the model that they were trained on."""
    told = json.loads((folder / ADAPTERS).read_text(encoding="utf-8"))
    name = told["base_model_name_or_path"]
    base = str(folder / name) if (folder / name).is_dir() else name
    adapted, merged = (load_classifier(base)[0] for _ in range(2))
    adapted.load_adapter(str(folder), use_safetensors=True)
    state = {
        name.replace(".modules_to_save.default.", "."): value
        for name, value in classifier_state(adapted).items()
        if ".original_module." not in name
    }
    merged.load_state_dict(state)
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(folder if has_tokenizer else base, trust_remote_code=False)
    merged.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    merged.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def _require_same_kind(first: Path, other: Path) -> None:
    one, two = _config(first), _config(other)
    differing = sorted(
        name for name in one.keys() | two.keys() if name not in MAY_DIFFER and one.get(name) != two.get(name)
    )
    if differing:
        told = "; ".join(f"{name} is {one.get(name)!r} and {two.get(name)!r}" for name in differing)
        raise ConfigError(f"models: {first} and {other} are of different kinds: {told}")
    tokenizers = (AutoTokenizer.from_pretrained(folder, trust_remote_code=False) for folder in (first, other))
    if len(set(map(tokenizer_digest, tokenizers))) > 1:
        raise ConfigError(f"models: {first} and {other} read text by different tokenizers or chat templates")


def _config(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return told


def _digest(folder: Path) -> str:
    """SHA-256 of the weights' file, or of those of the files that they are divided into."""
    digests = [file_digest(path) for path in sorted(folder.glob("model*.safetensors"))]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


# Weights


class _Weights:
    """The tensors of a folder, read from its safetensors when they are asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        paths = [folder / WEIGHTS]
        if (folder / INDEX).is_file():
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            paths = [folder / name for name in sorted(set(index["weight_map"].values()))]
        elif not paths[0].is_file():
            raise ConfigError(f"models: {folder} holds no weights in safetensors")
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        self.files = {name: file for file in files for name in file.keys()}  # noqa: SIM118 -- it is no mapping

    @property
    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each tensor."""
        slices = {name: self.files[name].get_slice(name) for name in sorted(self.files)}
        return {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self.files[name].get_tensor(name)
        return tensor


@dataclass
class _Distance:
    """How far two models are from each other: 0 where they are one, about 1 where they began independently.

    Of matrices only: norms and biases begin alike in all models.
    """

    apart: float = 0.0
    size: float = 0.0

    def add(self, one: Tensor, other: Tensor) -> Self:
        if one.dim() > 1:
            self.apart += (one - other).square().sum().item()
            self.size += (one.square().sum() + other.square().sum()).item()
        return self

    @property
    def relative(self) -> float:
        return (self.apart / self.size) ** 0.5 if self.size else 0.0


def _average(folders: Sequence[Path], shares: Sequence[float], target: Path) -> float:
    """Write the average and return the largest relative distance of a member to the first."""
    with ExitStack() as stack:
        members = [_Weights(folder, stack) for folder in folders]
        layout = members[0].layout
        for folder, member in zip(folders, members, strict=True):
            if differing := sorted({name for name, _ in layout.items() ^ member.layout.items()}):
                raise ConfigError(f"models: {folders[0]} and {folder} differ in the shape of {differing[0]}")
        if odd := sorted({dtype for dtype, _ in layout.values()} - BYTES.keys()):
            raise ConfigError(f"models: {folders[0]} has weights of type {odd[0]}, which are not averaged")
        distances = [_Distance() for _ in members]
        averages = ((name, _mean([member[name] for member in members], shares, distances)) for name in layout)
        _write_safetensors(layout, averages, target)
    farthest = max(distances, key=lambda one: one.relative)
    if farthest.relative > UNRELATED:
        folder = folders[distances.index(farthest)]
        raise ConfigError(
            f"models: {folders[0]} and {folder} were not trained from the same beginning: their weights are "
            f"{farthest.relative:.0%} as far from each other as independent ones"
        )
    return farthest.relative


def _mean(tensors: Sequence[Tensor], shares: Sequence[float], distances: Sequence[_Distance]) -> Tensor:
    if not tensors[0].is_floating_point():
        if not all(torch.equal(tensors[0], other) for other in tensors[1:]):
            raise ConfigError("models: they differ in whole numbers, which have no average")
        return tensors[0]
    first = tensors[0].double()
    total = torch.zeros_like(first)
    for tensor, share, distance in zip(tensors, shares, distances, strict=True):
        distance.add(first, tensor.double())
        total.add_(tensor.double(), alpha=share)
    return total.to(tensors[0].dtype)


def _write_safetensors(
    layout: Mapping[str, tuple[str, tuple[int, ...]]], tensors: Iterator[tuple[str, Tensor]], target: Path
) -> None:
    """Write tensors as they come: the library's own functions want them all at once.

    A file is the length of its header in eight bytes, the header, and the tensors' bytes one after another; see
    https://github.com/huggingface/safetensors#format.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in layout.items():
        begin, end = end, end + int(np.prod(shape)) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in tensors:
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())


# What comes with the weights


def _normalise(model: RewardModel, rankings: Sequence[RankedResponses], config: Path) -> None:
    """Fit origin, unit and temperature of the rewards, and write them beside the weights."""
    if not rankings:
        raise ConfigError("preferences: there is no ranking to fit mean and deviation of the rewards to")
    texts = [(one.prompt, text) for one in rankings for text in one.responses]
    rewards = np.array(list(model.reward_stream(texts)))
    margins: dict[int, list[float]] = {}
    own = np.split(rewards.astype(np.float64), np.cumsum([len(one.responses) for one in rankings])[:-1])
    for ranked, part in zip(rankings, own, strict=True):
        head = model.head_of(ranked.aspect)
        pairs = ranked.ordered_places()
        margins.setdefault(head, []).extend(part[better, head] - part[worse, head] for better, worse in pairs)
    temperatures = {head: fit_temperature(found) for head, found in margins.items() if any(found)}
    told = json.dumps([[[dict(message) for message in prompt], text] for prompt, text in texts], sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()
    write_json(config, _config(config.parent) | normalisation(rewards, temperatures, digest, model.aspects))


def _card(config: Mapping[str, Any], distance: float) -> str:
    """The model card, in Markdown."""
    parts = "".join(f"| `{one['digest']}` | {one['weight']:.4g} |\n" for one in config["reward_average"])
    reference = config.get("reward_reference")
    fitted = (
        f"`reward_mean`, `reward_std` and `reward_temperature` in config.json were fitted to the average's own rewards "
        f"of {reference['num_responses']} responses (SHA-256 `{reference['digest']}`)."
        if reference
        else "Mean, deviation and temperature of its rewards were not fitted: a score is a raw reward."
    )
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-classification\ntags:\n- reward-model\n- merge\n---\n\n"
        "# Reward model, averaged\n\n"
        "Scores a response to a prompt: the higher, the more people would prefer it. Its weights are the average of "
        'those of several reward models that were trained from the same beginning (A. Ramé et al., "WARM: on the '
        'benefits of weight averaged reward models", 2024).\n\n'
        "## Parts\n\n"
        f"| SHA-256 of the weights | share |\n|---|---|\n{parts}\n"
        f"The farthest is {distance:.1%} as far from the first as two independent models are from each other.\n\n"
        f"## Scores\n\n{fitted} Only differences for the same prompt mean something.\n"
    )
