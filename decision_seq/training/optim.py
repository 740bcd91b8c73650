"""AdamW with decay where it belongs, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from decision_seq.ops.adamw import AdamW
from decision_seq.run_config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW over two groups: matrices decay; biases, norms, embeddings, A_log and D do not."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        path, _, own = name.rpartition(".")
        table = isinstance(model.get_submodule(path), nn.Embedding)
        groups[parameter.ndim >= 2 and not table and own not in ("bias", "A_log")].append(parameter)
    return AdamW(
        [
            {"params": groups[True], "weight_decay": config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of gradient step number `step` (from 0): linear warm-up, then constant or cosine."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def average_decay(step: int, config: TrainConfig) -> float:
    """What the moving average of the weights keeps of itself in gradient step number `step`: it is
    one over the last tenth of the steps at first, else the untrained weights would stay in it."""
    return min(config.ema or 0.0, (1 + step) / (10 + step))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """What a loss is computed under; it does nothing unless `precision` is bfloat16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
