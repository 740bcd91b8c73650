"""Cache-blocked selective scan in pure PyTorch: the fallback where the C kernel cannot run.

The plain scan materialises [B, L, E, N] intermediates and walks them from memory. Here the batch
and the time axis are cut into blocks whose intermediates stay in the processor's cache; only the
state at the start of each time block is kept, and backward recomputes the rest, so that memory is
O(B L E). The skip D u and the gate silu(z) are ordinary differentiable operations around the core.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from decision_seq.ops.operators import batched, differentiable, operator
from decision_seq.ops.seeds import looped

TIME_BLOCK = 16
CPU_BATCH_BLOCK = 4


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None = None
) -> Tensor:
    y, _ = scan_blocked(u, dt, A, B, C)
    y = torch.addcmul(y, u, D)
    return y if z is None else y * F.silu(z)


def blocks(u: Tensor) -> list[tuple[slice, list[slice]]]:
    """Batch blocks, each with its time blocks. A GPU takes the whole batch at once."""
    batch, length = u.shape[:2]
    rows = CPU_BATCH_BLOCK if u.device.type == "cpu" else max(batch, 1)
    times = [slice(t, min(t + TIME_BLOCK, length)) for t in range(0, length, TIME_BLOCK)]
    return [(slice(b, min(b + rows, batch)), times) for b in range(0, batch, rows)]


def run_states(
    dt: Tensor, x: Tensor, At: Tensor, B: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Decay factors and states of one block, both [b, T, N, E], from the state before it.

    dt, x = dt * u: [b, T, E]; At = A transposed: [N, E]; B: [b, T, N]; state: [b, N, E].
    """
    decay = (dt.unsqueeze(2) * At).exp_()
    states = x.unsqueeze(2) * B.unsqueeze(-1)
    for t in range(states.shape[1]):
        state = states[:, t].addcmul_(decay[:, t], state)
    return decay, states


def _scan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """sum_n C h: [B, L, E], and the state before every time block: [L / TIME_BLOCK, B, N, E]."""
    with torch.autocast(u.device.type, enabled=False):
        At = A.t().contiguous()
        x = dt * u
        y = torch.empty_like(x)
        starts = u.new_zeros(checkpoint_shape(u, A))
        for rows, times in blocks(u):
            state = u.new_zeros(x[rows].shape[0], *At.shape)  # [b, N, E]
            for i, time in enumerate(times):
                starts[i, rows] = state
                _, states = run_states(dt[rows, time], x[rows, time], At, B[rows, time], state)
                y[rows, time] = (C[rows, time].unsqueeze(2) @ states).squeeze(2)
                state = states[:, -1]
    return y, starts


def _scan_backward(
    dy: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(u.device.type, enabled=False):
        At = A.t().contiguous()
        x = dt * u
        dx, ddt = torch.empty_like(x), torch.empty_like(x)
        dAt = torch.zeros_like(At)
        dB, dC = (torch.empty_like(m, memory_format=torch.contiguous_format) for m in (B, C))
        for rows, times in blocks(u):
            carry = u.new_zeros(x[rows].shape[0], *At.shape)  # dL/dh flowing back from later blocks
            for i, time in reversed(list(enumerate(times))):
                at = rows, time
                start, dy_block = starts[i, rows], dy[at]
                decay, states = run_states(dt[at], x[at], At, B[at], start)
                dC[at] = (states @ dy_block.unsqueeze(-1)).squeeze(-1)
                grad = dy_block.unsqueeze(2) * C[at].unsqueeze(-1)  # [b, T, N, E], becomes dL/dh
                for t in range(grad.shape[1] - 1, -1, -1):
                    carry = grad[:, t].add_(carry) * decay[:, t]
                dB[at] = (grad @ x[at].unsqueeze(-1)).squeeze(-1)
                dx[at] = (B[at].unsqueeze(2) @ grad).squeeze(2)
                # dL/d(dt A) = dL/dh * decay * (state one step earlier)
                rate_grad = grad.mul_(decay)
                rate_grad[:, 1:].mul_(states[:, :-1])
                rate_grad[:, 0].mul_(start)
                ddt[at] = (rate_grad * At).sum(2)
                dAt += (rate_grad.mul_(dt[at].unsqueeze(2))).sum((0, 1))
        ddt += dx * u
    return dx * dt, ddt, dAt.t().contiguous(), dB, dC


def checkpoint_shape(u: Tensor, A: Tensor) -> tuple[int, int, int, int]:
    batch, length, width = u.shape
    return (length + TIME_BLOCK - 1) // TIME_BLOCK, batch, A.shape[1], width


def _shapes(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty(checkpoint_shape(u, A))


def _shapes_backward(
    dy: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    du, ddt, dA, dB, dC = (u.new_empty(t.shape) for t in (u, dt, A, B, C))
    return du, ddt, dA, dB, dC


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple:
    return tuple(scan_blocked_backward(dy, *ctx.saved_tensors))


scan_blocked = operator("scan_blocked", _scan, _shapes)
scan_blocked_backward = operator("scan_blocked_backward", _scan_backward, _shapes_backward)
differentiable("scan_blocked", _backward, _save)
batched("scan_blocked", looped(scan_blocked))
