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

from decision_seq.backbones.block import BackboneConfig, Block
from decision_seq.backbones.contract import EVERY, LayerState, Layout, Mixer
from decision_seq.backbones.dense import DenseBlock
from decision_seq.config import register
from decision_seq.errors import UserError
from decision_seq.ops import (
    causal_conv_silu,
    causal_conv_silu_step,
    selective_scan,
    selective_scan_step,
)

# how a state starts: lowest and highest of softplus(dt_proj.bias), and what A = -1 .. -N is times
STARTS = {"mamba": (1e-3, 1e-1, 1.0), "long": (1e-2, 1.0, 1e-4)}


@register("mamba", "selective state space; cost L; streams with a constant-size state")
@dataclass(frozen=True)
class MambaConfig(BackboneConfig):
    """E = expand * width channels, each with d_state state variables."""

    d_state: int = 16  # N
    d_conv: int = 4  # k, kernel size of the causal convolution
    expand: int = 2
    # published: dt lost, as in Decision Mamba's code; long: states take in ten times as much and
    # forget over thousands of tokens, for train.stream
    init: Literal["mamba", "published", "long"] = "mamba"
    dense: int = 0  # tokens that a dense mixer before it takes together, as in Decision MetaMamba

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dense < 0:
            raise UserError(f"dense is {self.dense}; it must be at least 0, which leaves it out")
        self._at_least_1("d_state", "d_conv", "expand")

    def make_mixer(self, layout: Layout) -> Mixer:
        return Mamba(self)

    def make_block(self, layout: Layout, layer: int) -> Block:
        mixer = self.make_mixer(layout)
        return DenseBlock(mixer, self, self.dense) if self.dense else Block(mixer, self)


class Mamba(Mixer):
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,  y_t = (C_t h_t + D u_t) * silu(z_t).

    dt, B and C are read from the input u, itself a short causal convolution of the tokens.
    """

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        width, self.d_state, self.kernel_size = config.width, config.d_state, config.d_conv
        self.channels = channels = config.expand * width  # E
        self.dt_rank = math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.conv1d = nn.Conv1d(
            channels, channels, config.d_conv, groups=channels, padding=config.d_conv - 1
        )
        self.x_proj = nn.Linear(channels, self.dt_rank + 2 * self.d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, channels)
        dt_min, dt_max, scale = STARTS.get(config.init, STARTS["mamba"])
        decays = scale * torch.arange(1.0, self.d_state + 1)
        self.A_log = nn.Parameter(decays.log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self.out_proj = nn.Linear(channels, width, bias=False)
        self._init_dt(dt_min, dt_max)
        if config.init == "published":
            self._init_published()

    def forward(self, x: Tensor, output_slice: slice = EVERY) -> Tensor:
        """[B, L, D] -> [B, l, D], the outputs at the l tokens of `output_slice`"""
        _, gate = self._projections()
        z = F.linear(x[:, output_slice], gate)  # [B, l, E]
        u, dt, B, C = self._scan_inputs(x)
        if output_slice == EVERY:
            return self.out_proj(selective_scan(u, dt, self._A(), B, C, self.D, z))
        y = selective_scan(u, dt, self._A(), B, C, self.D)[:, output_slice]
        return self.out_proj(y * F.silu(z))

    def outputs(self, x: Tensor, output_slice: slice) -> Tensor:
        """The scan needs every token, its gate and projection do not."""
        return self(x, output_slice)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """Last k - 1 inputs of the convolution and the state h, always float32."""
        channels, _, kernel_size = self.conv1d.weight.shape
        return {
            "conv": torch.zeros(batch_size, kernel_size - 1, channels, device=device, dtype=dtype),
            "h": torch.zeros(batch_size, channels, self.d_state, device=device),  # [B, E, N]
        }

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """[B, n, D], state -> [B, n, D], state"""
        u, z = self.in_proj(x).chunk(2, dim=-1)  # [B, n, E]
        u, conv = causal_conv_silu_step(u, self.conv1d.weight, self._conv_bias, state["conv"])
        dt, B, C = self._select(u)
        y, h = selective_scan_step(u, dt, self._A(), B, C, self.D, z, state["h"])
        return self.out_proj(y), {"conv": conv, "h": h}

    @torch.no_grad()
    def token_map(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, 1, L, L] float32: the mean over channels of |alpha[l, s]|, what the
        state's output at token l takes from the input u of token s (`hidden_attention`), before
        skip and gate. (u itself is a convolution of the last k tokens; that reach is not in it.)"""
        _, dt, B, C = self._scan_inputs(x)
        rows = zip(dt.split(1), B.split(1), C.split(1), strict=True)  # [1, L, L, E] at a time
        sizes = [hidden_attention(*row, self._A()).abs().mean(-1) for row in rows]
        return torch.stack(sizes)

    @torch.no_grad()
    def memory_length(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, E] float32: tokens until the slowest of a channel's N states has
        decayed to 1/e, were every following token as this one: 1 / (dt * min over n of |A|)."""
        _, dt, _, _ = self._scan_inputs(x)
        return 1 / (dt * self._A().abs().amin(-1))

    def _projections(self) -> tuple[Tensor, ...]:
        """The halves of in_proj [E, D] each: one makes u, the other its gate z. As two products
        their gradients need not be joined."""
        return self.in_proj.weight.chunk(2)

    def _scan_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B, L, D] -> u [B, L, E], and what `_select` makes of it."""
        u = F.linear(x, self._projections()[0])
        u = causal_conv_silu(u, self.conv1d.weight, self._conv_bias)
        return u, *self._select(u)

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the input chooses: step size dt [B, L, E] > 0, B [B, L, N], C [B, L, N]."""
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        weight = self.dt_proj.weight.t().contiguous().t()  # its gradient is made faster by columns
        return F.softplus(F.linear(dt, weight, self.dt_proj.bias).float()), B, C

    @property
    def _conv_bias(self) -> Tensor:
        assert self.conv1d.bias is not None
        return self.conv1d.bias

    def _A(self) -> Tensor:
        return -torch.exp(self.A_log.float())  # [E, N]

    def _init_dt(self, least: float, most: float) -> None:
        """softplus(bias) log-uniform in [least, most]; 1 / (dt n) is how many tokens state variable
        n remembers (arXiv:2206.12037): by `mamba` tens to hundreds, by `long` thousands."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        low, high = math.log(least), math.log(most)
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


def hidden_attention(dt: Tensor, B: Tensor, C: Tensor, A: Tensor) -> Tensor:
    """The attention that a selective state space amounts to (arXiv:2403.01590), for every channel.

        alpha[l, s] = sum over n of C_{l,n} exp(A_n (dt_{s+1} + ... + dt_l)) dt_s B_{s,n}

    so that the scan's output is sum over s <= l of alpha[l, s] u_s + D u_l.

    Args:
        dt: step sizes, [B, L, E].
        B, C: input and output projections, [B, L, N].
        A: decay rates, negative, [E, N].

    Returns:
        alpha, [B, L, L, E], zero where s > l.
    """
    total = dt.double().cumsum(1)  # differences of it are exact enough in double
    passed = (total.unsqueeze(2) - total.unsqueeze(1)).clamp(min=0).to(dt.dtype)  # [B, L, L, E]
    products = (C.unsqueeze(2) * B.unsqueeze(1)).to(dt.dtype)  # [B, L, L, N]
    alpha = torch.zeros_like(passed)
    for n in range(A.shape[1]):  # N tensors of [B, L, L, E] at once would not fit
        alpha += (passed * A[:, n]).exp_() * products[..., n, None]
    seen = torch.ones(dt.shape[1], dt.shape[1], device=dt.device, dtype=torch.bool).tril()
    return alpha * dt.unsqueeze(1) * seen.unsqueeze(-1)
