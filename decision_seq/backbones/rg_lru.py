"""The real-gated linear recurrent unit of Griffin and Hawk (arXiv:2402.19427), in Hawk's block.

Of the two simplest gated linear recurrences it is the one that remembers before it has learned to:
its decay begins between 0.9 and 0.999 a token, that of minGRU (arXiv:2410.01201) near 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.backbones.block import BackboneConfig
from decision_seq.backbones.contract import EVERY, LayerState, Layout, Mixer
from decision_seq.backbones.mamba import hidden_attention
from decision_seq.config import register
from decision_seq.errors import UserError
from decision_seq.ops import selective_scan, selective_scan_step
from decision_seq.ops.layers import causal_filter

DECAY_MIN, DECAY_MAX = 0.9, 0.999  # of a at initialisation, were every gate open
STRENGTH = 8.0  # c, how much further than that a gate can turn the decay
SLOWEST = 1e-6  # least -log a; the slope of sqrt(1 - a^2) has no bound at a = 1


@register("rg_lru", "gated linear recurrence; cost L; streams with two vectors a layer")
@dataclass(frozen=True)
class RGLRUConfig(BackboneConfig):
    """E = expand * width channels with one state variable each; gates mix within blocks of them."""

    d_conv: int = 4  # k, kernel size of the causal convolution
    expand: int = 2
    gate_blocks: int = 8  # H, matrices of E / H by E / H on the diagonal of a gate's weight

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_1("d_conv", "expand")
        if self.gate_blocks < 1 or self.expand * self.width % self.gate_blocks:
            raise UserError(
                f"gate_blocks is {self.gate_blocks}; it must divide expand * width = "
                f"{self.expand * self.width}"
            )

    def make_mixer(self, layout: Layout) -> Mixer:
        return RGLRU(self)


class RGLRU(Mixer):
    """h_l = a_l h_{l-1} + sqrt(1 - a_l^2) (i_l u_l),  y_l = h_l gelu(z_l),
    a_l = exp(-c softplus(Lambda) r_l), gates r and i sigmoids of u, a short causal convolution.

    It is a selective scan with one state variable, A = -1 and dt = -log a, and runs as one.
    """

    def __init__(self, config: RGLRUConfig) -> None:
        super().__init__()
        channels = config.expand * config.width  # E
        blocks, size = config.gate_blocks, channels // config.gate_blocks
        self.in_proj = nn.Linear(config.width, 2 * channels)
        self.filter = nn.Parameter(torch.empty(1, config.d_conv, channels))  # tap 0 is the token
        self.filter_bias = nn.Parameter(torch.zeros(1, channels))
        self.gates = nn.Parameter(torch.empty(2, blocks, size, size))  # r and i, [out, in]
        self.gate_bias = nn.Parameter(torch.zeros(2, channels))
        square = torch.empty(channels).uniform_(DECAY_MIN**2, DECAY_MAX**2)
        rate = -square.log() / (2 * STRENGTH)
        self.Lambda = nn.Parameter(torch.log(torch.expm1(rate)))  # inverse of softplus
        self.out_proj = nn.Linear(channels, config.width)
        nn.init.normal_(self.gates, std=size**-0.5)
        nn.init.uniform_(self.filter, -(config.d_conv**-0.5), config.d_conv**-0.5)

    def forward(self, x: Tensor, output_slice: slice = EVERY) -> Tensor:
        """[B, L, D] -> [B, l, D], the outputs at the l tokens of `output_slice`"""
        u = F.linear(x, *self._half(0))
        u = self._filter(F.pad(u, (0, 0, self.filter.shape[1] - 1, 0)))
        y = selective_scan(*self._scan_inputs(u))[:, output_slice]
        return self._output(y, x[:, output_slice])

    def outputs(self, x: Tensor, output_slice: slice) -> Tensor:
        """The scan needs every token, its gate and projection do not."""
        return self(x, output_slice)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """Last k - 1 inputs of the convolution and the state h, at least float32."""
        _, kernel_size, channels = self.filter.shape
        wide = torch.promote_types(dtype, torch.float32)
        return {
            "conv": torch.zeros(batch_size, kernel_size - 1, channels, device=device, dtype=dtype),
            "h": torch.zeros(batch_size, channels, 1, device=device, dtype=wide),
        }

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """[B, n, D], state -> [B, n, D], state"""
        u = F.linear(x, *self._half(0))
        seen = torch.cat([state["conv"], u.to(state["conv"].dtype)], dim=1)
        scaled, dt, A, B, C, D = self._scan_inputs(self._filter(seen))
        y, h = selective_scan_step(scaled, dt, A, B, C, D, None, state["h"])
        return self._output(y, x), {"conv": seen[:, x.shape[1] :], "h": h}

    @torch.no_grad()
    def token_map(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, 1, L, L] float32: the mean over channels of what the state at token l
        takes from the input u of token s, before the gate. (u itself is a convolution of the last
        k tokens; that reach is not in it.)"""
        u = F.linear(x, *self._half(0))
        u = self._filter(F.pad(u, (0, 0, self.filter.shape[1] - 1, 0)))
        scaled, dt, A, B, C, _ = self._scan_inputs(u)
        gain = torch.where(u == 0, 0, scaled / u).unsqueeze(1)  # [B, 1, L, E]
        return (hidden_attention(dt, B, C, A) * gain).abs().mean(-1).unsqueeze(1)

    @torch.no_grad()
    def memory_length(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, E] float32: tokens until a channel's state has decayed to 1/e, were
        every following token as this one: -1 / log a."""
        u = F.linear(x, *self._half(0))
        return 1 / self._scan_inputs(self._filter(F.pad(u, (0, 0, self.filter.shape[1] - 1, 0))))[1]

    def _half(self, number: int) -> tuple[Tensor, Tensor]:
        """Weight [E, D] and bias [E] of in_proj that make u, 0, or its gate z, 1."""
        return self.in_proj.weight.chunk(2)[number], self.in_proj.bias.chunk(2)[number]

    def _filter(self, seen: Tensor) -> Tensor:
        """[B, k - 1 + L, E] -> u [B, L, E], at least float32"""
        wide = torch.promote_types(seen.dtype, self.filter.dtype)
        return causal_filter(seen.to(wide), self.filter, self.filter_bias)

    def _scan_inputs(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """u [B, L, E] -> what a selective scan takes for h: its input, dt, A, B, C and D."""
        blocks = u.unflatten(-1, (self.gates.shape[1], -1))  # [B, L, H, E / H]
        recurrent, enter = (
            (torch.einsum("blhi,hoi->blho", blocks, weight).flatten(2).to(u.dtype) + bias).sigmoid()
            for weight, bias in zip(self.gates, self.gate_bias, strict=True)
        )
        dt = (STRENGTH * F.softplus(self.Lambda) * recurrent).clamp(min=SLOWEST)
        scaled = u * enter * (-torch.expm1(-2 * dt)).sqrt() / dt
        one = dt.new_ones(*dt.shape[:2], 1)
        return scaled, dt, -dt.new_ones(dt.shape[2], 1), one, one, dt.new_zeros(dt.shape[2])

    def _output(self, y: Tensor, x: Tensor) -> Tensor:
        """States [B, l, E] of tokens [B, l, D] -> [B, l, D]"""
        return self.out_proj(y * F.gelu(F.linear(x, *self._half(1))))
