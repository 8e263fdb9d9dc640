"""How a reward model's weights are held while it trains: whole or in shards, all trained or low-rank adapters.

Whatever the way, they are saved as the plain weights of a sequence classifier, and a checkpoint holds what is trained,
whole: it can be taken up by another number of processes.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from training.alignment.products import HEADS

ADAPTER = "default"
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
TRAINED = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)


def add_adapters(model: PreTrainedModel, rank: int, alpha: float) -> None:
    """Freeze a classifier but for its head, and give its linear layers low-rank adapters, in place.

    Source: E. J. Hu et al., "LoRA: low-rank adaptation of large language models", 2021.
    """
    heads = [name for name in HEADS if isinstance(getattr(model, name, None), nn.Module)]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # any number will do
        target_modules="all-linear",
        exclude_modules=heads,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    inject_adapter_in_model(config, model, ADAPTER)
    for name in heads:
        getattr(model, name).requires_grad_(True)


def shard(net: nn.Module, device_type: str, num_processes: int) -> None:
    """Divide weights, gradients and optimizer between processes, in place; each layer is gathered when it computes."""
    mesh = init_device_mesh(device_type, (num_processes,))
    for module in net.modules():
        if isinstance(module, GradientCheckpointingLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(net, mesh=mesh)


def classifier_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of a classifier under their own names, on the CPU, adapters merged. All processes must ask."""
    state: Mapping[str, Any] = get_model_state_dict(model, options=WHOLE)
    found: dict[str, Tensor] = {
        name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name
    }
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.active_adapters:
            down, up = (state.get(f"{name}.lora_{letter}.{ADAPTER}.weight") for letter in "AB")
            if down is not None and up is not None:
                change = up @ down * module.scaling[ADAPTER]
                change = change.T if getattr(module, "fan_in_fan_out", False) else change
                found[f"{name}.weight"] = found[f"{name}.weight"] + change  # the state may be the weights themselves
    return found


def weights_digest(model: nn.Module) -> str:
    """SHA-256, in hex, of names, types, shapes and numbers, wherever they lie."""
    found = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        found.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def training_state(module: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is trained, by one name each, and the optimizer's state of it, whole, on the CPU. All processes must ask."""
    weights, state = get_state_dict(module, optimizer, options=TRAINED)
    once = {name for name, _ in module.named_parameters()}  # a weight that is shared has several names
    return {name: weight for name, weight in weights.items() if name in once}, dict(state)  # type: ignore[misc]


def load_training_state(
    module: nn.Module, optimizer: Optimizer, weights: dict[str, Any], state: dict[str, Any]
) -> None:
    """Put back what `training_state` gave."""
    set_state_dict(module, optimizer, model_state_dict=weights, optim_state_dict=state, options=TRAINED)
