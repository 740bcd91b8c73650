"""Random states of small associative memories, and whether their energy rises."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from decision_seq.hopfield.memory import AssociativeMemory, States

seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(2, 7)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def some_states(memory: AssociativeMemory, seed: int, batch: int = 3) -> States:
    moving = {n: layer for n, layer in memory.layers.items() if n not in memory.settled}
    return {
        name: normal(batch, *layer.shape, seed=seed + i, scale=2)
        for i, (name, layer) in enumerate(moving.items())
    }


def rises(
    memory: AssociativeMemory,
    states: States,
    dt: float | Tensor,
    steps: int = 10,
    tolerance: float = 1e-11,
) -> bool:
    """Does the energy rise in any of the steps, beyond rounding?"""
    energy = memory.energy(states)
    for _ in range(steps):
        states = memory.step(states, dt)
        following = memory.energy(states)
        if (following > energy + tolerance * (1 + energy.abs())).any():
            return True
        energy = following
    return False
