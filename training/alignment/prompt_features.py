"""What a gate sees of a prompt: numbers that are alike for prompts that are alike.

Without a model, they are its words and pairs of neighbouring words, hashed: each has its own 64 signs, the bits of its
digest, and a prompt's features are the sum of these by log(1 + how often it stands there), at length 1. That is a
random projection of the counts that keeps angles to about 1/8 (D. Achlioptas, "Database-friendly random projections",
2003), needs no vocabulary, and is the same in every process. With a sentence encoder, they are the mean of its last
layer over the tokens, at length 1 (N. Reimers and I. Gurevych, "Sentence-BERT", 2019).

Only the prompt is read. Who uses the features standardises them on what it was fitted to.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from training.alignment.baselines import WORD
from training.alignment.ensemble import Floats
from training.alignment.preferences import Messages
from training.alignment.reward import named, placed
from training.alignment.weights import weights_digest

NUM_HASHED = 64
MAX_TOKENS = 256  # of a prompt that an encoder reads: its end, which asks
BATCH_SIZE = 32
CONFIG = "prompt_features.json"


@dataclass(frozen=True, eq=False)
class PromptFeatures:
    """Prompts -> (N, D) features.

    Attributes:
        encoder: a sentence encoder, a folder or a Hugging Face id with safetensors; empty for hashed words.
        device: of the encoder.
    """

    encoder: str = ""
    device: Any = None

    def __call__(self, prompts: Sequence[Messages]) -> Floats:
        """(N, D) of each prompt, whatever the others are.

        Raises:
            OSError: there is no such encoder.
        """
        texts = [_text(prompt) for prompt in prompts]
        if not self.encoder:
            return np.stack([_hashed(text) for text in texts]) if texts else np.zeros((0, NUM_HASHED))
        return _encoded(texts, self.encoder, self.device)

    def save(self, folder: Path) -> None:
        """Write prompt_features.json: an encoder is named, not copied."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(
            json.dumps({"encoder": named(self.encoder, folder) if self.encoder else ""}) + "\n", encoding="utf-8"
        )

    @cached_property
    def digest(self) -> str:
        """Of the encoder's weights, wherever it lies; empty for hashed words."""
        return weights_digest(_load(self.encoder)[1]) if self.encoder else ""

    @classmethod
    def load(cls, folder: Path, device: Any = None) -> Self:
        """What `save` wrote.

        Raises:
            OSError: there is nothing.
        """
        encoder = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["encoder"]
        return cls(placed(folder, encoder) if encoder else "", device)


def _text(prompt: Messages) -> str:
    return "\n".join(message["content"] for message in prompt)


def _hashed(text: str) -> Floats:
    words = WORD.findall(text.lower())
    counts = Counter(words + [f"{one} {other}" for one, other in pairwise(words)])
    if not counts:
        return np.zeros(NUM_HASHED)
    weights: Floats = np.log1p(np.array(list(counts.values()), dtype=np.float64))
    found: Floats = weights @ np.stack([_signs(word) for word in counts])
    found /= math.sqrt(NUM_HASHED) * float(np.linalg.norm(weights))
    return found


@lru_cache(maxsize=2**16)
def _signs(word: str) -> Floats:
    """(64,) a bit of the word's digest each, as -1 or 1."""
    digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=NUM_HASHED // 8).digest()
    return 2 * np.unpackbits(np.frombuffer(digest, dtype=np.uint8)).astype(np.float64) - 1


@torch.no_grad()
def _encoded(texts: Sequence[str], encoder: str, device: Any) -> Floats:
    tokenizer, model = _load(encoder)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    found = np.zeros((len(texts), model.config.hidden_size))
    tokens = [tokenizer(text, truncation=True, max_length=_most_tokens(model))["input_ids"] for text in texts]
    by_length = sorted(range(len(texts)), key=lambda place: len(tokens[place]))
    for start in range(0, len(texts), BATCH_SIZE):
        places = by_length[start : start + BATCH_SIZE]
        batch = tokenizer.pad({"input_ids": [tokens[place] for place in places]}, return_tensors="pt").to(model.device)
        hidden = model(**batch).last_hidden_state.double()
        mask = batch["attention_mask"][..., None]
        pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1).clamp(min=1), dim=1)
        found[places] = pooled.cpu().numpy()
    return found


@cache
def _load(encoder: str) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(encoder, trust_remote_code=False, truncation_side="left")
    model = AutoModel.from_pretrained(encoder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32)
    return tokenizer, model.eval()


def _most_tokens(model: Any) -> int:
    return min(MAX_TOKENS, getattr(model.config, "max_position_embeddings", MAX_TOKENS))
