"""The network behind a reward model: a sequence classifier, fed with packed rows of tokens.

A reward model is a transformer with a head of one output for each aspect, read at the last token of prompt and
response; an encoder is read in its own way. It stays what `transformers` calls a sequence classifier, and gives the
rewards that such a one gives to each sequence alone. Whether packing keeps that promise is measured, not assumed, when
a model is loaded, in single precision: where an architecture does not follow the rules that a packing needs, its
rewards of a few short texts differ, and the next packing is taken.

The last token is found from the lengths of the sequences, never by looking for a pad token: a model without one, or
whose pad token also ends texts, is otherwise read at the wrong place. Dropout is off, unless training wants it, and
the head computes in single precision.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from training.alignment.attention import PACKED
from training.alignment.config import ConfigError
from training.alignment.packing import Bundle, Packing, Row, build_row, bundle
from training.alignment.preferences import closing_template
from training.alignment.run_dir import require_model

logger = logging.getLogger(__name__)

PAD_TOKEN = "<|pad|>"  # noqa: S105 -- for tokenizers that have none
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "hidden_dropout")  # as models name their numbers
POSITIONS = ("max_position_embeddings", "max_seq_len")  # how configurations call their number
SCALED_BY_LENGTH = ("longrope", "dynamic")  # ways of telling positions
TOLERANCE = {"cpu": 1e-4, "cuda": 3e-2}  # of the rewards' spread; a GPU rounds products to ten bits where it may
ROUNDING = 1e-5  # of the rewards themselves
FAILURES = (TypeError, ValueError, NotImplementedError, RuntimeError, AttributeError, IndexError)  # of a packing


class RewardNet(nn.Module):
    """A sequence classifier whose input is a `Row`.

    Args:
        packing: how to put sequences before the model; by default the first of shared, separate, padded and alone that
            gives the rewards of the sequences alone.
        max_length: tokens of the longest sequence, where it is known: some models read positions in another way once
            one sequence before them is long. Those get padded batches, and what is so long gets there alone.

    Raises:
        ConfigError: the packing that is asked for gives other rewards, or the model gives no finite ones.
    """

    def __init__(self, model: PreTrainedModel, packing: Packing | None = None, max_length: int = 0) -> None:
        super().__init__()
        self.model = model.eval()
        self.position_offset = _position_offset(model)
        self.unscaled_length = _unscaled_length(model)
        self.is_one_pass = False
        """Whether a row must go through the model at once, as other processes wait for each pass."""
        wanted = [packing] if packing else list(Packing)
        worth_trying = [one for one in wanted if self._could_keep(one, max_length)]
        try:
            with _in_single_precision(model):
                kept = self._first_that_keeps_rewards(worth_trying)
        except torch.OutOfMemoryError:
            if model.dtype == torch.float32:
                raise
            logger.warning("%s is not packed: there is no memory to try it in single precision", type(model).__name__)
            kept = next((one for one in worth_trying if not one.is_packed), None)
        if kept is None:
            raise ConfigError(f"packing: {type(model).__name__} gives other rewards when its texts are {packing}")
        self.packing = kept

    def forward(self, row: Row) -> Tensor:
        """(N, H) rewards of a row's sequences.

        Raises:
            ConfigError: they cannot go through the model at once, and must.
        """
        if row.layout is None:
            return self._unpacked(row)
        hidden = self.model.base_model(
            input_ids=row.input_ids,
            position_ids=row.position_ids + self.position_offset,
            attention_mask=row.input_ids.new_ones(1, 1, 1, 1),  # of four dimensions: no other mask is made
            layout=row.layout,
            **self._no_cache(),
        ).last_hidden_state[0]
        return self._read(hidden, row)

    def _unpacked(self, row: Row) -> Tensor:
        """Padded sequences: together as far as that changes nothing."""
        assert row.attention_mask is not None
        num_sequences, width = row.input_ids.shape
        if num_sequences == 1:
            return self._padded(row)
        together: list[int] = []
        if self.packing != Packing.ALONE and width > self.unscaled_length:
            sizes = row.attention_mask.sum(1).tolist()
            together = [place for place, size in enumerate(sizes) if size <= self.unscaled_length]
        elif self.packing != Packing.ALONE:
            try:
                return self._padded(row)
            except ValueError:  # BART and T5 want as many EOS tokens in each, and conversations have more than one
                pass
        if self.is_one_pass:
            raise ConfigError(f"sharding: {type(self.model).__name__} reads texts one by one; take none")
        parts = [together] * bool(together) + [[place] for place in range(num_sequences) if place not in together]
        rewards = torch.cat([self._padded(row.only(part)) for part in parts])
        order = [place for part in parts for place in part]
        return rewards[torch.tensor(order, device=rewards.device).argsort()]

    def _padded(self, row: Row) -> Tensor:
        assert row.attention_mask is not None
        pad_id = self.model.config.get_text_config().pad_token_id or 0  # some models look for it by themselves
        ids = row.input_ids.where(row.attention_mask > 0, pad_id)
        inputs = {"input_ids": ids, "attention_mask": row.attention_mask}
        if not self._is_read_last:
            return self.model(**inputs).logits.float()
        hidden = self.model.base_model(**inputs, **self._no_cache()).last_hidden_state
        return self._head(self.model.score, hidden.flatten(0, 1)[row.lasts])

    @property
    def _is_read_last(self) -> bool:
        return isinstance(getattr(self.model, "score", None), nn.Module)

    def _no_cache(self) -> dict[str, bool]:
        return {"use_cache": False} if self._is_read_last else {}

    def _read(self, hidden: Tensor, row: Row) -> Tensor:
        """(N, H) from (T, D): as the model's own class goes on after its encoder."""
        model = self.model
        if self._is_read_last:
            return self._head(model.score, hidden[row.lasts])
        first = hidden[row.firsts]
        if getattr(model.base_model, "pooler", None) is not None:  # BERT
            return self._head(model.classifier, model.dropout(model.base_model.pooler(first[:, None])))
        if pooling := getattr(model.config, "classifier_pooling", None):  # ModernBERT
            pooled = first if pooling == "cls" else _means(hidden, row)
            return self._head(model.classifier, model.drop(model.head(pooled)))
        return model.classifier(first[:, None]).float()  # RoBERTa

    @staticmethod
    def _head(head: nn.Module, pooled: Tensor) -> Tensor:
        with torch.autocast(pooled.device.type, enabled=False):  # a bfloat16 reward has two digits
            return head(pooled.to(next(head.parameters()).dtype)).float()

    def _could_keep(self, packing: Packing, max_length: int) -> bool:
        """Whether it is worth trying."""
        if not packing.is_packed:
            return True
        is_causal = all(getattr(one, "is_causal", True) for one in self.model.modules())
        return max_length <= self.unscaled_length and (is_causal or packing != Packing.SHARED)

    @torch.no_grad()
    def _first_that_keeps_rewards(self, packings: Sequence[Packing]) -> Packing | None:
        """The first by which a few texts, of which two begin alike, get the rewards that the model gives each alone.

        Where it gives them none alone, nothing can be told, and nothing is packed.
        """
        texts = _probe(self.model)
        try:
            rows = [build_row([_alone(text)], Packing.PADDED, self.model.device) for text in texts]
            alone = torch.cat([self._padded(row) for row in rows])
        except torch.OutOfMemoryError:
            raise
        except FAILURES:
            return next((one for one in packings if not one.is_packed), None)
        if not alone.isfinite().all():
            raise ConfigError(f"{self.model.name_or_path} gives rewards that are no finite numbers")
        return next((one for one in packings if self._keeps_rewards(one, texts, alone)), None)

    def _keeps_rewards(self, packing: Packing, texts: Sequence[Sequence[int]], alone: Tensor) -> bool:
        if packing == Packing.ALONE:
            return True
        model = self.model
        usual = model.config._attn_implementation
        row = build_row([bundle(texts[:2], packing), bundle(texts[2:], packing)], packing, model.device)
        try:
            if packing.is_packed:
                model.set_attn_implementation(PACKED)
            together = self(row) if packing.is_packed else self._padded(row)
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            logger.info("%s is not %s: %s", type(model).__name__, packing, error)
            is_same = False
        else:
            spread = (alone.max(0).values - alone.min(0).values).max().item()
            tolerance = TOLERANCE.get(model.device.type, 1e-2) * spread + ROUNDING * alone.abs().max().item()
            is_same = together.shape == alone.shape and torch.allclose(together, alone, rtol=0, atol=tolerance)
        if not is_same and packing.is_packed:
            model.set_attn_implementation(usual)
        return is_same


@contextmanager
def _in_single_precision(model: PreTrainedModel) -> Iterator[None]:
    """With weights of half the precision, rounding hides what one text does to another."""
    narrow = [one for one in (*model.parameters(), *model.buffers()) if one.dtype in {torch.bfloat16, torch.float16}]
    kept = [one.dtype for one in narrow]
    try:
        for one in narrow:
            one.data = one.data.float()
        yield
    finally:
        for one, dtype in zip(narrow, kept, strict=True):
            one.data = one.data.to(dtype)


def silence_dropout(model: PreTrainedModel) -> None:
    """Switch dropout off for good, in training too: it would blur the few differences that a ranking tells."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in DROPOUTS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _means(hidden: Tensor, row: Row) -> Tensor:
    """(N, D) the mean of each sequence's tokens, where sequences stand side by side."""
    sizes = row.lasts - row.firsts + 1
    owners = torch.repeat_interleave(torch.arange(len(sizes), device=hidden.device), sizes)
    total = hidden.new_zeros(len(sizes), hidden.shape[1]).index_add(0, owners, hidden[: len(owners)])
    return total / sizes[:, None]


def _probe(model: PreTrainedModel) -> list[list[int]]:
    """Three texts; each ends with the EOS token, where there is one, as BART and T5 find a text's end by it."""
    config = model.config.get_text_config()
    vocabulary, eos = config.vocab_size, getattr(config, "eos_token_id", None)
    ends = [one for one in (eos if isinstance(eos, list) else [eos]) if one is not None and one < vocabulary]
    special = {config.pad_token_id, *ends}
    ids = [number for number in range(vocabulary - 1, max(0, vocabulary - 20), -1) if number not in special]
    return [[*text, *ends[:1]] for text in ([*ids[:5], *ids[5:8]], [*ids[:5], *ids[8:12]], ids[3:9])]


def _unscaled_length(model: PreTrainedModel) -> float:
    """How many tokens a model reads as it reads few: beyond, these ways of scaling go by the longest in the row."""
    config = model.config.get_text_config()
    told = getattr(config, "rope_parameters", None) or {}
    by_kind_of_layer = [one for one in told.values() if isinstance(one, dict)]
    scaled = [one for one in (told, *by_kind_of_layer) if one.get("rope_type") in SCALED_BY_LENGTH]
    lengths = [one.get("original_max_position_embeddings") or config.max_position_embeddings for one in scaled]
    return min(lengths, default=math.inf)


def _alone(text: Sequence[int]) -> Bundle:
    return bundle([text], Packing.PADDED)


def _position_offset(model: PreTrainedModel) -> int:
    """RoBERTa and its kin count positions from after that of padding."""
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def load_classifier(
    name: str, dtype: torch.dtype = torch.float32, num_heads: int | None = None
) -> tuple[PreTrainedModel, list[str]]:
    """A sequence classifier with an output for each aspect, and which of its weights were not in the files.

    Args:
        num_heads: outputs it should have; by default one, or as many as a reward model of ours has aspects.

    Raises:
        ConfigError: it is a classifier with other outputs, or of a kind that cannot be one.
        OSError: there is no such model, or none in safetensors.
    """
    if not name:
        raise ConfigError("no model is named")
    require_model(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        num_heads = num_heads or len(getattr(config, "reward_aspects", None) or [""])
        is_classifier = any("SequenceClassification" in architecture for architecture in config.architectures or ())
        if is_classifier and config.num_labels != num_heads:
            wanted = "one" if num_heads == 1 else str(num_heads)
            raise ConfigError(f"{name} is no reward model: it has {config.num_labels} outputs instead of {wanted}")
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name,
            num_labels=num_heads,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"{name} cannot be loaded: {error}") from error
    return model, sorted(info["missing_keys"])


def load_backbone(name: str, num_heads: int = 1) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model to train, with a new head where it has none, and its tokenizer with a pad token and a chat template.

    The head starts from N(0, 1 / (d + 1)) for d inputs, so that rewards start near zero and unequal (N. Stiennon et
    al., "Learning to summarize from human feedback", 2020, appendix B.1). A pad token of its own is added where padding
    would look like the end of a text: programs that search for the last token by it read the right one.
    """
    require_model(name)
    # where another program finds a text too long, its end stays, which is what a reward is read from
    sides = {"padding_side": "right", "truncation_side": "left"}
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **sides)
    model, missing = load_classifier(name, num_heads=num_heads)
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == num_heads and f"{path}.weight" in missing:
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features + 1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    if len(tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    tokenizer.chat_template = closing_template(tokenizer)
    return model, tokenizer


def fit_length(max_length: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """`max_length`, or what the model has positions for."""
    config = model.config.get_text_config()
    told = [getattr(config, name, None) or 0 for name in POSITIONS]
    positions = next((one for one in told if one > 0), max_length + 2)
    return min(max_length, positions - _position_offset(model), tokenizer.model_max_length)
