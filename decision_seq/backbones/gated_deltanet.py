"""Gated DeltaNet: a memory that is corrected rather than added to, and decays (arXiv:2412.06464).

The layer is that of Qwen3-Next, whose names and shapes the parts have that both share.
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
from decision_seq.ops.linear_attention import CHUNK, advance, decay_between

DT_MIN, DT_MAX = 1e-3, 1e-1  # of softplus(dt_bias) at initialisation
A_MIN, A_MAX = 1.0, 16.0  # of -A at initialisation


@register("gated_deltanet", "delta rule with decay; cost L; streams with a constant-size state")
@dataclass(frozen=True)
class GatedDeltaNetConfig(BackboneConfig):
    """H heads, each with a matrix from keys of d_key to values of expand * width / H features."""

    heads: int = 4  # H
    d_key: int = 24  # 0.75 * width in all heads at width 128, the paper's share
    d_conv: int = 4  # kernel size of the causal convolution
    expand: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_1("d_key", "d_conv", "expand")
        if self.heads < 1 or self.expand * self.width % self.heads:
            channels = self.expand * self.width
            raise UserError(f"heads is {self.heads}; it must divide expand * width = {channels}")

    def make_mixer(self, layout: Layout) -> Mixer:
        return GatedDeltaNet(self)


class GatedDeltaNet(Mixer):
    """S_l = a_l S_{l-1} (1 - b_l k_l k_l^T) + b_l v_l k_l^T,  y_l = norm(S_l q_l) * silu(z_l).

    Before a token writes its value v under the key k, |k| = 1, it takes from the memory S what is
    there under that key, all of it where b = 1. The decay a_l = exp(dt_l A) is Mamba-2's.
    """

    def __init__(self, config: GatedDeltaNetConfig) -> None:
        super().__init__()
        self.heads, self.d_key = config.heads, config.d_key
        self.keys = config.heads * config.d_key  # in all heads
        self.channels = config.expand * config.width  # of the values, E
        mixed = 2 * self.keys + self.channels  # q, k and v pass through the convolution
        self.in_proj = nn.Linear(config.width, mixed + self.channels + 2 * self.heads, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, config.d_conv, groups=mixed, bias=False)
        low, high = math.log(DT_MIN), math.log(DT_MAX)
        dt = torch.empty(config.heads).uniform_(low, high).exp()
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        self.A_log = nn.Parameter(torch.empty(config.heads).uniform_(A_MIN, A_MAX).log())
        self.norm = nn.RMSNorm(self.channels // config.heads, eps=1e-6)
        self.out_proj = nn.Linear(self.channels, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]"""
        mixed, z, log_decay, beta = self._project(x)
        mixed = causal_conv_silu(mixed, self.conv1d.weight, self._no_bias())
        y, _ = gated_delta_rule(*self._split(mixed), log_decay, beta, None)
        return self._output(y, z)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """Last inputs of the convolution and the memory S, at least float32."""
        mixed, _, kernel_size = self.conv1d.weight.shape
        values, wide = self.channels // self.heads, torch.promote_types(dtype, torch.float32)
        return {
            "conv": torch.zeros(batch_size, kernel_size - 1, mixed, device=device, dtype=dtype),
            "S": torch.zeros(batch_size, self.heads, values, self.d_key, device=device, dtype=wide),
        }

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """[B, n, D], state -> [B, n, D], state"""
        mixed, z, log_decay, beta = self._project(x)
        mixed, conv = causal_conv_silu_step(
            mixed, self.conv1d.weight, self._no_bias(), state["conv"]
        )
        y, S = gated_delta_rule(*self._split(mixed), log_decay, beta, state["S"])
        assert S is not None
        return self._output(y, z), {"conv": conv, "S": S}

    @torch.no_grad()
    def token_map(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, H, L, L] float32: what each head's memory answers token l with of the
        value of token s, in absolute size, before norm and gate."""
        mixed, _, log_decay, beta = self._project(x)
        mixed = causal_conv_silu(mixed, self.conv1d.weight, self._no_bias())
        q, k, _ = self._split(mixed)
        with torch.autocast(x.device.type, enabled=False):
            decay = decay_between(log_decay)
            answers = (q @ k.transpose(-1, -2)).tril() * decay
            written = torch.diag_embed(beta)  # what is written of each value
            return (answers @ _corrected(k, decay, beta, written)).abs()

    @torch.no_grad()
    def memory_length(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, H] float32: tokens until what a head holds has decayed to 1/e, were
        every following token as this one, and if none of them overwrites it."""
        return -1 / self._project(x)[2].transpose(1, 2)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input of the convolution [B, L, 2 keys + E], gate z [B, L, E], and the logarithm of the
        decay and the strength b of writing, [B, H, L] each, float32."""
        mixed, z, dt, beta = self.in_proj(x).split(
            [2 * self.keys + self.channels, self.channels, self.heads, self.heads], dim=-1
        )
        wide = torch.promote_types(dt.dtype, torch.float32)
        log_decay = -self.A_log.exp() * F.softplus(dt.to(wide) + self.dt_bias)
        return mixed, z, log_decay.transpose(1, 2), beta.to(wide).sigmoid().transpose(1, 2)

    def _split(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q and k [B, H, L, d_key], of length 1 (q then divided by sqrt(d_key)), v [B, H, L, P]."""
        mixed = mixed.to(torch.promote_types(mixed.dtype, torch.float32))  # not in half precision
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in mixed.split([self.keys, self.keys, self.channels], dim=-1)
        )
        return unit(q) * self.d_key**-0.5, unit(k), v

    def _output(self, y: Tensor, z: Tensor) -> Tensor:
        """[B, H, L, P], gate [B, L, E] -> [B, L, D]"""
        y = self.norm(y.transpose(1, 2)).flatten(2)
        return self.out_proj(y * F.silu(z.to(y.dtype)))

    def _no_bias(self) -> Tensor:
        return self.conv1d.weight.new_zeros(len(self.conv1d.weight))


def unit(x: Tensor) -> Tensor:
    """Vectors along the last dimension, of length 1."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The recurrence of `GatedDeltaNet` by chunks (arXiv:2412.06464, section 3): within one, what
    the tokens write after each has taken away what others wrote is a triangular system.

    Args:
        q, k: [B, H, L, N].
        v: [B, H, L, P].
        log_decay, beta: [B, H, L].
        state: S before the first token, [B, H, P, N]; None is zeros, and says that the state after
            the last token is not wanted.

    Returns:
        y, [B, H, L, P], and the state after the last token or None.
    """
    outputs, keep = [], state is not None
    with torch.autocast(v.device.type, enabled=False):
        parts = (t.split(CHUNK, dim=2) for t in (q, k, v, log_decay, beta))
        remaining = v.shape[2]
        for q_, k_, v_, g_, b_ in zip(*parts, strict=True):
            remaining -= v_.shape[2]
            decay = decay_between(g_)
            since = g_.cumsum(-1).exp().unsqueeze(-1)  # decay since before the first token
            if state is not None:  # a value is written less what the memory has under its key
                v_ = v_ - since * (k_ @ state.transpose(-1, -2))
            written = _corrected(k_, decay, b_, v_ * b_.unsqueeze(-1))
            y = ((q_ @ k_.transpose(-1, -2)).tril() * decay) @ written
            if state is not None:
                y = y + since * (q_ @ state.transpose(-1, -2))
            if keep or remaining:
                state = advance(k_, written, g_, state)
            outputs.append(y)
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)), state


def _corrected(k: Tensor, decay: Tensor, beta: Tensor, values: Tensor) -> Tensor:
    """u [B, H, L, P] with u_l = values_l - b_l sum over s < l of (k_l . k_s) decay[l, s] u_s."""
    overlap = (k @ k.transpose(-1, -2)) * decay * beta.unsqueeze(-1)
    return torch.linalg.solve_triangular(overlap, values, upper=False, unitriangular=True)
