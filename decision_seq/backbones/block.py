"""The residual stack that every mixer lives in, and the registry of its configs.

To add a backbone, write a file with a `Mixer`, a config with `make_mixer` (or, for another kind of
block, `make_block`), `@register(...)`, and import it in `__init__.py`: the contract tests find it
in the registry.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from decision_seq.backbones.contract import EVERY, LayerState, Layout, Mixer, State, zero_lanes
from decision_seq.errors import UserError
from decision_seq.ops.layers import Dropout


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

    def forward(self, x: Tensor, output_slice: slice = EVERY) -> Tensor:
        """[B, L, D] -> [B, l, D], the outputs at the l tokens of `output_slice` only."""
        x = self.dropout(self.mixer.outputs(self.norm_mixer(x), output_slice), x[:, output_slice])
        return self.dropout(self.mlp(self.norm_mlp(x)), x)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """The state before the first token: all zeros, dimension 0 is the lane."""
        return self.mixer.init_state(batch_size, device, dtype)

    def step(
        self, x: Tensor, state: LayerState, output_slice: slice = EVERY
    ) -> tuple[Tensor, LayerState]:
        """[B, n, D], state -> [B, l, D], state; the outputs at the l tokens of the slice."""
        mixed, state = self.mixer.step(self.norm_mixer(x), state)
        x = self.dropout(mixed[:, output_slice], x[:, output_slice])
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

    def forward(self, x: Tensor, output_slice: slice = EVERY) -> Tensor:
        """[B, L, D] -> [B, l, D], causal: output l depends on inputs <= l only.

        Where only the l tokens of `output_slice` are wanted, the last block computes no others.
        """
        *blocks, last = self._blocks()
        for block in blocks:
            x = block(x)
        return self.norm(last(x, output_slice))

    def init_state(
        self,
        batch_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> State:
        """State of `batch_size` lanes before their first token."""
        device = torch.device(device)
        return [block.init_state(batch_size, device, dtype) for block in self._blocks()]

    def step(self, x: Tensor, state: State, output_slice: slice = EVERY) -> tuple[Tensor, State]:
        """The next n tokens [B, n, D] of every lane; equals `forward` on the concatenation.

        Returns the outputs at the l tokens of `output_slice` [B, l, D] and the new state.
        """
        new_state = []
        *blocks, last = self._blocks()
        *layers, last_layer = state
        for block, layer in zip(blocks, layers, strict=True):
            x, layer = block.step(x, layer)
            new_state.append(layer)
        x, last_layer = last.step(x, last_layer, output_slice)
        return self.norm(x), [*new_state, last_layer]

    def reset(self, state: State, lanes: Tensor) -> State:
        """`lanes` [B] bool: those as new, the others untouched."""
        return [{name: zero_lanes(t, lanes) for name, t in layer.items()} for layer in state]

    def penalty(self) -> Tensor | float:
        """What training adds to the loss on account of the weights."""
        return sum(block.penalty() for block in self._blocks())

    def _blocks(self) -> list[Block]:
        return list(self.blocks)  # type: ignore[arg-type]


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
        self._at_least_1("width", "layers")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    def _at_least_1(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @abstractmethod
    def make_mixer(self, layout: Layout) -> Mixer:
        """One layer's mixer."""

    def make_block(self, layout: Layout, layer: int) -> Block:
        """Block number `layer`, from 0."""
        return Block(self.make_mixer(layout), self)

    def build(self, layout: Layout) -> Backbone:
        """The whole backbone."""
        return Backbone(self, layout)
