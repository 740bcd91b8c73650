"""The rest of a block by PyTorch, for any dtype and device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 1 << 16  # on a CPU dropout's probability is rounded to a multiple of 1 / LEVELS


linear = F.linear


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def linear_softplus(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.softplus(F.linear(x, weight, bias).float())


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(F.linear(x, weight, bias))


def dropout_add(x: Tensor, residual: Tensor | None, p: float) -> Tensor:
    y = F.dropout(x, p) if x.device.type != "cpu" else x * _mask(x, round(p * LEVELS))
    return y if residual is None else residual + y


def _mask(x: Tensor, dropped: int) -> Tensor:
    """0 or 1 / (1 - p), of `x`'s shape and dtype: its product costs less than one with a bool.

    From 16 random bits an element: PyTorch draws a number each, on one thread.
    """
    count = x.numel()
    bits = torch.randint(-(2**63), 2**63 - 1, ((count + 3) // 4,))
    levels = bits.view(torch.int16)[:count].view(x.shape)  # uniform in [-LEVELS / 2, LEVELS / 2)
    kept = torch.ge(levels, dropped - LEVELS // 2, out=torch.empty_like(levels, dtype=x.dtype))
    return kept.mul_(LEVELS / (LEVELS - dropped))


def attention(q: Tensor, kv: Tensor, heads: int, window: int, positions: range, p: float) -> Tensor:
    length = kv.shape[1]
    q, k, v = (split_heads(t, heads) for t in (q, *kv.chunk(2, dim=-1)))  # [B, H, ., d]
    if p and q.device.type == "cpu":  # PyTorch has no fused kernel for it, slow masks
        y = dropout_add(attention_weights(q, k, window, positions), None, p) @ v
    elif length <= window and positions == range(length):
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
    else:
        seen = band(positions, length, window, q.device)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=p)
    return y.transpose(1, 2).flatten(2)  # [B, l, D]


def attention_weights(q: Tensor, k: Tensor, window: int, positions: range) -> Tensor:
    """Queries [B, H, l, d] and keys [B, H, L, d] -> softmax over the tokens seen [B, H, l, L]"""
    seen = band(positions, k.shape[2], window, q.device)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.masked_fill(~seen, -math.inf).softmax(-1)


def band(positions: range, length: int, window: int, device: torch.device) -> Tensor:
    """[l, L] bool: tokens at `positions` see themselves and window - 1 back."""
    asked = torch.arange(positions.start, positions.stop, positions.step, device=device)
    distance = asked[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window)


def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, L, D] -> [B, H, L, d]
