"""vLLM as what writes responses, where it is installed and there is a GPU.

It plans its own batches and computes once what prompts have in common. Each response is a request with a seed of its
own, so that it depends neither on the others nor on their order but for rounding in half precision.
"""

import gc
import importlib.metadata
import importlib.util
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from training.alignment.decoding import Response

MEMORY_SHARE = 0.5  # of the GPU's: rewards and training need the rest


def has_vllm(device: torch.device) -> bool:
    """Whether there is a GPU for it; processes that train together, each with a GPU of its own, sample on these."""
    is_alone = int(os.environ.get("WORLD_SIZE") or 1) == 1
    return device.type == "cuda" and is_alone and importlib.util.find_spec("vllm") is not None


class VllmEngine:
    """One policy in an engine of this process.

    Args:
        folder: of a whole model and its tokenizer.
        max_length: tokens of prompt and response.
        dtype: of weights and products.
    """

    def __init__(self, folder: Path, max_length: int, dtype: torch.dtype) -> None:
        from vllm import LLM  # noqa: PLC0415 -- installed on few machines

        self.name = f"vLLM {importlib.metadata.version('vllm')}"
        self.engine: Any = LLM(
            model=str(folder),
            dtype=str(dtype).removeprefix("torch."),
            max_model_len=max_length,
            gpu_memory_utilization=MEMORY_SHARE,
            enable_prefix_caching=True,
            trust_remote_code=False,
        )

    def write(
        self,
        responses: Sequence[Response],
        seeds: Sequence[int],
        *,
        ends: Collection[int],
        temperature: float,
        top_p: float,
        max_new_tokens: int,
    ) -> None:
        """Write all responses to their ends, each from its seed."""
        from vllm import SamplingParams  # noqa: PLC0415 -- installed on few machines

        outputs = self.engine.generate(
            [{"prompt_token_ids": list(one.prompt)} for one in responses],
            [
                SamplingParams(
                    temperature=temperature,
                    top_p=top_p,
                    max_tokens=max_new_tokens,
                    seed=seed % 2**63,  # -1 would mean none
                    stop_token_ids=sorted(ends),
                    ignore_eos=True,  # the tokenizer's, which may be none of these
                    detokenize=False,
                )
                for seed in seeds
            ],
            use_tqdm=False,
        )
        for response, output in zip(responses, outputs, strict=True):
            for token in output.outputs[0].token_ids:  # the one that ends it included
                response.add(token, ends)

    def close(self) -> None:
        """Give back the GPU's memory."""
        self.engine = None
        gc.collect()
        torch.cuda.empty_cache()
