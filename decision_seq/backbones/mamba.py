"""Mamba's selective state space (arXiv:2312.00752), the backbone of Decision Mamba
(arXiv:2403.19925).

Parameter names, shapes and initialisation are those of `mamba_ssm.Mamba`, so weights move between
that package, transformers' MambaModel and this one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.backbones.base import BackboneConfig, LayerState, Layout, Mixer, register
from decision_seq.errors import UserError
from decision_seq.ops import (
    causal_conv_silu,
    causal_conv_silu_step,
    selective_scan,
    selective_scan_step,
)

DT_MIN, DT_MAX = 1e-3, 1e-1  # range of softplus(dt_proj.bias) at initialisation


@register("mamba", "selective state space; cost L; streams with a constant-size state")
@dataclass(frozen=True)
class MambaConfig(BackboneConfig):
    """E = expand * width channels, each with d_state state variables."""

    d_state: int = 16  # N
    d_conv: int = 4  # k, taps of the causal convolution
    expand: int = 2
    init: Literal["mamba", "published"] = "mamba"  # published: dt lost, as in Decision Mamba's code

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.d_state, self.d_conv, self.expand) < 1:
            raise UserError("d_state, d_conv and expand must be at least 1")

    def make_mixer(self, layout: Layout) -> Mixer:
        return Mamba(self)


class Mamba(Mixer):
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,  y_t = (C_t h_t + D u_t) * silu(z_t).

    dt, B and C are read from the input u, itself a short causal convolution of the tokens.
    """

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        width, self.d_state = config.width, config.d_state
        channels = config.expand * width  # E
        self.dt_rank = math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.conv1d = nn.Conv1d(
            channels, channels, config.d_conv, groups=channels, padding=config.d_conv - 1
        )
        self.x_proj = nn.Linear(channels, self.dt_rank + 2 * self.d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, channels)
        self.A_log = nn.Parameter(torch.arange(1.0, self.d_state + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self.out_proj = nn.Linear(channels, width, bias=False)
        self._init_dt()
        if config.init == "published":
            self._init_published()

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]"""
        u, z = self.in_proj(x).chunk(2, dim=-1)  # [B, L, E]
        u = causal_conv_silu(u, self.conv1d.weight, self._conv_bias)
        dt, B, C = self._select(u)
        y = selective_scan(u, dt, self._A(), B, C, self.D, z)
        return self.out_proj(y)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """Last k - 1 inputs of the convolution and the state h, always float32."""
        channels, _, taps = self.conv1d.weight.shape
        return {
            "conv": torch.zeros(batch_size, taps - 1, channels, device=device, dtype=dtype),
            "h": torch.zeros(batch_size, channels, self.d_state, device=device),  # [B, E, N]
        }

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """[B, n, D], state -> [B, n, D], state"""
        u, z = self.in_proj(x).chunk(2, dim=-1)  # [B, n, E]
        u, conv = causal_conv_silu_step(u, self.conv1d.weight, self._conv_bias, state["conv"])
        dt, B, C = self._select(u)
        y, h = selective_scan_step(u, dt, self._A(), B, C, self.D, z, state["h"])
        return self.out_proj(y), {"conv": conv, "h": h}

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the input chooses: step size dt [B, L, E] > 0, B [B, L, N], C [B, L, N]."""
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return F.softplus(self.dt_proj(dt).float()), B, C

    @property
    def _conv_bias(self) -> Tensor:
        assert self.conv1d.bias is not None
        return self.conv1d.bias

    def _A(self) -> Tensor:
        return -torch.exp(self.A_log.float())  # [E, N]

    def _init_dt(self) -> None:
        """softplus(bias) log-uniform in [DT_MIN, DT_MAX]: memory of tens to hundreds of tokens."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        low, high = math.log(DT_MIN), math.log(DT_MAX)
        dt = torch.empty_like(self.dt_proj.bias).uniform_(low, high).exp()
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus

    def _init_published(self) -> None:
        """What Decision Mamba's code does after building the block: every linear layer N(0, 0.02)
        with zero bias, so that softplus(dt bias) = 0.693 and the state forgets within a step."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
