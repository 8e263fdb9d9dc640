"""Matrix products on CPUs, where nearly all the time of training goes.

PyTorch multiplies single-precision matrices by MKL, which on CPUs of other makers than its own runs at a fraction of
their speed; oneDNN, which PyTorch brings along, does not. It is asked only where products may be rounded to bfloat16,
and makes use of that permission only on CPUs with matrix units. `allow_fast_products` gives it where it is measured
that nothing is rounded: several times faster, and as exact.

Fused attention is the exception: on short texts, and by one query at a time, it takes several times longer by oneDNN.
There `by_usual_products` leaves it to MKL, forth and back.

In bfloat16, autocast computes everything between the products in it as well, which CPUs do slowly. `round_products`
rounds what goes into the products of a model's linear layers, and nothing else: sums are in single precision.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.autograd.graph import Node
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.pytorch_utils import Conv1D

HEADS = ("score", "classifier")
EXACT = 1e-5  # relative; bfloat16 is a hundred times worse
MOST_SHORT = 2**14
"""Numbers in a head's keys: with more of them, fused attention is faster by oneDNN."""
NUM_STEPS_BEHIND = 4  # of autograd, between fused attention and what a model's attention gives back


@cache
def allow_fast_products() -> bool:
    """Let PyTorch multiply single-precision matrices by oneDNN in this process, if that costs no precision here.

    The attention that models call "sdpa" does so from then on where it is faster.
    """
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    usual = settings.fp32_precision
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(256, 256, generator=generator) for _ in range(2))
    settings.fp32_precision = "bf16"
    exact = one.double() @ other.double()
    is_exact = bool(((one @ other).double() - exact).abs().max() < EXACT * exact.abs().max())
    if is_exact:
        AttentionInterface.register("sdpa", attention)
    else:
        settings.fp32_precision = usual
    return is_exact


def attention(module: nn.Module, query: Tensor, key: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, None]:
    """That of `transformers` by PyTorch's fused kernel, by whichever products are faster."""
    attend = partial(sdpa_attention_forward, module, query, key, *arguments, **options)
    if query.device.type == "cpu" and (query.shape[2] == 1 or is_short(key)):
        return by_usual_products(lambda: attend()[0]), None
    return attend()


def is_short(key: Tensor) -> bool:
    """Whether fused attention to keys (…, T, size) is faster by MKL."""
    return key.shape[-2] * key.shape[-1] <= MOST_SHORT


def by_usual_products(attend: Callable[[], Tensor]) -> Tensor:
    """What `attend` gives by fused attention, computed and differentiated without that permission."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    kept, settings.fp32_precision = settings.fp32_precision, "ieee"
    try:
        found = attend()
    finally:
        settings.fp32_precision = kept
    if step := _fused_attention(found.grad_fn):
        step.register_prehook(lambda gradients: setattr(settings, "fp32_precision", "ieee"))
        step.register_hook(lambda inputs, outputs: setattr(settings, "fp32_precision", kept))
    return found


def _fused_attention(step: Node | None) -> Node | None:
    """The step of autograd, here or little before."""
    for _ in range(NUM_STEPS_BEHIND):
        if step is None or step.name().startswith("ScaledDotProduct"):
            return step
        step = step.next_functions[0][0] if step.next_functions else None
    return None


def round_products(model: nn.Module) -> None:
    """Have a model's linear layers multiply in bfloat16, in place, but for its head."""
    for name, module in model.named_modules():
        if name.split(".")[0] not in HEADS and isinstance(module, nn.Linear | Conv1D):
            module.forward = _RoundedLinear(module)  # type: ignore[method-assign]


class _RoundedLinear:
    """What takes the place of a layer's own forward."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, inputs: Tensor) -> Tensor:
        weight = self.module.weight
        weight = weight.T if isinstance(self.module, Conv1D) else weight  # GPT-2 holds matrices the other way round
        product: Tensor = _Product.apply(inputs.flatten(0, -2), weight)
        if self.module.bias is not None:
            product = product + self.module.bias
        return product.view(*inputs.shape[:-1], weight.shape[0])


class _Product(torch.autograd.Function):
    """(N, K) inputs and (M, K) weights -> (N, M), all in single precision, multiplied in bfloat16."""

    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, weight: Tensor) -> Tensor:
        rounded = inputs.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(*rounded)
        return (rounded[0] @ rounded[1].T).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight = ctx.needs_input_grad
        rounded = gradient.bfloat16()
        return (
            (rounded @ weight).float() if needs_inputs else None,
            (rounded.T @ inputs).float() if needs_weight else None,
        )
