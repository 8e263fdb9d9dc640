"""The state of a training loop beside its weights, as files: optimizer, schedule and random generators.

Tensors go into safetensors and the rest into JSON: reading a checkpoint never runs code that somebody put into it,
as a pickle would. `RunDir.save_checkpoint` makes the folder whole by rename; these functions fill and read it.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def save_training_state(
    folder: Path, optimizer: Optimizer, scheduler: LRScheduler, state: dict[str, Any] | None = None
) -> None:
    """Write optimizer.safetensors, random.safetensors and training.json into `folder`.

    Args:
        state: the optimizer's, where it is gathered from several processes; its parameters have names then.
    """
    state = optimizer.state_dict() if state is None else state
    tensors, numbers = _split(state["state"])
    save_file(tensors, folder / "optimizer.safetensors")
    save_file(_random_tensors(), folder / "random.safetensors")
    written = {
        "numbers": numbers,
        "param_groups": state["param_groups"],
        "scheduler": scheduler.state_dict(),
        "python_random": random.getstate(),
        "numpy_random": np.random.get_state(legacy=False),
    }
    (folder / "training.json").write_text(json.dumps(written, default=_plain), encoding="utf-8")


def load_training_state(folder: Path, optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """Put optimizer and schedule where `save_training_state` found them."""
    optimizer.load_state_dict(read_optimizer_state(folder))
    scheduler.load_state_dict(read_schedule(folder))


def read_schedule(folder: Path) -> dict[str, Any]:
    return _read_training(folder)["scheduler"]


def read_optimizer_state(folder: Path) -> dict[str, Any]:
    """The state that `save_training_state` has written, as the optimizer or the gathering functions give it."""
    written = _read_training(folder)
    state: dict[int | str, dict[str, Any]] = {}
    for name, value in [*load_file(folder / "optimizer.safetensors").items(), *written["numbers"].items()]:
        parameter, key = name.rsplit(".", 1)
        state.setdefault(int(parameter) if parameter.isdecimal() else parameter, {})[key] = value
    return {"state": state, "param_groups": written["param_groups"]}


def load_random_state(folder: Path) -> None:
    """Put the random generators of Python, NumPy and torch (with its GPUs) where `save_training_state` found them."""
    written = _read_training(folder)
    version, internal, gauss = written["python_random"]
    random.setstate((version, tuple(internal), gauss))
    numpy_state = written["numpy_random"]
    numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy_state)
    tensors = load_file(folder / "random.safetensors")
    torch.set_rng_state(tensors.pop("cpu"))
    for device, tensor in tensors.items():
        if int(device) < torch.cuda.device_count():
            torch.cuda.set_rng_state(tensor, int(device))


def _read_training(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training.json").read_text(encoding="utf-8"))


def _split(state: Mapping[Any, Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and plain values of an optimizer's state, by "parameter.key"."""
    flat = {f"{parameter}.{key}": value for parameter, values in state.items() for key, value in values.items()}
    tensors = {name: value.contiguous() for name, value in flat.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in flat.items() if not isinstance(value, Tensor)}


def _random_tensors() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states |= {str(device): torch.cuda.get_rng_state(device) for device in range(torch.cuda.device_count())}
    return states


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written to a checkpoint")
