"""x W^T + bias in float32 on CPU: a product forward and two backward, each by the library and in
the order of factors that is fastest at it."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from decision_seq.ops.autograd import Context, differentiable
from decision_seq.ops.c.cpu import call, threads


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if torch.is_autocast_enabled("cpu") or x.dtype is not torch.float32:
        return F.linear(x, weight, bias)
    return linear_cpu(x, weight, bias)


@functools.cache
def onednn() -> bool:
    """Whether oneDNN is faster than MKL, which it is by an eighth where the processor is AMD's."""
    cpuinfo = Path("/proc/cpuinfo")
    amd = cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text()
    return amd and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [M, K], b [N, K] -> a b^T + bias [M, N]"""
    if not onednn():
        return F.linear(a, b, bias)
    # For views it may take a path that is a hundred times as slow.
    return torch.ops.mkldnn._linear_pointwise(a.contiguous(), b.contiguous(), bias, "none", [], "")


def transposed(matrix: Tensor) -> Tensor:
    """A copy [P, Q] of [Q, P], made faster than by PyTorch."""
    matrix = matrix.contiguous()
    copy = matrix.new_empty(matrix.shape[::-1])
    call("transpose", matrix.data_ptr(), copy.data_ptr(), *matrix.shape, threads())
    return copy


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = product(x.reshape(-1, x.shape[-1]), weight, bias)
    return y.view(*x.shape[:-1], weight.shape[0])


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias (empty without one)."""
    outputs, inputs = weight.shape
    dy, x2 = dy.reshape(-1, outputs), x.reshape(-1, inputs)
    dx = product(dy, transposed(weight)) if onednn() else dy @ weight
    # MKL's choice of blocks makes the product with fewer rows than columns faster, up to six times.
    dweight = dy.t() @ x2 if outputs <= inputs else (x2.t() @ dy).t()
    return dx.view(x.shape), dweight, dy.sum(0) if with_bias else dy.new_empty(0)


def _gradients(
    dy: Tensor, x: Tensor, weight: Tensor, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    outputs, inputs = weight.shape
    dweight = x.new_empty(weight.shape) if outputs <= inputs else x.new_empty(inputs, outputs).t()
    return x.new_empty(x.shape), dweight, x.new_empty(outputs if with_bias else 0)


def _save(ctx: Context, inputs: tuple, output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.with_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _grads(backward: Callable, ctx: Context, dy: Tensor) -> tuple:
    dx, dweight, dbias = backward(dy, *ctx.saved_tensors, ctx.with_bias)
    return dx, dweight, dbias if ctx.with_bias else None


linear_cpu = differentiable(
    "linear_cpu",
    _forward,
    _backward,
    outputs=lambda x, weight, bias: x.new_empty(*x.shape[:-1], weight.shape[0]),
    gradients=_gradients,
    save=_save,
    grads=_grads,
)
