"""Causal filters, one set for each kind of token, the backbone of Decision ConvFormer
(arXiv:2310.03022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.backbones.block import BackboneConfig
from decision_seq.backbones.contract import LayerState, Layout, Mixer
from decision_seq.config import register
from decision_seq.errors import UserError
from decision_seq.ops.layers import causal_filter


@register("conv", "causal filters by kind of token; cost L; streams with the last few tokens")
@dataclass(frozen=True)
class ConvConfig(BackboneConfig):
    """A layer sees `kernel_size` tokens; all layers together, layers * (kernel_size - 1) + 1."""

    former_fields: ClassVar[dict[str, str]] = {"taps": "kernel_size"}

    kernel_size: int = 6  # W, the paper's value: two steps of (return, state, action)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_size < 1:
            raise UserError(f"kernel_size is {self.kernel_size}; it must be at least 1")

    def make_mixer(self, layout: Layout) -> Mixer:
        return KindConv(self, layout.tokens_per_step)


class KindConv(Mixer):
    """y_l = b[kind(l)] + sum over k < W of w[kind(l), k] * x_{l-k}, each channel by itself.

    kind(l) = l mod T is what the token at the output is (return, state or action), so that a state
    weighs what came before it otherwise than an action does. Tokens before the first are zeros.
    """

    def __init__(self, config: ConvConfig, tokens_per_step: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens_per_step, config.kernel_size, config.width))
        self.bias = nn.Parameter(torch.empty(tokens_per_step, config.width))
        for parameter in (self.weight, self.bias):  # as nn.Conv1d does for one input channel
            nn.init.uniform_(parameter, -(config.kernel_size**-0.5), config.kernel_size**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]"""
        position = torch.arange(x.shape[1], device=x.device)
        return self._filter(F.pad(x, (0, 0, self.weight.shape[1] - 1, 0)), position)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """The last W - 1 tokens, and how many have passed: lanes may have begun at different
        times, and their next token is then of different kinds."""
        _, kernel_size, width = self.weight.shape
        return {
            "last": torch.zeros(batch_size, kernel_size - 1, width, device=device, dtype=dtype),
            "count": torch.zeros(batch_size, device=device, dtype=torch.int64),
        }

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """[B, n, D], state -> [B, n, D], state"""
        n = x.shape[1]
        seen = torch.cat([state["last"], x], dim=1)  # [B, W - 1 + n, D]
        position = state["count"][:, None] + torch.arange(n, device=x.device)  # [B, n]
        new_state = {"last": seen[:, n:], "count": state["count"] + n}
        return self._filter(seen, position), new_state

    def token_map(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, 1, L, L]: mean over channels of |w[kind(l), l - s]|."""
        kinds, kernel_size, _ = self.weight.shape
        position = torch.arange(x.shape[1], device=x.device)
        back = position[:, None] - position  # [L, L], l - s
        size = F.pad(self.weight.detach().abs().mean(-1), (0, 1))  # [T, W + 1], zero beyond
        back = back.masked_fill((back < 0) | (back >= kernel_size), kernel_size)
        return size[(position % kinds)[:, None], back].expand(x.shape[0], 1, -1, -1)

    def _filter(self, seen: Tensor, position: Tensor) -> Tensor:
        """Inputs from W - 1 before the first output on, [B, W - 1 + L, D], and the positions of
        the outputs, [L] or [B, L] -> [B, L, D]."""
        kind = position % self.weight.shape[0]
        return causal_filter(seen, self.weight[kind], self.bias[kind])
