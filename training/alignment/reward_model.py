"""Train one reward model from rankings; score responses with it.

A reward model is a transformer with a head of one output, read at the last token of prompt and response. It is saved
as `transformers` saves a sequence classifier, so other programs load it as one; config.json also holds
`reward_mean` and `reward_std`, by which `RewardModel.score` brings rewards to mean 0 and deviation 1 on the training
set's responses. (Rankings leave a reward's origin open; the deviation says how many nats a unit of score is.)

The last token is found from the lengths of the sequences, never by looking for a pad token: a model without one, or
whose pad token also ends texts, is otherwise read at the wrong place. Padding stands on the right, dropout is off, and
scores are computed in single precision, so a score does not depend on the batch it came in.

The training loop is written out over accelerate instead of being a `transformers.Trainer`. That one counts examples of
fixed shape; here a step is over whole rankings of varying K, each response goes through the model once, all responses
of a ranking are in the same step, batches are cut by tokens, and each ranking weighs the same, however its step is cut
into batches and over processes. Checkpoints are those of the run directory, without pickle, and nothing in a step is
random, so a run that was killed goes on and ends as if it had not been. Several processes each hold the whole model.
"""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from training.alignment.batching import batches, budget, pad
from training.alignment.checkpoint import load_training_state, save_training_state
from training.alignment.config import ConfigError, RewardModelConfig
from training.alignment.evaluation import Scored, measure
from training.alignment.losses import ranking_loss
from training.alignment.preferences import (
    Encoded,
    Messages,
    RankedResponses,
    chat_template,
    encode,
    read_rankings,
)
from training.alignment.run_dir import Interrupted, RunDir, StopFlag, replace_folder, write_json

PAD_TOKEN = "<|pad|>"  # noqa: S105 -- for tokenizers that have none
MAX_LENGTH, MAX_TOKENS = 1024, 16384
TRAINING_SHARE = 0.95  # of the progress; the rest is the final scoring
VALIDATIONS_PER_EPOCH = 5
NUM_REFERENCE_RANKINGS = 1000  # on whose responses scores are normalised
MAX_GRADIENT_NORM = 1.0
BETAS = (0.9, 0.95)  # as in OpenRLHF; runs are too short for the usual memory of a thousand steps
CHUNK = 256
SPLITS = ("train", "validation", "test")
STATE = ("validated_step", "best_step", "best_loss")
FINAL_LEARNING_RATE = 0.1  # of the peak; the way there is a cosine


class RewardNet(nn.Module):
    """A sequence classifier with one output, read at the last token."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model.eval()  # no dropout: it would blur the few differences that a ranking tells

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B,) rewards of (B, T) tokens, padded on the right."""
        head = getattr(self.model, "score", None)
        if head is None:  # an encoder, which pools in its own way
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, 0].float()
        output = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        last = attention_mask.sum(1) - 1
        pooled = output.last_hidden_state[torch.arange(len(last), device=last.device), last]
        with torch.autocast(pooled.device.type, enabled=False):  # a bfloat16 reward has two digits
            return head(pooled.to(head.weight.dtype))[:, 0].float()


@dataclass(frozen=True)
class RewardModel:
    """Scores responses to prompts."""

    net: RewardNet
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    max_length: int = MAX_LENGTH
    max_tokens: int = MAX_TOKENS
    mean: float = 0.0
    std: float = 1.0
    """Nats in a unit of score."""

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device | None = None,
        max_length: int | None = None,
        max_tokens: int = MAX_TOKENS,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """A reward model from a folder or a Hugging Face id: one of ours, or any sequence classifier with one output.

        Args:
            device: a GPU where there is one.
            max_length: tokens of prompt and response; what was trained with, or 1024, but no more than the model takes.
            max_tokens: in one forward pass, padding included.
            dtype: bfloat16 halves the memory, and then scores depend on the batch in their second digit.

        Raises:
            ConfigError: the model has no trained head of one output.
            OSError: there is no such model.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model, missing = load_classifier(str(folder), dtype)
        if missing:
            raise ConfigError(f"{folder} is not a reward model: it lacks {', '.join(missing)}")
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        trained_length: int = getattr(model.config, "reward_max_length", MAX_LENGTH)
        return cls(
            net=RewardNet(model).to(device),
            tokenizer=tokenizer,
            device=device,
            max_length=fit_length(max_length or trained_length, model, tokenizer),
            max_tokens=max_tokens,
            mean=getattr(model.config, "reward_mean", 0.0),
            std=getattr(model.config, "reward_std", 1.0),
        )

    def score(self, pairs: Sequence[tuple[Messages, str]]) -> list[float]:
        """The score of each response to its prompt, (messages, text), whatever else is scored along with it."""
        return self.score_encoded([self.encode(messages, response) for messages, response in pairs])

    def encode(self, messages: Messages, response: str) -> Encoded:
        return encode(self.tokenizer, messages, response, self.max_length)

    @torch.inference_mode()
    def score_encoded(self, encoded: Iterable[Encoded]) -> list[float]:
        texts = [tuple(one.ids) for one in encoded]
        distinct = list(dict.fromkeys(texts))
        scores: dict[tuple[int, ...], float] = {}
        max_tokens = budget(self.max_tokens, self.device)
        for places in batches([len(ids) for ids in distinct], [1] * len(distinct), max_tokens):
            rewards = self.net(*pad([distinct[place] for place in places], self.device)).tolist()
            for place, reward in zip(places, rewards, strict=True):
                scores[distinct[place]] = (reward - self.mean) / self.std
        return [scores[ids] for ids in texts]


def load_classifier(name: str, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, list[str]]:
    """A sequence classifier with one output, and which of its weights were not in the files.

    Raises:
        ConfigError: it is a classifier with more outputs, or of a kind that cannot be one.
        OSError: there is no such model, or none in safetensors.
    """
    if not name:
        raise ConfigError("no model is named")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        is_classifier = any("SequenceClassification" in architecture for architecture in config.architectures or ())
        if is_classifier and config.num_labels != 1:
            raise ConfigError(f"{name} is no reward model: it has {config.num_labels} outputs instead of one")
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=1, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"{name} cannot be loaded: {error}") from error
    return model, sorted(info["missing_keys"])


def load_backbone(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model to train, with a new head where it has none, and its tokenizer with a pad token and a chat template.

    The head starts from N(0, 1 / (d + 1)) for d inputs, so that rewards start near zero and unequal (N. Stiennon et
    al., "Learning to summarize from human feedback", 2020, appendix B.1). A pad token of its own is added where padding
    would look like the end of a text: programs that search for the last token by it read the right one.
    """
    tokenizer = AutoTokenizer.from_pretrained(name)
    model, missing = load_classifier(name)
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == 1 and f"{path}.weight" in missing:
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features + 1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    if len(tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    tokenizer.chat_template = chat_template(tokenizer)
    tokenizer.padding_side = "right"
    return model, tokenizer


def fit_length(max_length: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """`max_length`, or what the model has positions for."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or max_length
    return min(max_length, positions, tokenizer.model_max_length)


def score_rankings(
    accelerator: Accelerator, model: RewardModel, rankings: Sequence[RankedResponses], stop: StopFlag
) -> Iterator[list[Scored]]:
    """The scores of all rankings' responses, a chunk of rankings at a time, of which each process takes its share.

    Raises:
        Interrupted: `stop` is true in one of the processes.
    """
    for start in range(0, len(rankings), CHUNK):
        if agree(accelerator, stop()):
            raise Interrupted(f"stopped after scoring {start} of {len(rankings)} rankings")
        chunk = rankings[start : start + CHUNK]
        mine = _score_chunk(model, chunk[accelerator.process_index :: accelerator.num_processes])
        shares = [mine] if accelerator.num_processes == 1 else gather_object([mine])
        yield [shares[place % len(shares)][place // len(shares)] for place in range(len(chunk))]


def _score_chunk(model: RewardModel, rankings: Sequence[RankedResponses]) -> list[Scored]:
    encoded = [[model.encode(ranked.prompt, text) for text in ranked.responses] for ranked in rankings]
    scores = iter(model.score_encoded(one for own in encoded for one in own))
    return [Scored([next(scores) for _ in own], sum(one.is_truncated for one in own)) for own in encoded]


def join_processes() -> Accelerator:
    """This process's part in the run. On CPUs accelerate joins processes only when it is told that they are CPUs."""
    return Accelerator(cpu=not torch.cuda.is_available())


def agree(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is up in any process: what one of them does at a step, all do."""
    if accelerator.num_processes == 1:
        return flag
    return accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)).item() > 0


def train_reward_model(config: RewardModelConfig, run_dir: RunDir, stop: StopFlag) -> dict[str, Any]:
    """Train on the train split, keep the best on validation in `run_dir.model`, measure it on the test split.

    Returns:
        {"model", "accuracy", "interval", "num_pairs", "num_prompts", "loss"} of the test split (see
        `evaluation.measure`); "validation_loss" and "best_step" where there is a validation split; "num_steps";
        "num_train_rankings" that order anything, "num_tied_rankings" that do not; "num_truncated" responses of both
        the training and the test rankings.

    Raises:
        ConfigError: no training ranking puts one response above another, or the backbone cannot serve.
        FloatingPointError: the loss is no longer a number.
        Interrupted: `stop` became true; a checkpoint is left.
    """
    accelerator = join_processes()
    torch.manual_seed(config.seed)
    path = run_dir.resolve(config.preferences)
    train, validation, test = (list(read_rankings(path, split, config.aspect)) for split in SPLITS)
    training = _Training(config, run_dir, accelerator, train, validation)
    training.run(stop)
    result = training.result()
    del training  # its memory is needed
    model = RewardModel.load(run_dir.model, accelerator.device, config.max_length, config.max_tokens)
    model = dataclasses.replace(model, mean=0.0, std=1.0)  # an earlier attempt may have come this far
    _normalise(accelerator, run_dir, model, train, stop)
    scored = [one for chunk in score_rankings(accelerator, model, test, stop) for one in chunk]
    result["num_truncated"] += sum(one.num_truncated for one in scored)
    return {"model": run_dir.model.name, **measure(test, [one.scores for one in scored], "test"), **result}


def _normalise(
    accelerator: Accelerator, run_dir: RunDir, model: RewardModel, train: Sequence[RankedResponses], stop: StopFlag
) -> None:
    """Store the mean and the deviation of the training set's rewards beside the weights, for good."""
    reference = train[:: math.ceil(len(train) / NUM_REFERENCE_RANKINGS)]
    rewards = [
        score for chunk in score_rankings(accelerator, model, reference, stop) for one in chunk for score in one.scores
    ]
    if accelerator.is_main_process:
        config = json.loads((run_dir.model / "config.json").read_text(encoding="utf-8"))
        config |= {"reward_mean": statistics.fmean(rewards), "reward_std": statistics.pstdev(rewards) or 1.0}
        write_json(run_dir.model / "config.json", {**config, "reward_max_length": model.max_length})
    accelerator.wait_for_everyone()


@dataclass(frozen=True)
class _Item:
    """A ranking as the loop sees it: the token ids of its responses, each with the prompt, and their groups."""

    texts: list[np.ndarray]
    groups: tuple[int, ...]
    longest: int
    num_truncated: int


class _Training:
    """The loop: model, optimizer and schedule at some step."""

    def __init__(
        self,
        config: RewardModelConfig,
        run_dir: RunDir,
        accelerator: Accelerator,
        train: Sequence[RankedResponses],
        validation: Sequence[RankedResponses],
    ) -> None:
        self.config, self.run_dir, self.accelerator = config, run_dir, accelerator
        self.train = [ranked for ranked in train if ranked.is_decided]
        self.num_tied = len(train) - len(self.train)
        self.validation = [ranked for ranked in validation if ranked.is_decided]
        if not self.train:
            raise ConfigError(_no_preferences(config.aspect, len(train)))
        self.steps_per_epoch = math.ceil(len(self.train) / config.batch_size)
        self.num_steps = math.ceil(config.num_epochs * self.steps_per_epoch)
        self.eval_steps = config.eval_steps or max(1, self.steps_per_epoch // VALIDATIONS_PER_EPOCH)
        self.step, self.validated_step, self.best_step = 0, 0, 0
        self.best_loss: float | None = None
        self._build()
        self._resume()
        self.parallel_net = accelerator.prepare_model(self.net)
        self.saved_at = time.monotonic()

    def run(self, stop: StopFlag) -> None:
        """Train to the last step.

        A checkpoint comes before a validation that is due, which a resumed run makes up for: a run that is asked to
        stop does not keep its supervisor waiting.
        """
        self._validate_if_due()
        while self.step < self.num_steps:
            self._train_step()
            self._save_if_due(stop)
            self._validate_if_due()
        self._save()
        if not self.validation:
            self._keep_model()

    def result(self) -> dict[str, Any]:
        best = {"validation_loss": self.best_loss, "best_step": self.best_step} if self.validation else {}
        return {
            **best,
            "num_steps": self.num_steps,
            "num_train_rankings": len(self.train),
            "num_tied_rankings": self.num_tied,
            "num_truncated": sum(item.num_truncated for item in self.items),
        }

    def _build(self) -> None:
        config, device = self.config, self.accelerator.device
        model, self.tokenizer = load_backbone(self.run_dir.locate(config.backbone))
        self.net = RewardNet(model).to(device)
        self.max_length = fit_length(config.max_length, model, self.tokenizer)
        self.max_tokens = budget(config.max_tokens, device)
        self.items = [self._item(ranked) for ranked in self.train]
        self.optimizer = torch.optim.AdamW(_parameter_groups(self.net, config), lr=config.learning_rate, betas=BETAS)
        self.scheduler = LambdaLR(self.optimizer, _schedule(self.num_steps, config.warmup_ratio))

    def _item(self, ranked: RankedResponses) -> _Item:
        encoded = [encode(self.tokenizer, ranked.prompt, text, self.max_length) for text in ranked.responses]
        return _Item(
            texts=[np.array(one.ids, dtype=np.int32) for one in encoded],
            groups=ranked.groups,
            longest=max(len(one.ids) for one in encoded),
            num_truncated=sum(one.is_truncated for one in encoded),
        )

    def _train_step(self) -> None:
        items = self._draw()
        learning_rate = float(self.scheduler.get_last_lr()[0])
        loss = self.accelerator.reduce(self._backward(items)).item()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of step {self.step + 1} is {loss}; try a lower learning_rate")
        self.accelerator.clip_grad_norm_(self.parallel_net.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1
        self._log("train", loss=loss, learning_rate=learning_rate)

    def _draw(self) -> list[_Item]:
        """The rankings of the next step: each epoch is in an order of its own, which follows from seed and number."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.items), generator=generator).tolist()
        start = place * self.config.batch_size
        return [self.items[index] for index in order[start : start + self.config.batch_size]]

    def _backward(self, items: Sequence[_Item]) -> Tensor:
        """This process's part of the mean loss over `items`; gradients are summed over batches and processes."""
        num_processes = self.accelerator.num_processes
        mine = items[self.accelerator.process_index :: num_processes]
        weight = 1 / len(items) if mine else 0.0
        mine = mine or items[:1]  # with nothing to do it must still take part in the exchange of gradients
        parts = batches([item.longest for item in mine], [len(item.texts) for item in mine], self.max_tokens)
        total = torch.zeros((), device=self.accelerator.device)
        for number, part in enumerate(parts, start=1):
            with self._exchange(is_last=number == len(parts)):
                loss = self._losses([mine[place] for place in part]).sum() * weight
                self.accelerator.backward(loss * num_processes)  # which then averages over processes
            total += loss.detach()
        return total

    def _losses(self, items: Sequence[_Item]) -> Tensor:
        """(B,) the losses of rankings whose responses go through the model together, each once."""
        texts = [text for item in items for text in item.texts]
        groups = torch.full((len(items), max(len(item.texts) for item in items)), -1)
        places = torch.zeros_like(groups)
        first = 0
        for row, item in enumerate(items):
            groups[row, : len(item.texts)] = torch.tensor(item.groups)
            places[row, : len(item.texts)] = torch.arange(first, first + len(item.texts))
            first += len(item.texts)
        with self._autocast():
            rewards = self.parallel_net(*pad(texts, self.accelerator.device))
        return ranking_loss(rewards[places.to(rewards.device)], groups)

    def _exchange(self, is_last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged between processes with the last batch of a step."""
        return nullcontext() if is_last else self.accelerator.no_sync(self.parallel_net)

    def _autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 on GPUs that compute in it; weights stay in single precision."""
        is_used = self.accelerator.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16, enabled=is_used)

    def _validate_if_due(self) -> None:
        is_due = self.step == self.num_steps or (self.step > 0 and self.step % self.eval_steps == 0)
        if not self.validation or not is_due or self.validated_step == self.step:
            return
        model = RewardModel(self.net, self.tokenizer, self.accelerator.device, self.max_length, self.config.max_tokens)
        with self._autocast():
            scored = [
                one for chunk in score_rankings(self.accelerator, model, self.validation, StopFlag()) for one in chunk
            ]
        found = measure(self.validation, [one.scores for one in scored], "validation")
        self.validated_step = self.step
        self._log("validation", loss=found["loss"], accuracy=found["accuracy"])
        if self.best_loss is None or found["loss"] < self.best_loss:
            self.best_loss, self.best_step = found["loss"], self.step
            self._keep_model()

    def _keep_model(self) -> None:
        if self.accelerator.is_main_process:
            replace_folder(self.run_dir.model, self._write_model)
        self.accelerator.wait_for_everyone()

    def _write_model(self, folder: Path) -> None:
        self.net.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _log(self, phase: str, **values: float) -> None:
        if self.accelerator.is_main_process:
            progress = TRAINING_SHARE * self.step / self.num_steps
            self.run_dir.log(step=self.step, phase=phase, progress=progress, **values)

    def _save_if_due(self, stop: StopFlag) -> None:
        is_stopped = agree(self.accelerator, stop())
        if is_stopped or agree(self.accelerator, time.monotonic() - self.saved_at >= 60 * self.config.save_minutes):
            self._save()
        if is_stopped:
            raise Interrupted(f"stopped after step {self.step} of {self.num_steps}")

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            state = {name: getattr(self, name) for name in STATE}
            self.run_dir.save_checkpoint(self.step, self._write_checkpoint, state)
        self.accelerator.wait_for_everyone()
        self.saved_at = time.monotonic()

    def _write_checkpoint(self, folder: Path) -> None:
        save_model(self.net.model, str(folder / "model.safetensors"))
        save_training_state(folder, self.optimizer, self.scheduler)

    def _resume(self) -> None:
        newest = self.run_dir.latest_checkpoint()
        if newest is None:
            return
        folder, state = newest
        load_model(self.net.model, folder / "model.safetensors", device=str(self.accelerator.device))
        load_training_state(folder, self.optimizer, self.scheduler)
        self.step = state["step"]
        for name in STATE:
            setattr(self, name, state[name])
        if self.accelerator.is_main_process:
            self.run_dir.truncate_metrics(self.step, "train")
            self.run_dir.truncate_metrics(self.validated_step, "validation")


def _no_preferences(aspect: str, num_rankings: int) -> str:
    if num_rankings == 0:
        return f"preferences: the train split has no rankings of aspect {aspect}"
    return f"preferences: nothing to learn: all {num_rankings} training rankings of aspect {aspect} tie all responses"


def _parameter_groups(net: RewardNet, config: RewardModelConfig) -> list[dict[str, Any]]:
    """Weight decay for matrices only: shrinking the scales of normalisations serves nothing."""
    matrices = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in net.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _schedule(num_steps: int, warmup_ratio: float) -> Callable[[int], float]:
    """A linear rise, then a cosine down to a tenth."""
    num_warmup = math.ceil(warmup_ratio * num_steps)

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        done = (step - num_warmup) / max(1, num_steps - num_warmup)
        return FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * (1 + math.cos(math.pi * done)) / 2

    return factor
