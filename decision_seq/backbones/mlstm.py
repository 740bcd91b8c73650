"""The mLSTM of xLSTM: a matrix memory with exponential input gates (arXiv:2405.04517).

The layer is that of xLSTM-7B (arXiv:2503.13427): no convolution, gates with a soft cap, and the
block's own MLP after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.backbones.block import BackboneConfig
from decision_seq.backbones.contract import LayerState, Layout, Mixer
from decision_seq.config import register
from decision_seq.errors import UserError
from decision_seq.ops.linear_attention import influence, linear_attention

CAP = 15.0  # of both gates before their activation; exp(15) is far from what float32 cannot hold


@register("mlstm", "matrix memory of xLSTM; cost L; streams with a constant-size state")
@dataclass(frozen=True)
class MLSTMConfig(BackboneConfig):
    """H heads, each with a matrix from keys of width / 2H to values of width / H features."""

    heads: int = (
        2  # H, of 64 values at width 128; their norm has too little to average in small ones
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads < 1 or self.width % (2 * self.heads):
            raise UserError(f"heads is {self.heads}; twice that must divide width {self.width}")

    def make_mixer(self, layout: Layout) -> Mixer:
        return MLSTM(self)


class MLSTM(Mixer):
    """C_l = f_l C_{l-1} + i_l v_l k_l^T,  n_l = f_l n_{l-1} + i_l k_l,
    y_l = norm(C_l q_l / max(|n_l . q_l|, 1)) * o_l, i = exp(...), f and o sigmoids.

    The paper divides C and n by a running maximum, so that exp does not overflow. With capped gates
    it cannot, and floating-point numbers keep their relative precision at any scale.
    """

    def __init__(self, config: MLSTMConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.qkv = nn.Linear(width, 2 * width, bias=False)  # D / 2, D / 2 and D
        self.gates = nn.Linear(width, 2 * config.heads)  # input gates, then forget gates
        self.ogate = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width // config.heads, eps=1e-6, elementwise_affine=False)
        self.scale = nn.Parameter(torch.ones(width))  # of the norm, each head has its own
        self.out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():  # as published: forget gates that remember 20 to 400 tokens
            self.gates.bias[: config.heads].normal_(std=0.1)
            self.gates.bias[config.heads :] = torch.linspace(3, 6, config.heads)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]"""
        q, k, v, log_forget = self._project(x)
        y, _ = linear_attention(q, k, v, log_forget, None)
        return self._output(y, x)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """The memory C, with n as its last row, at least float32."""
        values = len(self.scale) // self.heads
        shape = (batch_size, self.heads, values + 1, values // 2)
        wide = torch.promote_types(dtype, torch.float32)
        return {"C": torch.zeros(shape, device=device, dtype=wide)}

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """[B, n, D], state -> [B, n, D], state"""
        y, C = linear_attention(*self._project(x), state["C"])
        assert C is not None
        return self._output(y, x), {"C": C}

    @torch.no_grad()
    def token_map(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, H, L, L] float32: what each head's output at token l takes from the
        value of token s, in absolute size, before norm and gate."""
        q, k, _, log_forget = self._project(x)
        with torch.autocast(x.device.type, enabled=False):
            M = influence(q, k, log_forget)
            return M.abs() / M.sum(-1, keepdim=True).abs().clamp(min=1)

    @torch.no_grad()
    def memory_length(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, H] float32: tokens until a head's memory has decayed to 1/e, were
        every following token as this one: -1 / log f."""
        return -1 / self._project(x)[3].transpose(1, 2)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q and k [B, H, L, N], the input gate in k; v with a 1 after its features, so that n is a
        row of C [B, H, L, P + 1]; log f [B, H, L]. float32."""
        width = x.shape[2]
        wide = torch.promote_types(x.dtype, torch.float32)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).to(wide).split([width // 2, width // 2, width], dim=-1)
        )
        gates = CAP * torch.tanh(self.gates(x).to(wide).transpose(1, 2) / CAP)  # [B, 2 H, L]
        enter, forget = gates.chunk(2, dim=1)
        k = k * enter.exp().unsqueeze(-1)
        return q * q.shape[-1] ** -0.5, k, F.pad(v, (0, 1), value=1.0), F.logsigmoid(forget)

    def _output(self, y: Tensor, x: Tensor) -> Tensor:
        """C q and n . q [B, H, L, P + 1], tokens [B, L, D] -> [B, L, D]"""
        read = y[..., :-1] / y[..., -1:].abs().clamp(min=1)
        read = self.norm(read.transpose(1, 2)).flatten(2) * self.scale
        return self.out(read * self.ogate(x).sigmoid())
