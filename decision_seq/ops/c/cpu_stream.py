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

from decision_seq.ops.c import build as native
from decision_seq.ops.c.cpu import threads

BAD_INDEX = 1  # as in stream.h
UP = 4  # as in block.c, the first weight of [hidden, D]


class Addresses:
    """Where tensors are, contiguous; it keeps what had to be copied for that."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(map(Tensor.contiguous, tensors))
        self.table = array("q", map(Tensor.data_ptr, self.tensors))

    @property
    def at(self) -> int:
        """The table's own address."""
        return self.table.buffer_info()[0]


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

    weights: Addresses  # of every layer in the order of block.c and mixers.c; of the norm
    eps: float  # of all norms
    layers: Sequence[Layer]
    normed: bool


class _Places(Addresses):
    """The layers of a stack as stream.h has them. C reads raw memory: that shapes and dtypes fit is
    for the caller to know (backbones/stack.py)."""

    def __init__(self, stack: Stack) -> None:
        self.tensors, self.table = [], array("q")
        self.hidden, offset = len(stack.weights.tensors[UP]), stack.weights.at
        for mixer, count, sizes, before, after in stack.layers:
            states = [tensor.contiguous() for tensor in before]
            self.tensors += states
            self.table.extend((MIXERS.index(mixer), offset, *_three(states), *_three(after)))
            self.table.extend((*sizes, *[0] * (4 - len(sizes))))
            offset += 8 * count
        self.norm = offset if stack.normed else 0


def _three(tensors: Sequence[Tensor]) -> list[int]:
    return [*map(Tensor.data_ptr, tensors), *[0] * (3 - len(tensors))]


def embed_step(tokens: Sequence[Token], timesteps: Tensor, embedding: Embedding) -> Tensor:
    """The tokens of one environment step at `timesteps` [B] int64: [B, len(tokens), D].

    Raises:
        ValueError: a value that does not fit its weight.
        IndexError: an index that the table does not have.
    """
    batch, (times, width) = len(timesteps), embedding.time.shape
    y, fields = embedding.time.new_empty(batch, len(tokens), width), _Fields(tokens, batch, width)
    shared, sizes = fields.shared(timesteps, embedding), (batch, len(tokens), width, times)
    _call("embed_step", fields.at, *shared, embedding.eps, y.data_ptr(), *sizes, embedding.bounded)
    return y


def stack_step(x: Tensor, stack: Stack, read: int) -> Tensor:
    """Continue a stack of residual blocks by x [B, n, D].

    Returns the outputs y [B, read, D] at the last `read` tokens, and fills in the states after.
    Those before are left as they are.
    """
    batch, length, width = x.shape
    if not (batch and 0 < read <= length):
        raise ValueError(f"expected lanes, tokens and some of them to read, got {x.shape}, {read}")
    x, places = x.contiguous(), _Places(stack)
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

    Returns predictions [B, A], through tanh if `squashed`, and fills in the states after. That
    weights and statistics fit is for the caller to know (agents/at_once.py).
    """
    batch, (times, width), outputs = len(timesteps), embedding.time.shape, len(head[1])
    places, fields = _Places(stack), _Fields(tokens, batch, width, known=True)
    ends, y = Addresses(head), embedding.time.new_empty(batch, outputs)
    policy = array("q", (fields.at, *fields.shared(timesteps, embedding), places.at, places.norm))
    policy.extend(ends.table)
    policy.extend((y.data_ptr(), batch, len(tokens), times, width, len(stack.layers)))
    policy.extend((places.hidden, outputs, squashed, threads()))
    _call("policy_step", policy.buffer_info()[0], embedding.eps, stack.eps)
    return y


class _Fields(Addresses):
    """Tokens as stream.h has them. C reads raw memory, so what does not fit must stop here, all but
    weights and statistics that are `known` to."""

    def __init__(
        self, tokens: Sequence[Token], batch: int, width: int, known: bool = False
    ) -> None:
        self.table, self.tensors = array("q"), []
        self.place = self.at_hand if known else self.checked
        for value, weight, bias, before, mean, std in tokens:
            of_table = bias is None
            rows, inputs = (len(weight), 0) if of_table else (0, weight.shape[1])
            kind = torch.int64 if of_table else torch.float32
            places = [
                self.checked(value, (batch,) if of_table else (batch, inputs), kind),
                self.place(weight, (rows, width) if of_table else (width, inputs)),
                0 if bias is None else self.place(bias, (width,)),
                *(inputs, rows, before),
                *(0 if t is None else self.place(t, (inputs,)) for t in (mean, std)),
            ]
            self.table.extend(places)

    def shared(self, timesteps: Tensor, embedding: Embedding) -> list[int]:
        """Where the timesteps are, and what the tokens have in common."""
        time, norm, norm_bias, *_ = embedding
        batch, width = len(timesteps), time.shape[1]
        return [
            self.place(timesteps, (batch,), torch.int64),
            self.place(time, (len(time), width)),
            self.place(norm, (width,)),
            self.place(norm_bias, (width,)),
        ]

    def at_hand(self, tensor: Tensor, *_: object) -> int:
        """Where it is."""
        self.tensors.append(tensor.contiguous())
        return self.tensors[-1].data_ptr()

    def checked(
        self, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> int:
        """The same, if it is what it is to be."""
        if tensor.shape != shape or tensor.dtype is not dtype or not tensor.is_cpu:
            raise ValueError(
                f"expected {dtype} {list(shape)} on the CPU, got {tensor.dtype} "
                f"{list(tensor.shape)} on {tensor.device}"
            )
        return self.at_hand(tensor)


def _call(name: str, *arguments: float) -> None:
    failed = getattr(native.library(), name)(*arguments)
    if failed == BAD_INDEX:
        raise IndexError("an action's index is beyond those that the agent knows")
    if failed:
        raise MemoryError(f"{name}: out of memory")
