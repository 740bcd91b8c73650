"""Selective scan and causal convolution in plain sequential PyTorch: the oracle of all backends.

Written to be read next to the equations of Mamba (Gu & Dao, arXiv:2312.00752, section 3), in any
dtype and on any device. Only elementwise operations are used, so autocast never lowers precision.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None = None
) -> Tensor:
    state = u.new_zeros(u.shape[0], *A.shape)
    y, _ = scan_from(u, dt, A, B, C, D, z, state)
    return y


@torch.no_grad()
def selective_scan_step(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    return scan_from(u, dt, A, B, C, D, z, state)


def scan_from(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t;  y_t = (C_t h_t + D u_t) silu(z_t)."""
    outputs = []
    for dt_t, x_t, B_t, C_t in zip(
        dt.unbind(1), (dt * u).unbind(1), B.unbind(1), C.unbind(1), strict=True
    ):
        decay = torch.exp(dt_t[:, :, None] * A)  # [B, E, N]
        state = decay * state + x_t[:, :, None] * B_t[:, None, :]  # [B, E, N]
        outputs.append((state * C_t[:, None, :]).sum(-1))  # [B, E]
    y = torch.stack(outputs, 1) if outputs else torch.zeros_like(u)  # [B, L, E]
    y = y + D * u
    return (y if z is None else y * F.silu(z)), state


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    history = x.new_zeros(x.shape[0], weight.shape[-1] - 1, x.shape[2])
    y, _ = conv_from(x, weight, bias, history)
    return y


@torch.no_grad()
def causal_conv_silu_step(
    x: Tensor, weight: Tensor, bias: Tensor, history: Tensor
) -> tuple[Tensor, Tensor]:
    return conv_from(x, weight, bias, history)


def conv_from(x: Tensor, weight: Tensor, bias: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
    """Depthwise convolution as shifted sums: several times faster on CPU than grouped Conv1d."""
    length, taps = x.shape[1], weight.shape[-1]
    past = torch.cat([history, x], 1)  # [B, k-1+L, E]
    y = bias.expand_as(x)
    for tap in range(taps):
        y = torch.addcmul(y, past[:, tap : tap + length], weight[:, 0, tap])  # [B, L, E]
    return F.silu(y), past[:, length:].clone()
