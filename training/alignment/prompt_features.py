"""What a prompt is about, as numbers for a gate: hashed words, or a sentence encoder's mean.

By hashing, a word or two neighbouring ones become 64 signs that follow from its digest alone, and a prompt the sum of
its words' signs over the root of their number: a random projection of its bag of words, which keeps inner products to
about 1 / 8, needs no vocabulary and nothing to be learned, and is the same in every process and at any time.

An encoder knows that *soup* is near *stew*, and costs a forward pass of a small model for each prompt.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from training.alignment.preferences import Messages
from training.alignment.run_dir import write_json

NUM_FEATURES = 64
FILE = "prompt_features.json"
WORD = re.compile(r"\w+")
MAX_WORDS = 2000  # of a conversation's end; what it is about is told by then
MAX_TOKENS, BATCH_SIZE = 256, 32

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PromptFeatures:
    """Features of prompts; of their text alone, whatever else is asked for along with it.

    Args:
        encoder: a folder or a Hugging Face id of a sentence encoder; empty for hashed words.
        device: where the encoder runs.
    """

    encoder: str = ""
    device: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def load(cls, folder: Path, device: Any = None) -> Self:
        """What `save` wrote.

        Raises:
            OSError: there is none.
        """
        told = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return cls(told["encoder"], device)

    def save(self, folder: Path) -> None:
        """Write a file into `folder`; an encoder is named, not copied."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, {"encoder": self.encoder})

    def __call__(self, prompts: Sequence[Messages]) -> Floats:
        """(N, D) features of N prompts.

        Raises:
            OSError: the encoder is not there.
        """
        texts = [" ".join(message["content"] for message in prompt) for prompt in prompts]
        if not self.encoder:
            return np.array([hashed(text) for text in texts]).reshape(len(texts), NUM_FEATURES)
        distinct = list(dict.fromkeys(texts))
        found = dict(zip(distinct, self._encoded(distinct), strict=True))
        return np.array([found[text] for text in texts])

    def _encoded(self, texts: Sequence[str]) -> Iterator[Floats]:
        import torch  # noqa: PLC0415 -- hashing needs none of it

        model, tokenizer = self._model
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH_SIZE):
                some = [text if text.strip() else "." for text in texts[start : start + BATCH_SIZE]]  # it needs a token
                batch = tokenizer(some, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt").to(
                    model.device
                )
                hidden = model(**batch).last_hidden_state
                mask = batch["attention_mask"][..., None].to(hidden.dtype)
                means = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
                yield from torch.nn.functional.normalize(means.double(), dim=-1).cpu().numpy()

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415 -- as above

        tokenizer = AutoTokenizer.from_pretrained(self.encoder, trust_remote_code=False)
        model = AutoModel.from_pretrained(self.encoder, trust_remote_code=False, use_safetensors=True)
        return model.to(self.device or "cpu").eval(), tokenizer


def hashed(text: str) -> Floats:
    """(64,) of a text's words and pairs of neighbouring words, whatever their case; zeros where there is none."""
    words = WORD.findall(text.lower())[-MAX_WORDS:]
    parts = [*words, *(f"{one} {other}" for one, other in pairwise(words))]
    if not parts:
        return np.zeros(NUM_FEATURES)
    found: Floats = np.sum([_signs(part) for part in parts], axis=0) / np.sqrt(len(parts))
    return found


@lru_cache(maxsize=50_000)
def _signs(part: str) -> NDArray[np.int8]:
    digest = hashlib.blake2b(part.encode("utf-8", "surrogatepass"), digest_size=NUM_FEATURES // 8).digest()
    bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8))
    return 2 * bits.astype(np.int8) - 1
