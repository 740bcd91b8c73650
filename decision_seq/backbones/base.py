"""The backbone contract, its registry, and the residual stack that every mixer lives in.

A backbone maps tokens to tokens, causally, in two ways that agree: `forward` over a whole
sequence, and `step` over its next few tokens with a carried state. To add one, write a file with a
`Mixer`, a config with `make_mixer` (or, for another kind of block, `make_block`),
`@register(...)`, and import it in `__init__.py`: the contract tests find it in the registry.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from decision_seq.backbones.stack import InOneCall, Kernel, KernelCall
from decision_seq.errors import UserError
from decision_seq.ops.layers import Dropout

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

    kernel: ClassVar[Kernel | None] = None  # how C knows exactly this class

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D], output l depending on inputs <= l only."""

    def outputs(self, x: Tensor, read: slice) -> Tensor:
        """[B, L, D] -> [B, l, D]: what `forward` gives at the l tokens of `read`. A mixer that can
        leave out work for the others does."""
        return self(x)[:, read]

    @abstractmethod
    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """The state before the first token: all zeros, dimension 0 is the lane."""

    @abstractmethod
    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """The next n tokens [B, n, D] -> ([B, n, D], new state); `state` is left as it was."""

    def kernel_call(self, state: LayerState, lanes: int, tokens: int, remember: bool) -> KernelCall:
        """For a mixer with a kernel: what that takes for so many new tokens of each lane. Of a
        state that is not to be remembered it writes as little as it can."""
        return KernelCall(())

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


@dataclass(frozen=True)
class BackboneConfig(ABC):
    """Fields that every backbone has."""

    registry: ClassVar[dict[str, type[BackboneConfig]]] = {}
    kind: ClassVar[str]
    summary: ClassVar[str]  # one line for `decision-seq list backbones`

    width: int = 128  # D, features a token
    layers: int = 3  # blocks, each a mixer and an MLP
    dropout: float = 0.1  # after each mixer and MLP (attention: on its weights, too)

    def __post_init__(self) -> None:
        if self.width < 1 or self.layers < 1:
            raise UserError(f"width and layers must be at least 1, got {self.width}, {self.layers}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @abstractmethod
    def make_mixer(self, layout: Layout) -> Mixer:
        """One layer's mixer."""

    def make_block(self, layout: Layout, layer: int) -> Block:
        """Block number `layer`, from 0."""
        return Block(self.make_mixer(layout), self)

    def build(self, layout: Layout) -> Backbone:
        """The whole backbone."""
        return Backbone(self, layout)


class Block(nn.Module):
    """x + mixer(norm(x)), then x + MLP(norm(x)) of width 4D with GELU."""

    def __init__(self, mixer: Mixer, config: BackboneConfig) -> None:
        super().__init__()
        width = config.width
        self.norm_mixer = nn.LayerNorm(width)
        self.mixer = mixer
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = Dropout(config.dropout)
        for layer, shrink in ((self.mlp[0], 1.0), (self.mlp[2], math.sqrt(2 * config.layers))):
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.02 / shrink)
            nn.init.zeros_(layer.bias)
        self.in_one_call = InOneCall([self], None)

    def forward(self, x: Tensor, read: slice = EVERY) -> Tensor:
        """[B, L, D] -> [B, l, D], the outputs at the l tokens of `read` only."""
        x = self.dropout(self.mixer.outputs(self.norm_mixer(x), read), x[:, read])
        return self.dropout(self.mlp(self.norm_mlp(x)), x)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """The state before the first token: all zeros, dimension 0 is the lane."""
        return self.mixer.init_state(batch_size, device, dtype)

    def step(self, x: Tensor, state: LayerState, read: slice = EVERY) -> tuple[Tensor, LayerState]:
        """[B, n, D], state -> [B, l, D], state; the outputs at the l tokens of `read` only."""
        if (done := self.in_one_call.step(x, [state], read)) is not None:
            return done[0], done[1][0]
        mixed, state = self.mixer.step(self.norm_mixer(x), state)
        x = self.dropout(mixed[:, read], x[:, read])
        return self.dropout(self.mlp(self.norm_mlp(x)), x), state

    def penalty(self) -> Tensor | float:
        """What training adds to the loss on account of the weights."""
        return self.mixer.penalty()


class Backbone(nn.Module):
    """A stack of blocks and a final LayerNorm."""

    def __init__(self, config: BackboneConfig, layout: Layout) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            config.make_block(layout, layer) for layer in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.in_one_call = InOneCall(self.blocks, self.norm)  # type: ignore[arg-type]

    def forward(self, x: Tensor, read: slice = EVERY) -> Tensor:
        """[B, L, D] -> [B, l, D], causal: output l depends on inputs <= l only.

        Where only the l tokens of `read` are wanted, the last block computes no others.
        """
        if (y := self.in_one_call.forward(x, read)) is not None:
            return y
        *blocks, last = self._blocks()
        for block in blocks:
            x = block(x)
        return self.norm(last(x, read))

    def init_state(
        self,
        batch_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> State:
        """State of `batch_size` lanes before their first token."""
        device = torch.device(device)
        return [block.init_state(batch_size, device, dtype) for block in self._blocks()]

    def step(self, x: Tensor, state: State, read: slice = EVERY) -> tuple[Tensor, State]:
        """The next n tokens [B, n, D] of every lane; equals `forward` on the concatenation.

        Returns the outputs at the l tokens of `read` [B, l, D] and the new state.
        """
        if (done := self.in_one_call.step(x, state, read)) is not None:
            return done
        new_state = []
        *blocks, last = self._blocks()
        *layers, last_layer = state
        for block, layer in zip(blocks, layers, strict=True):
            x, layer = block.step(x, layer)
            new_state.append(layer)
        x, last_layer = last.step(x, last_layer, read)
        return self.norm(x), [*new_state, last_layer]

    def reset(self, state: State, lanes: Tensor) -> State:
        """`lanes` [B] bool: those as new, the others untouched."""
        return [{name: zero_lanes(t, lanes) for name, t in layer.items()} for layer in state]

    def penalty(self) -> Tensor | float:
        """What training adds to the loss on account of the weights."""
        return sum(block.penalty() for block in self._blocks())

    def _blocks(self) -> list[Block]:
        return list(self.blocks)  # type: ignore[arg-type]


def zero_lanes(tensor: Tensor, lanes: Tensor) -> Tensor:
    """A copy of `tensor` [B, ...] with zeros where `lanes` [B] is True."""
    return tensor.masked_fill(as_lanes(lanes, tensor), 0)


def as_lanes(lanes: Tensor, tensor: Tensor) -> Tensor:
    """`lanes` [B], shaped to broadcast with `tensor` [B, ...]."""
    return lanes.view(-1, *[1] * (tensor.ndim - 1))
