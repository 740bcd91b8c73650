"""Streaming by the C kernels: a step's tokens, a stack of Mamba blocks, or all that an agent does.

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


class Stack(NamedTuple):
    """Blocks around Mamba."""

    weights: Sequence[Tensor]  # of every block in block.c's order, then those of the last norm
    eps: float  # of all norms
    states: Sequence[tuple[Tensor, Tensor]]  # of every block: conv [B, k-1, E] and h [B, E, N]


class Addresses:
    """Where tensors are, contiguous; it keeps what had to be copied for that."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(map(Tensor.contiguous, tensors))
        self.table = array("q", map(Tensor.data_ptr, self.tensors))

    @property
    def at(self) -> int:
        """The table's own address."""
        return self.table.buffer_info()[0]


class _Places:
    """The memory of one call to the stack: weights, state before, and state after."""

    def __init__(self, stack: Stack, batch: int) -> None:
        convs, hs = zip(*stack.states, strict=True)
        dtypes = {tensor.dtype for tensor in (*stack.weights, *convs, *hs)}
        if dtypes != {torch.float32} or not stack.weights[0].is_cpu:
            raise TypeError("a stack streams in float32 on the CPU; its weights or states are not")
        if any(len(state) != batch for state in (*convs, *hs)):
            raise ValueError(f"expected states of {batch} lanes, got {len(convs[0])}")
        self.weights, self.conv, self.h = map(Addresses, (stack.weights, convs, hs))
        (_, tail, channels), (_, _, states) = convs[0].shape, hs[0].shape
        weights, blocks = self.weights.tensors, len(stack.states)
        rank, hidden = weights[6].shape[1], weights[13].shape[0]
        self.sizes = channels, states, tail + 1, rank, hidden
        self.new_conv = weights[0].new_empty(blocks, batch, tail, channels)
        self.new_h = weights[0].new_empty(blocks, batch, channels, states)


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


def stack_step(x: Tensor, stack: Stack, normed: bool, read: int) -> tuple[Tensor, Tensor, Tensor]:
    """Continue a stack of residual blocks by x [B, n, D].

    `normed`: whether a norm follows the last block. Returns the outputs y [B, read, D] at the last
    `read` tokens, and the states after: conv [blocks, B, k-1, E], h [blocks, B, E, N]. Those before
    are left as they are.
    """
    batch, length, width = x.shape
    if stack.weights[0].shape != (width,):
        raise ValueError(f"expected tokens of width {len(stack.weights[0])}, got {width}")
    x, places = x.contiguous(), _Places(stack, batch)
    y = x.new_empty(batch, read, width)
    _call(
        "stack_step",
        *(x.data_ptr(), places.weights.at, stack.eps, places.conv.at, places.h.at),
        *(places.new_conv.data_ptr(), places.new_h.data_ptr(), y.data_ptr(), len(stack.states)),
        *(normed, batch, length, read, width, *places.sizes, threads()),
    )
    return y, places.new_conv, places.new_h


def policy_step(
    tokens: Sequence[Token],
    timesteps: Tensor,
    embedding: Embedding,
    stack: Stack,
    head: Sequence[Tensor],
    squashed: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`embed_step` (not bounded), `stack_step` and the head, weight [A, D] and bias, at the last
    token.

    Returns predictions [B, A], through tanh if `squashed`, and the states after.
    """
    time, norm, norm_bias, eps, _ = embedding
    batch, (times, width), outputs = len(timesteps), time.shape, len(head[1])
    places, fields = _Places(stack, batch), _Fields(tokens, batch)
    shared, ends = Addresses((timesteps, time, norm, norm_bias)), Addresses(head)
    y = time.new_empty(batch, outputs)
    policy = array("q", (fields.at, *shared.table))
    policy.extend((places.weights.at, places.conv.at, places.h.at))
    policy.extend((places.new_conv.data_ptr(), places.new_h.data_ptr(), *ends.table, y.data_ptr()))
    policy.extend((batch, len(tokens), times, width, len(stack.states), *places.sizes, outputs))
    policy.extend((squashed, threads()))
    _call("policy_step", policy.buffer_info()[0], eps, stack.eps)
    return y, places.new_conv, places.new_h


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
