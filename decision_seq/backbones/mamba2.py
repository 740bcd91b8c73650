"""Mamba-2: a selective state space whose scan is a masked matrix product (arXiv:2405.21060).

Parameter names, shapes and initialisation are those of `mamba_ssm.Mamba2` with one group, so
weights move between that package, transformers' Mamba2Model and this one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.backbones.block import BackboneConfig
from decision_seq.backbones.contract import LayerState, Layout, Mixer
from decision_seq.config import register
from decision_seq.errors import UserError
from decision_seq.ops import causal_conv_silu, causal_conv_silu_step
from decision_seq.ops.linear_attention import influence, linear_attention

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4  # of softplus(dt_bias) at initialisation
A_MIN, A_MAX = 1.0, 16.0  # of -A at initialisation


@register(
    "mamba2", "selective state space by matrix products; cost L; streams with a constant-size state"
)
@dataclass(frozen=True)
class Mamba2Config(BackboneConfig):
    """E = expand * width channels in H heads of P = E / H, each channel with d_state variables."""

    d_state: int = 64  # N; mamba_ssm has 128, and with 64 a layer is as large as one of Mamba
    d_conv: int = 4  # k, kernel size of the causal convolution
    expand: int = 2
    heads: int = 4  # H; mamba_ssm fixes P = 64 instead, which is this at width 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_1("d_state", "d_conv", "expand")
        if self.heads < 1 or self.expand * self.width % self.heads:
            channels = self.expand * self.width
            raise UserError(f"heads is {self.heads}; it must divide expand * width = {channels}")

    def make_mixer(self, layout: Layout) -> Mixer:
        return Mamba2(self)


class Mamba2(Mixer):
    """h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t^T,  y_t = norm((h_t C_t + D u_t) * silu(z_t)).

    As in Mamba, but dt and A are one number a head, and B and C come from the tokens directly. So
    each head's output is y = M u, where M[l, s] = C_l . B_s exp(A (dt_{s+1} + ... + dt_l)) dt_s.
    """

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.heads, self.d_state = config.heads, config.d_state
        self.channels = config.expand * config.width  # E
        mixed = self.channels + 2 * config.d_state  # u, B and C pass through the convolution
        self.in_proj = nn.Linear(config.width, self.channels + mixed + config.heads, bias=False)
        self.conv1d = nn.Conv1d(
            mixed, mixed, config.d_conv, groups=mixed, padding=config.d_conv - 1
        )
        low, high = math.log(DT_MIN), math.log(DT_MAX)
        dt = torch.empty(config.heads).uniform_(low, high).exp().clamp(min=DT_FLOOR)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        self.A_log = nn.Parameter(torch.empty(config.heads).uniform_(A_MIN, A_MAX).log())
        self.D = nn.Parameter(torch.ones(config.heads))
        self.norm = GatedRMSNorm(self.channels, eps=1e-5)
        self.out_proj = nn.Linear(self.channels, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]"""
        z, mixed, dt = self._project(x)
        u, B, C = self._split(causal_conv_silu(mixed, self.conv1d.weight, self._conv_bias))
        y, _ = ssd(u, dt, self._A(), B, C, None)
        return self._output(y, u, z)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """Last k - 1 inputs of the convolution and the state h, at least float32."""
        mixed, _, kernel_size = self.conv1d.weight.shape
        shape = (batch_size, self.heads, self.channels // self.heads, self.d_state)
        wide = torch.promote_types(dtype, torch.float32)
        return {
            "conv": torch.zeros(batch_size, kernel_size - 1, mixed, device=device, dtype=dtype),
            "h": torch.zeros(shape, device=device, dtype=wide),
        }

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """[B, n, D], state -> [B, n, D], state"""
        z, mixed, dt = self._project(x)
        mixed, conv = causal_conv_silu_step(
            mixed, self.conv1d.weight, self._conv_bias, state["conv"]
        )
        u, B, C = self._split(mixed)
        y, h = ssd(u, dt, self._A(), B, C, state["h"])
        assert h is not None
        return self._output(y, u, z), {"conv": conv, "h": h}

    @torch.no_grad()
    def token_map(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, H, L, L] float32: |M|, what each head's output at token l takes from the
        input u of token s, before skip, gate and norm. (u itself is a convolution of the last k
        tokens; that reach is not in M.)"""
        _, mixed, dt = self._project(x)
        _, B, C = self._split(causal_conv_silu(mixed, self.conv1d.weight, self._conv_bias))
        with torch.autocast(x.device.type, enabled=False):
            M = influence(C.unsqueeze(1), B.unsqueeze(1), (dt * self._A()).transpose(1, 2))
            return (M * dt.transpose(1, 2).unsqueeze(-2)).abs()

    @torch.no_grad()
    def memory_length(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, H] float32: tokens until a head's state has decayed to 1/e, were
        every following token as this one: 1 / (dt |A|)."""
        _, _, dt = self._project(x)
        return -1 / (dt * self._A())

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gate z [B, L, E], input of the convolution [B, L, E + 2N], step size dt [B, L, H] > 0."""
        z, mixed, dt = self.in_proj(x).split(
            [self.channels, self.channels + 2 * self.d_state, self.heads], dim=-1
        )
        return z, mixed, F.softplus(dt.float() + self.dt_bias.float())

    def _split(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u [B, L, H, P], B [B, L, N], C [B, L, N]."""
        mixed = mixed.to(torch.promote_types(mixed.dtype, torch.float32))  # not in half precision
        u, B, C = mixed.split([self.channels, self.d_state, self.d_state], dim=-1)
        return u.unflatten(-1, (self.heads, -1)), B, C

    def _output(self, y: Tensor, u: Tensor, z: Tensor) -> Tensor:
        y = torch.addcmul(y, u, self.D.float().unsqueeze(-1)).flatten(2)  # [B, L, E]
        return self.out_proj(self.norm(y, z))

    @property
    def _conv_bias(self) -> Tensor:
        assert self.conv1d.bias is not None
        return self.conv1d.bias

    def _A(self) -> Tensor:
        return -torch.exp(self.A_log.float())  # [H]


class GatedRMSNorm(nn.RMSNorm):
    """weight * v / rms(v) of the gated v = y * silu(z), in float32."""

    def forward(self, y: Tensor, z: Tensor) -> Tensor:  # type: ignore[override]
        """[B, L, E], [B, L, E] -> [B, L, E]"""
        return super().forward(y * F.silu(z.float()))


def ssd(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The state space dual (arXiv:2405.21060, section 6), in float32 also under autocast.

    Args:
        u: input, [B, L, H, P].
        dt: step sizes, positive, [B, L, H].
        A: decay rates, negative, [H].
        B, C: input and output projections, [B, L, N].
        state: h before the first token, [B, H, P, N]; None is zeros, and says that the state after
            the last token is not wanted.

    Returns:
        y without skip, [B, L, H, P], and the state after the last token or None.
    """
    v = (u * dt.unsqueeze(-1)).transpose(1, 2)  # [B, H, L, P]
    log_decay = (dt * A).transpose(1, 2)  # [B, H, L]
    y, state = linear_attention(C.unsqueeze(1), B.unsqueeze(1), v, log_decay, state)
    return y.transpose(1, 2), state
