"""Selective scan and causal convolution of Mamba (Gu & Dao, arXiv:2312.00752).

Both compute in float32 (float64 stays float64), also under autocast, and return the dtype of their
input. Which implementation runs is decided in dispatch.py. What blocks share beside them is in
layers.py.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from decision_seq.ops.dispatch import Backend, BackendStatus, choose, scan_backends
from decision_seq.ops.pytorch import reference

__all__ = [
    "BackendStatus",
    "causal_conv_silu",
    "causal_conv_silu_step",
    "scan_backends",
    "selective_scan",
    "selective_scan_step",
]


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None = None
) -> Tensor:
    """Selective state-space scan with skip and gate (arXiv:2312.00752, algorithm 2).

        h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t,   y_t = (C_t h_t + D u_t) silu(z_t)

    Args:
        u: input, [B, L, E].
        dt: step sizes, positive (softplus already applied), [B, L, E].
        A: decay rates, negative, [E, N].
        B: input projections, [B, L, N].
        C: output projections, [B, L, N].
        D: skip weights, [E].
        z: gate, [B, L, E], or None for no gate.

    Returns:
        y, [B, L, E] of u's dtype, differentiable in every input. Inputs may be strided views.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    _check_scan(u, dt, A, B, C, D, z)
    backend, layer, dtype = _prepare(u)
    (own, gate), rest = _cast(layer, u, z), _cast(dtype, dt, A, B, C, D)
    return backend.scan(own, *rest, gate).to(u.dtype)


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
    """Continue a scan by n >= 1 tokens. Differentiable in all but `state`.

    Args:
        u, dt, A, B, C, D, z: as in `selective_scan`, with L = n new tokens.
        state: h after the tokens so far, [B, E, N]; zeros at the start. It is not changed.

    Returns:
        y, [B, n, E], equal to `selective_scan` on the concatenated tokens, and the new state.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    _check_scan(u, dt, A, B, C, D, z)
    if state.shape != (u.shape[0], *A.shape):
        raise ValueError(f"state must be [B, E, N] = {[u.shape[0], *A.shape]}, got {_s(state)}")
    _check_device(state, u)
    backend, _, dtype = _prepare(u)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (u, dt, A, B, C, D)):
        continued = backend.continued_scan or _continued
        y, state = continued(*_cast(dtype, u, dt, A, B, C, D, z, state))
    else:
        y, state = backend.scan_step(*_cast(dtype, u, dt, A, B, C, D, z, state))
    return y.to(u.dtype), state


def _continued(*inputs: Any) -> tuple[Tensor, Tensor]:
    """The recurrence is linear in h: a scan from 0, and what is left of `state` at each token."""
    u, dt, A, B, C, D, z, state = inputs
    total = dt.cumsum(1)  # [B, L, E], of which exp(total A) is the decay since before the first
    decay = (total.unsqueeze(-1) * A).exp()  # [B, L, E, N]
    left = torch.einsum("blen,bln,ben->ble", decay, C, state)
    y = selective_scan(u, dt, A, B, C, D) + left
    with torch.no_grad():
        since = (
            (total[:, -1:] - total).unsqueeze(-1) * A
        ).exp()  # decay from each token to the end
        new = decay[:, -1] * state + torch.einsum("blen,ble,bln->ben", since, dt * u, B)
    return (y if z is None else y * F.silu(z)), new


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """silu of a causal depthwise convolution along time.

    Args:
        x: input, [B, L, E].
        weight: [E, 1, k], the layout of a depthwise nn.Conv1d; tap k-1 meets the current token.
        bias: [E].

    Returns:
        y, [B, L, E], differentiable in every input.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    _check_conv(x, weight, bias)
    backend, layer, dtype = _prepare(x)
    return backend.conv(x.to(layer), weight.to(dtype), bias.to(dtype)).to(x.dtype)


def causal_conv_silu_step(
    x: Tensor, weight: Tensor, bias: Tensor, history: Tensor
) -> tuple[Tensor, Tensor]:
    """Continue a convolution by n >= 1 tokens. Differentiable.

    Args:
        x, weight, bias: as in `causal_conv_silu`, with L = n new tokens.
        history: the k-1 inputs before x, [B, k-1, E]; zeros at the start. It is not changed.

    Returns:
        y, [B, n, E], equal to `causal_conv_silu` on the concatenated tokens, and the new history.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    _check_conv(x, weight, bias)
    expected = (x.shape[0], weight.shape[-1] - 1, x.shape[2])
    if history.shape != expected:
        raise ValueError(f"history must be [B, k-1, E] = {list(expected)}, got {_s(history)}")
    _check_device(history, x)
    wide = (t.to(_wide(x)) for t in (x, weight, bias, history))
    y, history = reference.causal_conv_silu_step(*wide)
    return y.to(x.dtype), history


def _prepare(x: Tensor) -> tuple[Backend, torch.dtype, torch.dtype]:
    """The backend for a layer's input x, the dtype in which it takes that, and that of the rest."""
    backend = choose(_wide(x), x.device.type)
    own = x.dtype if backend.half and x.dtype is torch.bfloat16 else _wide(x)
    return backend, own, _wide(x)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    return [t if t is None else t.to(dtype) for t in tensors]


def _check_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None
) -> None:
    """The kernels read raw memory, so shapes that do not fit must stop here."""
    batch, length, width = u.shape
    states = A.shape[1]
    fits = (
        dt.shape == u.shape
        and A.shape[0] == width
        and B.shape == (batch, length, states)
        and C.shape == B.shape
        and D.shape == (width,)
        and (z is None or z.shape == u.shape)
    )
    if not fits:
        raise ValueError(
            "expected u, dt, z [B, L, E], A [E, N], B, C [B, L, N], D [E]; got "
            f"u {_s(u)}, dt {_s(dt)}, z {_s(z)}, A {_s(A)}, B {_s(B)}, C {_s(C)}, D {_s(D)}"
        )


def _check_conv(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    width = x.shape[2]
    if weight.shape[:2] != (width, 1) or bias.shape != (width,):
        raise ValueError(
            "expected x [B, L, E], weight [E, 1, k], bias [E]; got "
            f"x {_s(x)}, weight {_s(weight)}, bias {_s(bias)}"
        )


def _check_device(state: Tensor, x: Tensor) -> None:
    if state.device != x.device:
        raise ValueError(f"the state is on {state.device}, but the tokens are on {x.device}")


def _s(tensor: Tensor | None) -> str:
    return "None" if tensor is None else str(list(tensor.shape))
