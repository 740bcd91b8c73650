"""The Triton kernels (triton_kernels.py) as differentiable torch operators, for float32 on GPUs.

Triton comes with PyTorch's CUDA builds, so a GPU needs neither a compiler nor another package. With
TRITON_INTERPRET=1 the same kernels run on the CPU, step by step in Python: for tests.
"""

import functools
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

import torch
from torch import Tensor

from decision_seq.ops import autograd
from decision_seq.ops.autograd import checkpoint_every

BLOCK = 32  # channels a program
CONV_BLOCK, CONV_STEPS = 64, 32


def interpreted() -> bool:
    """Whether kernels run on the CPU, in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def unusable() -> str:
    """Why the kernels cannot run on this machine, or "" if they can."""
    if not importlib.util.find_spec("triton"):
        return "triton is not installed (it comes with PyTorch's CUDA builds)"
    if not (torch.cuda.is_available() or interpreted()):
        return "there is no GPU that PyTorch can use"
    return ""


def accepts(dtype: torch.dtype, device: str) -> bool:
    return dtype == torch.float32 and (device == "cuda" or (device == "cpu" and interpreted()))


@functools.cache
def kernels() -> ModuleType:
    """The kernels; importing them imports Triton."""
    from decision_seq.ops.gpu import triton_kernels

    return triton_kernels


def view(tensor: Tensor | None, like: Tensor) -> tuple[Tensor, int, int]:
    """[B, L, X] with unit inner stride, and its other strides; for None whatever is never read."""
    if tensor is None:
        return like, 0, 0
    tensor = tensor if tensor.stride(2) == 1 else tensor.contiguous()
    return tensor, tensor.stride(0), tensor.stride(1)


def groups(weights: Tensor, rank: int) -> int:
    """Sets of weights, each for as many rows: one, or as many as a dimension before `rank` says."""
    return weights.shape[0] if weights.ndim > rank else 1


def on_device(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current GPU, whichever its arguments are on."""
    return nullcontext() if torch.compiler.is_compiling() else torch.cuda.device_of(tensor)


def power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


# ---------------------------------------------------------------- selective scan


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None = None
) -> Tensor:
    return autograd.scan(scan_triton, (u, dt, A, B, C, D, z))


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
    y, checkpoints = _scan_outputs(u, A, with_grad)
    _forward(u, dt, A, B, C, D, z, y, checkpoints if with_grad else None, None, None)
    return y, checkpoints


def _forward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    y: Tensor,
    checkpoints: Tensor | None,
    start: Tensor | None,
    final: Tensor | None,
) -> None:
    if not y.numel():
        return
    batch, length, width = u.shape
    (u, *u_s), (dt, *dt_s), (B, *B_s), (C, *C_s), (z_, *z_s) = (
        view(t, u) for t in (u, dt, B, C, z)
    )
    with on_device(u):
        kernels().scan_forward[(batch, -(-width // BLOCK))](
            *(u, dt, A.contiguous(), B, C, D.contiguous(), z_),
            *(t if t is not None else y for t in (start, y, checkpoints, final)),
            *(length, width, A.shape[-1], checkpoint_every(length), batch // groups(A, 2)),
            *(*u_s, *dt_s, *B_s, *C_s, *z_s),
            GATED=z is not None,
            KEEP=checkpoints is not None,
            STREAM=start is not None,
            BLOCK=BLOCK,
            N=power_of_two(A.shape[-1]),
        )


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
    batch, length, width = u.shape
    states, blocks, every = A.shape[-1], -(-width // BLOCK), checkpoint_every(length)
    sets = groups(A, 2)
    dy = dy.contiguous()
    du, ddt = u.new_empty(u.shape), u.new_empty(u.shape)
    dz = u.new_empty(u.shape) if z is not None else None
    dA, dD = u.new_zeros(batch, width, states), u.new_zeros(batch, width)
    dB, dC = u.new_zeros(2, blocks, batch, length, states)
    if u.numel():
        (u, *u_s), (dt, *dt_s), (B, *B_s), (C, *C_s), (z_, *z_s) = (
            view(t, u) for t in (u, dt, B, C, z)
        )
        with on_device(u):
            kernels().scan_backward[(batch, blocks)](
                *(dy, u, dt, A.contiguous(), B, C, D.contiguous(), z_, checkpoints),
                u.new_empty(batch, every, width, states),
                *(du, ddt, dA, dB, dC, dD, du if dz is None else dz),
                *(length, width, states, every, batch // sets, *u_s, *dt_s, *B_s, *C_s, *z_s),
                GATED=z is not None,
                BLOCK=BLOCK,
                N=power_of_two(states),
            )
    dA, dD = (d.unflatten(0, (sets, batch // sets)).sum(1) for d in (dA, dD))
    grads = [du, ddt, dA.view(A.shape), dB.sum(0), dC.sum(0), dD.view(D.shape)]
    return grads if dz is None else [*grads, dz]


def _scan_outputs(u: Tensor, A: Tensor, with_grad: bool) -> tuple[Tensor, Tensor]:
    batch, length, width = u.shape
    chunks = -(-length // checkpoint_every(length))
    checkpoints = (batch, chunks, width, A.shape[-1]) if with_grad else (0,)
    return u.new_empty(u.shape), u.new_empty(checkpoints)


scan_triton = autograd.scan_operator(
    "scan_triton", _scan, _scan_backward, _scan_outputs, grouped=True
)


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
    y, state = u.new_empty(u.shape), state.contiguous()
    final = torch.empty_like(state)
    _forward(u, dt, A, B, C, D, z, y, None, state, final)
    return y, final


# ---------------------------------------------------------------- causal convolution


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return conv_silu_triton(x, weight, bias)


def _conv_grid(x: Tensor) -> tuple[int, int, int]:
    batch, length, width = x.shape
    return batch, -(-length // CONV_STEPS), -(-width // CONV_BLOCK)


def _conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = x.new_empty(x.shape)
    if x.numel():
        x, x_b, x_t = view(x, x)
        with on_device(x):
            kernels().conv_forward[_conv_grid(x)](
                *(x, weight.contiguous(), bias.contiguous(), y, *x.shape[1:]),
                *(len(x) // groups(weight, 3), x_b, x_t),
                TAPS=weight.shape[-1],
                STEPS=CONV_STEPS,
                BLOCK=CONV_BLOCK,
            )
    return y


def _conv_silu_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    taps, grid, sets = weight.shape[-1], _conv_grid(x), groups(weight, 3)
    dx = x.new_empty(x.shape)
    parts = x.new_zeros(grid[0] * grid[1], taps + 1, x.shape[2])
    if x.numel():
        x, x_b, x_t = view(x, x)
        with on_device(x):
            kernels().conv_backward[grid](
                *(dy.contiguous(), x, weight.contiguous(), bias.contiguous(), dx, parts),
                *(*x.shape[1:], len(x) // sets, x_b, x_t),
                TAPS=taps,
                STEPS=CONV_STEPS,
                BLOCK=CONV_BLOCK,
            )
    total = parts.unflatten(0, (sets, len(parts) // sets)).sum(1)  # [G, taps + 1, E]
    dweight = total[:, :taps].mT.clone(memory_format=torch.contiguous_format)  # no view of another
    dbias = total[:, taps].clone()
    return dx, dweight.view(weight.shape), dbias.view(bias.shape)


conv_silu_triton = autograd.conv_operator(
    "conv_silu_triton", _conv_silu, _conv_silu_backward, grouped=True
)
