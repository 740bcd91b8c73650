"""What blocks share beside scan and convolution: a cheap dropout, a causal filter, and attention
over a sliding window. All by PyTorch, for any dtype and device."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from decision_seq.ops.seeds import each_seed

QUERIES = (
    128  # at a time, so that the half of a long window's weights that are zero is not computed
)
LEVELS = 1 << 16  # on a CPU dropout's probability is rounded to a multiple of 1 / LEVELS


class Dropout(nn.Module):
    """As nn.Dropout: in training each element is zeroed with probability p, the others divided by
    1 - p.

    Its mask is a function of torch's global generator.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """residual + dropout(x); one shape, any dtypes."""
        x = dropout(x, self.p) if self.training else x
        return x if residual is None else residual + x


def dropout(x: Tensor, p: float) -> Tensor:
    """x with each element zeroed with probability p, the others divided by 1 - p."""
    if p == 0:
        return x
    if x.is_cpu:
        return x * each_seed(partial(_mask, p=p), x)
    return each_seed(partial(F.dropout, p=p), x)


def _mask(x: Tensor, p: float) -> Tensor:
    """0 or 1 / (1 - p), of x's shape and dtype: its product costs less than one with a bool.

    From 16 random bits an element: PyTorch draws a number each, on one thread.
    """
    count, dropped = x.numel(), round(p * LEVELS)
    bits = torch.randint(-(2**63), 2**63 - 1, ((count + 3) // 4,))
    levels = bits.view(torch.int16)[:count].view(x.shape)  # uniform in [-LEVELS / 2, LEVELS / 2)
    kept = torch.ge(levels, dropped - LEVELS // 2, out=torch.empty_like(levels, dtype=x.dtype))
    return kept.mul_(LEVELS / (LEVELS - dropped))


def attention(
    q: Tensor,
    kv: Tensor,
    heads: int,
    window: int,
    positions: range,
    p: float = 0.0,
    rotary: bool = False,
) -> Tensor:
    """Causal attention over a sliding window, with dropout on its weights.

        y_i = sum over j in (i - window, i] of m_ij softmax_j(q_i . k_j / sqrt(d)) v_j

    Args:
        q: queries, [B, l, D].
        kv: keys and values side by side, [B, L, 2 D].
        heads: H, of d = D / H features.
        window: tokens that a query sees, its own included.
        positions: of the queries among the L tokens, ascending; l of them.
        p: probability with which a weight is dropped.
        rotary: queries and keys are turned by their positions (`rotate`).

    Returns:
        y, [B, l, D].
    """
    length = kv.shape[1]
    q, k, v = (split_heads(t, heads) for t in (q, *kv.chunk(2, dim=-1)))  # [B, H, ., d]
    if rotary:
        q, k = rotate(q, positions), rotate(k, range(length))
    if p and q.is_cpu:  # PyTorch has no fused kernel for it, slow masks
        blocks = (slice(i, i + QUERIES) for i in range(0, len(positions), QUERIES))
        parts = [_attend(q, k, v, window, positions, block, p) for block in blocks]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    else:
        attend = partial(F.scaled_dot_product_attention, dropout_p=p)
        if length <= window and positions == range(length):
            attend = partial(attend, is_causal=True)
        else:
            attend = partial(attend, attn_mask=band(positions, length, window, q.device))
        y = each_seed(attend, q, k, v) if p else attend(q, k, v)
    return y.transpose(1, 2).flatten(2)  # [B, l, D]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, window: int, positions: range, block: slice, p: float
) -> Tensor:
    """A block of queries among the keys that they see; shapes as in `attention_weights`."""
    asked = positions[block]
    first, end = max(0, asked[0] - window + 1), asked[-1] + 1
    here = range(asked.start - first, asked.stop - first, asked.step)
    weights = attention_weights(q[:, :, block], k[:, :, first:end], window, here)
    return dropout(weights, p) @ v[:, :, first:end]


def attention_weights(q: Tensor, k: Tensor, window: int, positions: range) -> Tensor:
    """Queries [B, H, l, d] and keys [B, H, L, d] -> softmax over the tokens seen [B, H, l, L]"""
    seen = band(positions, k.shape[2], window, q.device)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.masked_fill(~seen, -math.inf).softmax(-1)


def rotate(x: Tensor, positions: range) -> Tensor:
    """Rotary positions (arXiv:2104.09864): x [.., l, d], d even, with features i and i + d / 2
    turned by position * 10000^(-2 i / d). Of positions, q . k then knows the distance alone."""
    half = x.shape[-1] // 2
    kind = torch.promote_types(x.dtype, torch.float32)
    at = torch.arange(positions.start, positions.stop, positions.step, device=x.device, dtype=kind)
    rates = 10_000 ** (-torch.arange(half, device=x.device, dtype=kind) / half)
    angles = at[:, None] * rates  # [l, d / 2]
    cos, sin = angles.cos(), angles.sin()
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


def band(positions: range, length: int, window: int, device: torch.device) -> Tensor:
    """[l, L] bool: tokens at `positions` see themselves and window - 1 back."""
    asked = torch.arange(positions.start, positions.stop, positions.step, device=device)
    distance = asked[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window)


def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, L, D] -> [B, H, L, d]


def causal_filter(seen: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """y_l = b_l + sum over k < W of w_{l,k} * seen_{l+W-1-k}, each channel by itself.

    Args:
        seen: inputs from W - 1 before the first output on, [B, W - 1 + L, D].
        weight: [L, W, D] or [B, L, W, D]; [1, W, D] where it is the same for every token.
        bias: [L, D], [B, L, D] or [1, D].

    Returns:
        y, [B, L, D], differentiable in every input.
    """
    y: Tensor = _CausalFilter.apply(seen, weight, bias)
    return y


class _CausalFilter(torch.autograd.Function):
    """A few passes over [B, L, D] beat grouped convolutions on CPU, and this backward takes half
    the time of autograd's, which makes a gradient of the size of `seen` for every tap.
    """

    @staticmethod
    def forward(seen: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        kernel_size = weight.shape[-2]
        length = seen.shape[-2] - kernel_size + 1
        y = torch.addcmul(bias, seen[..., kernel_size - 1 :, :], weight[..., 0, :])
        for k in range(1, kernel_size):
            part = slice(kernel_size - 1 - k, kernel_size - 1 - k + length)
            y.addcmul_(seen[..., part, :], weight[..., k, :])
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        seen, weight, bias = inputs
        ctx.save_for_backward(seen, weight)
        ctx.bias_shape = bias.shape

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen, weight = ctx.saved_tensors
        kernel_size, length = weight.shape[-2], grad.shape[-2]
        seen_grad, weight_grad = torch.zeros_like(seen), torch.empty_like(weight)
        for k in range(kernel_size):
            part = slice(kernel_size - 1 - k, kernel_size - 1 - k + length)
            seen_grad[..., part, :].addcmul_(grad, weight[..., k, :])
            product = grad * seen[..., part, :]  # [..., B, L, D]
            weight_grad[..., k, :] = product.sum_to_size(weight[..., k, :].shape)
        return seen_grad, weight_grad, grad.sum_to_size(ctx.bias_shape)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        """Filters of several seeds: of inputs [S, B, ., D] they are [S, 1 or B, L, W, D]."""
        stacked = []
        for tensor, dim, rank in zip(inputs, dims, (3, 4, 3), strict=True):
            size = (info.batch_size, *tensor.shape)
            seeds = tensor.expand(size) if dim is None else tensor.movedim(dim, 0)
            stacked.append(seeds if seeds.ndim > rank else seeds.unsqueeze(1))
        return causal_filter(*stacked), 0
