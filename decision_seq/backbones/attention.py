"""Causal self-attention, the backbone of Decision Transformer (arXiv:2106.01345)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.backbones.block import BackboneConfig, Block
from decision_seq.backbones.contract import EVERY, LayerState, Layout, Mixer
from decision_seq.config import register
from decision_seq.errors import UserError
from decision_seq.ops.layers import attention, attention_weights, band, rotate, split_heads


@register("attention", "causal attention over the last K steps; cost L^2; streams by a KV cache")
@dataclass(frozen=True)
class AttentionConfig(BackboneConfig):
    """Multi-head causal attention. A token sees as many back as `context_length` steps have."""

    heads: int = 1  # the paper's value for Gym; 8 for Atari
    activation: Literal["gelu", "relu"] = "gelu"  # of the MLP; relu in the paper's code for Gym
    positions: Literal["none", "rotary"] = "none"  # what attention itself knows of distances

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads < 1 or self.width % self.heads:
            raise UserError(f"heads is {self.heads}; it must divide width {self.width}")
        if self.positions == "rotary" and self.width % (2 * self.heads):
            raise UserError(
                f"heads is {self.heads}; with rotary positions twice as many must divide width "
                f"{self.width}"
            )

    def make_mixer(self, layout: Layout) -> Mixer:
        return Attention(self, layout.context_tokens)

    def make_block(self, layout: Layout, layer: int) -> Block:
        block = super().make_block(layout, layer)
        if self.activation == "relu":
            block.mlp[1] = nn.ReLU()
        return block


class Attention(Mixer):
    """y_l = sum over s in (l - window, l] of softmax(q_l . k_s / sqrt(d)) v_s, H heads of d = D/H.

    As published it knows no positions: the timestep embedding of the tokens carries them. With
    rotary ones (arXiv:2104.09864) q_l . k_s depends on l - s too.
    """

    def __init__(self, config: AttentionConfig, window: int) -> None:
        super().__init__()
        self.heads, self.window = config.heads, window
        self.dropout, self.rotary = config.dropout, config.positions == "rotary"
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        nn.init.normal_(self.qkv.weight, std=0.02)
        nn.init.normal_(self.out.weight, std=0.02 / math.sqrt(2 * config.layers))
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, output_slice: slice = EVERY) -> Tensor:
        """[B, L, D] -> [B, l, D]; only the l tokens of `output_slice` ask, all are asked."""
        width = x.shape[2]
        ask, tell = self.qkv.weight.split([width, 2 * width])
        ask_bias, tell_bias = self.qkv.bias.split([width, 2 * width])
        q = F.linear(x[:, output_slice], ask, ask_bias)  # [B, l, D]
        kv = F.linear(x, tell, tell_bias)  # [B, L, 2 D]
        positions = range(x.shape[1])[output_slice]
        dropout = self.dropout if self.training else 0.0
        y = attention(q, kv, self.heads, self.window, positions, dropout, self.rotary)
        return self.out(y)

    def outputs(self, x: Tensor, output_slice: slice) -> Tensor:
        """Queries, and all that follows from them, of those tokens alone."""
        return self(x, output_slice)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """An empty cache of keys and values; it grows to `window` tokens and then slides."""
        width = self.out.in_features
        return {
            "keys": torch.zeros(batch_size, 0, width, device=device, dtype=dtype),  # [B, T, D]
            "values": torch.zeros(batch_size, 0, width, device=device, dtype=dtype),  # [B, T, D]
            "valid": torch.zeros(batch_size, 0, device=device, dtype=torch.bool),  # [B, T]
        }

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """[B, n, D], cache -> [B, n, D], cache. Lanes reset in between see only valid tokens."""
        n = x.shape[1]
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # [B, n, D]
        keys = torch.cat([state["keys"], k], dim=1)  # [B, T + n, D]
        values = torch.cat([state["values"], v], dim=1)
        valid = F.pad(state["valid"], (0, n), value=True)  # [B, T + n]
        last = range(keys.shape[1] - n, keys.shape[1])
        seen = band(last, keys.shape[1], self.window, x.device) & valid[:, None]  # [B, n, T + n]
        q, k, v = (split_heads(t, self.heads) for t in (q, keys, values))
        if self.rotary:  # by the place in the cache: it is the distance that counts
            q, k = rotate(q, last), rotate(k, range(keys.shape[1]))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])  # [B, H, n, d]
        keep = slice(max(0, keys.shape[1] - self.window), None)
        cache = {"keys": keys[:, keep], "values": values[:, keep], "valid": valid[:, keep]}
        return self.out(y.transpose(1, 2).flatten(2)), cache

    @torch.no_grad()
    def token_map(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, H, L, L]: the softmax weights of each head; every row sums to one."""
        q, k, _ = (split_heads(t, self.heads) for t in self.qkv(x).chunk(3, dim=-1))
        every = range(x.shape[1])
        if self.rotary:
            q, k = rotate(q, every), rotate(k, every)
        return attention_weights(q, k, self.window, every)
