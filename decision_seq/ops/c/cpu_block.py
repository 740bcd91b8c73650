"""The C kernels for the rest of a block on CPU: LayerNorm, bias + GELU or softplus, dropout +
residual.

float32, with what matrix products take and give in bfloat16 under autocast. Masks are a function of
a seed, drawn from torch's generator by every call, and a place.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from decision_seq.ops.autograd import Context, differentiable
from decision_seq.ops.c.cpu import call, half, threads
from decision_seq.ops.c.cpu_linear import linear
from decision_seq.ops.pytorch.plain import LEVELS


def draw_seed() -> Tensor:
    """[] int64 from torch's generator, which the run's seed fixes and a checkpoint holds."""
    return torch.randint(-(2**63), 2**63 - 1, ())


def unsigned(seed: Tensor) -> int:
    return int(seed) & 0xFFFFFFFFFFFFFFFF


def levels(p: float) -> int:
    return round(p * LEVELS)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Rows, width and threads."""
    return x.numel() // max(x.shape[-1], 1), x.shape[-1], threads()


# ---------------------------------------------------------------- LayerNorm


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    mixed = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
    return norm_cpu(x, weight, bias, eps, mixed)


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, mixed: bool) -> Tensor:
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    y = _norm_output(x, weight, bias, eps, mixed)
    addresses = x.data_ptr(), weight.data_ptr(), bias.data_ptr(), eps, y.data_ptr()
    call("norm_forward", *addresses, mixed, *_sizes(x))
    return y


def _norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    dy, x, weight = dy.contiguous(), x.contiguous(), weight.contiguous()
    grads = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    addresses = (t.data_ptr() for t in grads)
    inputs = dy.data_ptr(), x.data_ptr(), weight.data_ptr(), eps
    call("norm_backward", *inputs, *addresses, half(dy), *_sizes(x))
    return grads


def _norm_output(x: Tensor, weight: Tensor, bias: Tensor, eps: float, mixed: bool) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.bfloat16 if mixed else torch.float32)


def _norm_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _save_norm(ctx: Context, inputs: tuple, output: Tensor) -> None:
    x, weight, _, ctx.eps, _ = inputs
    ctx.save_for_backward(x, weight)


def _norm_grads(backward: Callable, ctx: Context, dy: Tensor) -> tuple:
    return *backward(dy, *ctx.saved_tensors, ctx.eps), None, None


norm_cpu = differentiable(
    "norm_cpu", _norm, _norm_backward, _norm_output, _norm_gradients, _save_norm, _norm_grads
)


# ---------------------------------------------------------------- bias + GELU or softplus


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return bias_activation_cpu(linear(x, weight), bias, False)


def linear_softplus(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return bias_activation_cpu(linear(x, weight), bias, True)


def _activation(x: Tensor, bias: Tensor, softplus: bool) -> Tensor:
    """GELU of x + bias, like x; or softplus of it, in float32."""
    x, bias = x.contiguous(), bias.contiguous()
    y = _activation_output(x, bias, softplus)
    addresses = x.data_ptr(), bias.data_ptr(), y.data_ptr()
    call("bias_activation", *addresses, softplus, half(x), *_sizes(x))
    return y


def _activation_backward(
    dy: Tensor, x: Tensor, bias: Tensor, softplus: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and bias."""
    dy, x, bias = dy.contiguous(), x.contiguous(), bias.contiguous()
    dx, dbias = torch.empty_like(x), torch.empty_like(bias)
    addresses = [t.data_ptr() for t in (dy, x, bias, dx, dbias)]
    call("bias_activation_backward", *addresses, softplus, half(x), *_sizes(x))
    return dx, dbias


def _activation_output(x: Tensor, bias: Tensor, softplus: bool) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32 if softplus else x.dtype)


def _activation_gradients(
    dy: Tensor, x: Tensor, bias: Tensor, softplus: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), bias.new_empty(bias.shape)


def _save_activation(ctx: Context, inputs: tuple, output: Tensor) -> None:
    x, bias, ctx.softplus = inputs
    ctx.save_for_backward(x, bias)


def _activation_grads(backward: Callable, ctx: Context, dy: Tensor) -> tuple:
    return *backward(dy, *ctx.saved_tensors, ctx.softplus), None


bias_activation_cpu = differentiable(
    "bias_activation_cpu",
    _activation,
    _activation_backward,
    _activation_output,
    _activation_gradients,
    _save_activation,
    _activation_grads,
)


# ---------------------------------------------------------------- dropout + residual


def dropout_add(x: Tensor, residual: Tensor | None, p: float) -> Tensor:
    return dropout_add_cpu(x, residual, draw_seed(), levels(p))


def _dropout(x: Tensor, residual: Tensor | None, seed: Tensor, dropped: int) -> Tensor:
    """residual + dropout(x), in float32."""
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    y = _dropped(x, residual, seed, dropped)
    addresses = [0 if t is None else t.data_ptr() for t in (x, residual, y)]
    call("dropout_add", *addresses, unsigned(seed), dropped, half(x), *_sizes(x))
    return y


def _dropout_backward(dy: Tensor, seed: Tensor, dropped: int, mixed: bool) -> Tensor:
    """The gradient of x, in bfloat16 if `mixed`."""
    dy = dy.contiguous()
    dx = _dropped_gradient(dy, seed, dropped, mixed)
    addresses = dy.data_ptr(), dx.data_ptr()
    call("dropout_backward", *addresses, unsigned(seed), dropped, mixed, *_sizes(dy))
    return dx


def _dropped(x: Tensor, residual: Tensor | None, seed: Tensor, dropped: int) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


def _dropped_gradient(dy: Tensor, seed: Tensor, dropped: int, mixed: bool) -> Tensor:
    return dy.new_empty(dy.shape, dtype=torch.bfloat16 if mixed else torch.float32)


def _save_mask(ctx: Context, inputs: tuple, output: Tensor) -> None:
    x, residual, seed, dropped = inputs
    ctx.mask, ctx.residual = (dropped, half(x)), residual is not None
    ctx.save_for_backward(seed)


def _mask_grads(backward: Callable, ctx: Context, dy: Tensor) -> tuple:
    (seed,) = ctx.saved_tensors
    return backward(dy, seed, *ctx.mask), dy if ctx.residual else None, None, None


dropout_add_cpu = differentiable(
    "dropout_add_cpu",
    _dropout,
    _dropout_backward,
    _dropped,
    _dropped_gradient,
    _save_mask,
    _mask_grads,
)
