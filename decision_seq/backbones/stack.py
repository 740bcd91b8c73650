"""Blocks by one call instead of two dozen operations each, where C knows their mixers.

Without gradients and for a few tokens of each lane: a step of a stream, or a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from decision_seq.ops import Layer, Stack, stack_step, streams

if TYPE_CHECKING:
    from decision_seq.backbones.base import Block, LayerState, State

BLOCK_WEIGHTS = (  # in the order of ops/block.c
    *("norm_mixer.weight", "norm_mixer.bias", "norm_mlp.weight", "norm_mlp.bias"),
    *("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"),
)

WIDE, FEW = 256, 16  # a lane has one thread: for more tokens of greater width PyTorch's do better


@dataclass(frozen=True)
class Kernel:
    """What C takes of a mixer that it knows."""

    name: str  # of ops.cpu_stream.MIXERS
    weights: tuple[str, ...]  # of the mixer's parameters, in the order of ops/mixers.c
    state: tuple[str, ...] = ()  # of its state's tensors


class Weights:
    """Where the weights of a module live, for calls that take them all: looking them up by name
    would cost as much as the kernel, and what has been trained or loaded since must be seen."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        paths = [name.rpartition(".") for name in names]
        self.homes = [(module.get_submodule(path)._parameters, name) for path, _, name in paths]

    def now(self) -> list[Tensor]:
        """As they are."""
        return [home[name] for home, name in self.homes]  # type: ignore[misc]


class InOneCall:
    """Some blocks, and the norm after them if there is one."""

    def __init__(self, blocks: Sequence[Block], norm: nn.LayerNorm | None) -> None:
        self.mixers = [block.mixer for block in blocks]
        self.kernels = [kernel for block in blocks if (kernel := known(block)) is not None]
        self.possible = len(self.kernels) == len(blocks)
        self.first, self.normed = blocks[0], norm is not None
        self.homes: list = []
        if not self.possible:
            return
        for block, kernel in zip(blocks, self.kernels, strict=True):
            names = (*BLOCK_WEIGHTS, *(f"mixer.{name}" for name in kernel.weights))
            self.homes += Weights(block, names).homes
        if norm is not None:
            self.homes += Weights(norm, ("weight", "bias")).homes
        self.counts = [len(BLOCK_WEIGHTS) + len(kernel.weights) for kernel in self.kernels]

    def serves(self, x: Tensor, read: slice, state: State | None = None) -> bool:
        """Whether `step` can take tokens x [B, L, D] and give the outputs at `read`."""
        if not self.possible or self.first.training:
            return False
        lanes, length, width = x.shape
        if width > WIDE and length > FEW and lanes < torch.get_num_threads():
            return False
        return streams(x, lanes, length) and is_suffix(read, length) and in_float32(state)

    def step(
        self, x: Tensor, state: State, read: slice, remember: bool = True
    ) -> tuple[Tensor, State]:
        """[B, L, D], state -> the outputs at the l last tokens [B, l, D], state; the latter is not
        of use unless it is to be remembered."""
        stack, after = self.stack(state, x.shape[1], remember)
        return stack_step(x, stack, len(range(x.shape[1])[read])), after

    def stack(self, state: State, tokens: int, remember: bool = True) -> tuple[Stack, State]:
        """What a kernel takes, and the state that it fills in."""
        layers, after = [], []
        for mixer, kernel, count, own in zip(
            self.mixers, self.kernels, self.counts, state, strict=True
        ):
            sizes, new = mixer.kernel_call(own, tokens, remember)
            before, later = ([of[name] for name in kernel.state] for of in (own, new))
            layers.append(Layer(kernel.name, count, sizes, before, later))
            after.append(new)
        weights = [home[name] for home, name in self.homes]
        return Stack(weights, self.first.norm_mixer.eps, layers, self.normed), after


def known(block: Block) -> Kernel | None:
    """How C knows a block. A class that is derived from one that C knows may do otherwise."""
    from decision_seq.backbones.base import Block

    return vars(type(block.mixer)).get("kernel") if type(block) is Block else None


def is_suffix(read: slice, length: int) -> bool:
    """Whether `read` are the last of `length` tokens."""
    _, stop, stride = read.indices(length)
    return stop == length and stride == 1


def in_float32(state: State | None) -> bool:
    """Whether what is no index or flag in it is."""
    numbers = (t.dtype for layer in state or () for t in layer.values() if t.is_floating_point())
    return all(dtype is torch.float32 for dtype in numbers)


def like(state: LayerState) -> LayerState:
    """Memory for another."""
    return {name: torch.empty_like(tensor) for name, tensor in state.items()}
