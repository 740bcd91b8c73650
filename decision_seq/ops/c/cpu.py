"""The C kernels as differentiable torch operators.

On CPU, in float32, with inputs and outputs of the layers (u, z, x, y) in bfloat16 where mixed
precision has them so. Inputs may be views whose rows are evenly spaced, such as halves of a
projection; anything else is copied.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from decision_seq.ops import autograd
from decision_seq.ops.autograd import checkpoint_every
from decision_seq.ops.c.build import SCAN_LIBRARY

unusable = SCAN_LIBRARY.unusable

# OpenMP's threads do not survive fork(): a forked child that asked for them would wait forever.
_single_thread = False


def _after_fork() -> None:
    global _single_thread
    _single_thread = True


os.register_at_fork(after_in_child=_after_fork)


def accepts(dtype: torch.dtype, device: str) -> bool:
    return dtype in (torch.float32, torch.bfloat16) and device == "cpu"


def half(tensor: Tensor) -> bool:
    """Whether it is bfloat16. The kernels would take any other dtype for float32."""
    if tensor.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"the C kernels take float32 and bfloat16, got {tensor.dtype}")
    return tensor.dtype is torch.bfloat16


def threads() -> int:
    return 1 if _single_thread else torch.get_num_threads()


def call(name: str, *arguments: float) -> None:
    if getattr(SCAN_LIBRARY.load(), name)(*arguments):
        raise MemoryError(f"{name}: out of memory")


def rows(tensor: Tensor) -> Tensor:
    """The tensor [B, L, X] itself if its rows are contiguous and evenly spaced, else a copy."""
    if tensor.is_contiguous():
        return tensor
    outer, row, inner = tensor.stride()
    batch, length, width = tensor.shape
    even = batch == 1 or length == 1 or outer == length * row
    return tensor if even and (inner == 1 or width == 1) else tensor.contiguous()


def view(tensor: Tensor | None) -> tuple[int, int]:
    """Address and row stride of what `rows` returned."""
    if tensor is None:
        return 0, 0
    return tensor.data_ptr(), tensor.stride(0 if tensor.shape[1] == 1 else 1)


# ---------------------------------------------------------------- selective scan


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None = None
) -> Tensor:
    return autograd.scan(scan_cpu, (u, dt, A, B, C, D, z))


def _scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    """y: [B, L, E], and the states that backward starts from (empty unless with_grad)."""
    return _scan_from((u, dt, A, B, C, D, z), with_grad, None, None)


def _scan_from(
    inputs: Sequence[Any], with_grad: bool, initial: Tensor | None, final: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same from the state `initial` [B, E, N] on; that after the last token is left in
    `final`."""
    u, dt, A, B, C, D, z = inputs
    u, dt, B, C = rows(u), rows(dt), rows(B), rows(C)
    z = None if z is None else rows(z)
    A, D = A.contiguous(), D.contiguous()
    y, checkpoints = _scan_outputs(u, A, with_grad)
    states = [0 if state is None else state.data_ptr() for state in (initial, final)]
    call(
        "scan_forward",
        *(*view(u), *view(dt), A.data_ptr(), *view(B), *view(C), D.data_ptr(), *view(z)),
        *(y.data_ptr(), checkpoints.data_ptr() if with_grad else 0, *states),
        *(half(u), *u.shape, A.shape[1], checkpoint_every(u.shape[1]), threads()),
    )
    return y, checkpoints


def _scan_backward(
    dy: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    checkpoints: Tensor,
) -> list[Tensor]:
    """Gradients of u, dt, A, B, C, D and, if it is there, z."""
    dy = dy.contiguous()
    u, dt, B, C = rows(u), rows(dt), rows(B), rows(C)
    z = None if z is None else rows(z)
    A, D = A.contiguous(), D.contiguous()
    grads = [x.new_empty(x.shape) for x in (u, dt, A, B, C, D, z) if x is not None]
    addresses = [grad.data_ptr() for grad in grads] + [0] * (z is None)
    call(
        "scan_backward",
        *(dy.data_ptr(), *view(u), *view(dt), A.data_ptr(), *view(B), *view(C), D.data_ptr()),
        *(*view(z), checkpoints.data_ptr(), *addresses),
        *(half(u), *u.shape, A.shape[1], checkpoint_every(u.shape[1]), threads()),
    )
    return grads


def _scan_outputs(u: Tensor, A: Tensor, with_grad: bool) -> tuple[Tensor, Tensor]:
    batch, length, width = u.shape
    block = SCAN_LIBRARY.load().scan_block()  # channels a vector
    chunks, blocks = -(-length // checkpoint_every(length)), -(-width // block)
    checkpoints = (batch, chunks, blocks, A.shape[1], block) if with_grad else (0,)
    return u.new_empty(u.shape), A.new_empty(checkpoints)


scan_cpu = autograd.scan_operator("scan_cpu", _scan, _scan_backward, _scan_outputs)


class _Continued(torch.autograd.Function):
    """A scan that goes on from a state, which has no gradient. Backward starts from checkpoints, of
    which the state is the first."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *own, state = inputs
        state = state.contiguous()
        final = torch.empty_like(state)
        y, checkpoints = _scan_from(own, True, state, final)
        ctx.save_for_backward(*own, checkpoints)
        ctx.mark_non_differentiable(final)
        return y, final

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        known = _scan_backward(dy, *ctx.saved_tensors)
        return *known, *[None] * (8 - len(known))


def continued_scan(*inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    """(u, dt, A, B, C, D, z, state) -> y and the state after the last token."""
    return _Continued.apply(*inputs)


# ---------------------------------------------------------------- causal convolution


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return conv_silu_cpu(x, weight, bias)


def _conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x, weight, bias = rows(x), weight.contiguous(), bias.contiguous()
    y = x.new_empty(x.shape)
    call(
        "conv_forward",
        *(*view(x), weight.data_ptr(), bias.data_ptr(), y.data_ptr()),
        *(half(x), *x.shape, weight.shape[-1], threads()),
    )
    return y


def _conv_silu_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dy, x, weight, bias = dy.contiguous(), rows(x), weight.contiguous(), bias.contiguous()
    dx, dweight, dbias = (t.new_empty(t.shape) for t in (x, weight, bias))
    call(
        "conv_backward",
        *(dy.data_ptr(), *view(x), weight.data_ptr(), bias.data_ptr()),
        *(dx.data_ptr(), dweight.data_ptr(), dbias.data_ptr()),
        *(half(x), *x.shape, weight.shape[-1], threads()),
    )
    return dx, dweight, dbias


conv_silu_cpu = autograd.conv_operator("conv_silu_cpu", _conv_silu, _conv_silu_backward)
