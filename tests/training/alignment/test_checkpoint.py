import random

import numpy as np
import torch

from training.alignment.checkpoint import load_random_state, load_training_state, save_training_state


def a_loop(weights: torch.Tensor):
    parameter = torch.nn.Parameter(weights.clone())
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return parameter, optimizer, scheduler


def steps(loop, n: int) -> list[float]:
    """Steps along random directions, which depend on both optimizer moments, the schedule and the generators."""
    parameter, optimizer, scheduler = loop
    for _ in range(n):
        parameter.grad = torch.randn(3) + random.random() + float(np.random.random())
        optimizer.step()
        scheduler.step()
    return parameter.detach().tolist()


def test_a_loop_goes_on_from_a_checkpoint_as_if_never_stopped(tmp_path):
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    loop = a_loop(torch.ones(3))
    steps(loop, 3)
    save_training_state(tmp_path, loop[1], loop[2])
    saved = loop[0].detach().clone()
    expected = steps(loop, 4)

    resumed = a_loop(saved)
    load_training_state(tmp_path, resumed[1], resumed[2])
    load_random_state(tmp_path)

    assert steps(resumed, 4) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "optimizer.safetensors",
        "random.safetensors",
        "training.json",
    ]
