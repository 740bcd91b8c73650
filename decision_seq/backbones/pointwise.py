"""No mixing along time: what an agent can do without memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decision_seq.backbones.block import BackboneConfig
from decision_seq.backbones.contract import LayerState, Layout, Mixer
from decision_seq.config import register


@register("pointwise", "each token alone, no mixing along time; cost L; no state", formerly="none")
@dataclass(frozen=True)
class PointwiseConfig(BackboneConfig):
    """A residual MLP on every token by itself: the baseline that asks what memory buys."""

    def make_mixer(self, layout: Layout) -> Mixer:
        return Pointwise(self)


class Pointwise(Mixer):
    """y_l = W x_l + b: attention that sees only itself."""

    def __init__(self, config: PointwiseConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]"""
        return self.linear(x)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """Nothing."""
        return {}

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """[B, n, D] -> [B, n, D]"""
        return self.linear(x), state
