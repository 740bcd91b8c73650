"""The contract of what mixes information along time.

A backbone maps tokens to tokens, causally, in two ways that agree: `forward` over a whole
sequence, and `step` over its next few tokens with a carried state. B lanes, L tokens, D = width:

    forward(x: [B, L, D]) -> [B, L, D]        output l depends on inputs <= l only
    init_state(B, device, dtype) -> State     all zeros = new
    step(x: [B, n, D], state) -> (y: [B, n, D], state)   equals forward on the concatenated tokens
    reset(state, lanes: bool [B]) -> State    those lanes as new, the others untouched
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LayerState = dict[str, Tensor]  # dimension 0 of every tensor is the lane; all zeros = new
State = list[LayerState]  # one entry a layer
EVERY = slice(None)
LAST = slice(-1, None)


@dataclass(frozen=True)
class Layout:
    """How environment steps become tokens: token l belongs to step l // T, and is its l % T th."""

    context_length: int  # K, environment steps a window
    tokens_per_step: int = 1  # T

    @property
    def context_tokens(self) -> int:
        """Tokens a window; it bounds how far back a sliding window looks."""
        return self.context_length * self.tokens_per_step


class Mixer(nn.Module, ABC):
    """The part of a block that sees other tokens. D = width."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D], output l depending on inputs <= l only."""

    def outputs(self, x: Tensor, output_slice: slice) -> Tensor:
        """[B, L, D] -> [B, l, D]: what `forward` gives at the l tokens of the slice. A mixer that
        can leave out work for the others does."""
        return self(x)[:, output_slice]

    @abstractmethod
    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """The state before the first token: all zeros, dimension 0 is the lane."""

    @abstractmethod
    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """The next n tokens [B, n, D] -> ([B, n, D], new state); `state` is left as it was."""

    def penalty(self) -> Tensor | float:
        """What training adds to the loss on account of the weights; most mixers add nothing."""
        return 0.0

    def token_map(self, x: Tensor) -> Tensor | None:
        """[B, L, D] -> [B, H, L, L]: how much each of H heads (or groups of channels) of token l
        takes from token s, row l, column s. None where the mixer has no such matrix."""
        return None

    def memory_length(self, x: Tensor) -> Tensor | None:
        """[B, L, D] -> [B, L, channels]: tokens until a channel's state has decayed to 1/e. None
        where the mixer has no state with a rate of decay."""
        return None


def zero_lanes(tensor: Tensor, lanes: Tensor) -> Tensor:
    """A copy of `tensor` [B, ...] with zeros where `lanes` [B] is True."""
    return tensor.masked_fill(as_lanes(lanes, tensor), 0)


def as_lanes(lanes: Tensor, tensor: Tensor) -> Tensor:
    """`lanes` [B], shaped to broadcast with `tensor` [B, ...]."""
    return lanes.view(-1, *[1] * (tensor.ndim - 1))
