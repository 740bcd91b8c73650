"""Streaming by the C kernels: a step's tokens, a stack of blocks, or all that an agent does.

Addresses are collected anew by every call, so weights that have been trained or loaded since, even
into other memory, are seen. Everything but indices is float32 on the CPU.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from decision_seq.ops import native
from decision_seq.ops.cpu import threads

BAD_INDEX = 1  # as in stream.h
UP = 4  # as in block.c, the first weight of [hidden, D]


class Token(NamedTuple):
    """One token of every lane, to be embedded: linearly, or as a row of a table."""

    value: Tensor  # [B, F], or [B] int64
    weight: Tensor  # [D, F], or the table [rows, D]
    bias: Tensor | None  # [D], None for a table
    before: int  # steps before the timestep that is named
    mean: Tensor | None = None  # [F] of the value, taken from it first
    std: Tensor | None = None  # [F], by which it is divided


class Embedding(NamedTuple):
    """What tokens have in common."""

    time: Tensor  # [times, D] of the timestep; later ones than it has share its last row
    norm: Tensor  # [D], of the LayerNorm
    norm_bias: Tensor
    eps: float
    bounded: bool  # tanh after what is embedded


MIXERS = ("attention", "conv", "mamba", "none")  # in the order of mixers.c


class Layer(NamedTuple):
    """A block around a mixer that C knows."""

    mixer: str  # of MIXERS
    weights: int  # how many, the block's own included
    sizes: Sequence[int]  # of the mixer
    before: Sequence[Tensor]  # its state, [B, ...] each
    after: Sequence[Tensor]  # memory for the new one


class Stack(NamedTuple):
    """Blocks, and the norm after them."""

    weights: Sequence[Tensor]  # of every layer in the order of block.c and mixers.c; of the norm
    eps: float  # of all norms
    layers: Sequence[Layer]
    normed: bool


class Addresses:
    """Where tensors are, contiguous; it keeps what had to be copied for that."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(map(Tensor.contiguous, tensors))
        self.table = array("q", map(Tensor.data_ptr, self.tensors))

    @property
    def at(self) -> int:
        """The table's own address."""
        return self.table.buffer_info()[0]


class _Places(Addresses):
    """The layers of a stack as stream.h has them. C reads raw memory, so what does not fit must
    stop here."""

    def __init__(self, stack: Stack, batch: int) -> None:
        self.weights, self.tensors, self.table = Addresses(stack.weights), [], array("q")
        first, *_, up = stack.weights[: UP + 1]
        self.width, self.hidden, offset = len(first), len(up), self.weights.at
        for mixer, count, sizes, before, after in stack.layers:
            states = [tensor.contiguous() for tensor in before]
            if any(len(state) != batch for state in (*states, *after)):
                raise ValueError(f"expected states of {batch} lanes, got {len(states[0])}")
            self.tensors += states
            self.table.extend((MIXERS.index(mixer), offset, *_three(states), *_three(after)))
            self.table.extend((*sizes, *[0] * (4 - len(sizes))))
            offset += 8 * count
        self.norm = offset if stack.normed else 0
        if {t.dtype for t in stack.weights} != {torch.float32} or not stack.weights[0].is_cpu:
            raise TypeError("a stack streams in float32 on the CPU; its weights are not")


def _three(tensors: Sequence[Tensor]) -> list[int]:
    return [*map(Tensor.data_ptr, tensors), *[0] * (3 - len(tensors))]


def embed_step(tokens: Sequence[Token], timesteps: Tensor, embedding: Embedding) -> Tensor:
    """The tokens of one environment step at `timesteps` [B] int64: [B, len(tokens), D].

    Raises:
        ValueError: a value that does not fit its weight.
        IndexError: an index that the table does not have.
    """
    time, norm, norm_bias, eps, bounded = embedding
    batch, (times, width) = len(timesteps), time.shape
    y = time.new_empty(batch, len(tokens), width)
    fields, shared = _Fields(tokens, batch), Addresses((timesteps, time, norm, norm_bias))
    _call(
        "embed_step",
        *(fields.at, *shared.table, eps, y.data_ptr(), batch, len(tokens), width, times, bounded),
    )
    return y


def stack_step(x: Tensor, stack: Stack, read: int) -> Tensor:
    """Continue a stack of residual blocks by x [B, n, D].

    Returns the outputs y [B, read, D] at the last `read` tokens, and fills in the states after.
    Those before are left as they are.
    """
    batch, length, width = x.shape
    x, places = x.contiguous(), _Places(stack, batch)
    if places.width != width:
        raise ValueError(f"expected tokens of width {places.width}, got {width}")
    y = x.new_empty(batch, read, width)
    _call(
        "stack_step",
        *(x.data_ptr(), places.at, len(stack.layers), places.norm, stack.eps, y.data_ptr()),
        *(batch, length, read, width, places.hidden, threads()),
    )
    return y


def policy_step(
    tokens: Sequence[Token],
    timesteps: Tensor,
    embedding: Embedding,
    stack: Stack,
    head: Sequence[Tensor],
    squashed: bool,
) -> Tensor:
    """`embed_step` (not bounded), `stack_step` and the head, weight [A, D] and bias, at the last
    token.

    Returns predictions [B, A], through tanh if `squashed`, and fills in the states after.
    """
    time, norm, norm_bias, eps, _ = embedding
    batch, (times, width), outputs = len(timesteps), time.shape, len(head[1])
    places, fields = _Places(stack, batch), _Fields(tokens, batch)
    shared, ends = Addresses((timesteps, time, norm, norm_bias)), Addresses(head)
    y = time.new_empty(batch, outputs)
    policy = array("q", (fields.at, *shared.table, places.at, places.norm, *ends.table))
    policy.extend((y.data_ptr(), batch, len(tokens), times, width, len(stack.layers)))
    policy.extend((places.hidden, outputs, squashed, threads()))
    _call("policy_step", policy.buffer_info()[0], eps, stack.eps)
    return y


class _Fields(Addresses):
    """Tokens as stream.h has them. C reads raw memory, so what does not fit must stop here."""

    def __init__(self, tokens: Sequence[Token], batch: int) -> None:
        self.table, self.tensors = array("q"), []
        for token in tokens:
            value, weight = token.value.contiguous(), token.weight.contiguous()
            bias, mean, std = (
                None if t is None else t.contiguous() for t in (token.bias, token.mean, token.std)
            )
            self.tensors += [t for t in (value, weight, bias, mean, std) if t is not None]
            is_index = token.bias is None
            rows, inputs = (weight.shape[0], 0) if is_index else (0, weight.shape[1])
            shape, dtype = ((batch,), torch.int64) if is_index else ((batch, inputs), weight.dtype)
            if value.shape != shape or value.dtype is not dtype:
                raise ValueError(f"expected {dtype} {shape}, got {value.dtype} {value.shape}")
            self.table.extend((value.data_ptr(), weight.data_ptr(), _at(bias), inputs, rows))
            self.table.extend((token.before, _at(mean), _at(std)))


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _call(name: str, *arguments: float) -> None:
    failed = getattr(native.library(), name)(*arguments)
    if failed == BAD_INDEX:
        raise IndexError("an action's index is beyond those that the agent knows")
    if failed:
        raise MemoryError(f"{name}: out of memory")
