"""The C kernels for the rest of a block, float32 on CPU: attention, bias + GELU, and dropout +
residual, as differentiable torch operators.

Masks are a function of a seed, drawn from torch's generator by every call, and a place.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from decision_seq.ops.cpu import call, rows, threads, view

LEVELS = 1 << 16  # dropout's probability is rounded to a multiple of 1 / LEVELS


def draw_seed() -> Tensor:
    """[] int64 from torch's generator, which the run's seed fixes and a checkpoint holds."""
    return torch.empty((), dtype=torch.int64).random_(-(2**63), None)


def unsigned(seed: Tensor) -> int:
    return int(seed) & 0xFFFFFFFFFFFFFFFF


def levels(p: float) -> int:
    return round(p * LEVELS)


# ---------------------------------------------------------------- bias + GELU


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.decision_seq.bias_gelu_cpu(F.linear(x, weight), bias)


@torch.library.custom_op("decision_seq::bias_gelu_cpu", mutates_args=(), device_types="cpu")
def bias_gelu_cpu(x: Tensor, bias: Tensor) -> Tensor:
    x, bias = x.contiguous(), bias.contiguous()
    y = torch.empty_like(x)
    call("bias_gelu", x.data_ptr(), bias.data_ptr(), y.data_ptr(), *_sizes(x), threads())
    return y


@torch.library.custom_op(
    "decision_seq::bias_gelu_cpu_backward", mutates_args=(), device_types="cpu"
)
def bias_gelu_cpu_backward(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    dy, x, bias = dy.contiguous(), x.contiguous(), bias.contiguous()
    dx, dbias = torch.empty_like(x), torch.empty_like(bias)
    addresses = [t.data_ptr() for t in (dy, x, bias, dx, dbias)]
    call("bias_gelu_backward", *addresses, *_sizes(x), threads())
    return dx, dbias


def _sizes(x: Tensor) -> tuple[int, int]:
    """Rows and width."""
    return x.numel() // max(x.shape[-1], 1), x.shape[-1]


bias_gelu_cpu.register_fake(lambda x, bias: x.new_empty(x.shape))
bias_gelu_cpu_backward.register_fake(
    lambda dy, x, bias: (x.new_empty(x.shape), bias.new_empty(bias.shape))
)
bias_gelu_cpu.register_autograd(
    lambda ctx, dy: bias_gelu_cpu_backward(dy, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


# ---------------------------------------------------------------- dropout + residual


def dropout_add(x: Tensor, residual: Tensor | None, p: float) -> Tensor:
    return torch.ops.decision_seq.dropout_add_cpu(x, residual, draw_seed(), levels(p))


@torch.library.custom_op("decision_seq::dropout_add_cpu", mutates_args=(), device_types="cpu")
def dropout_add_cpu(x: Tensor, residual: Tensor | None, seed: Tensor, dropped: int) -> Tensor:
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    y = torch.empty_like(x)
    addresses = [0 if t is None else t.data_ptr() for t in (x, residual, y)]
    call("dropout_add", *addresses, unsigned(seed), dropped, *_sizes(x), threads())
    return y


def _save_mask(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    _, ctx.residual, seed, ctx.dropped = inputs  # type: ignore[attr-defined]
    ctx.residual = ctx.residual is not None  # type: ignore[attr-defined]
    ctx.save_for_backward(seed)


def _mask_grads(ctx: torch.autograd.function.FunctionCtx, dy: Tensor) -> tuple:
    (seed,) = ctx.saved_tensors  # type: ignore[attr-defined]
    dx = torch.ops.decision_seq.dropout_add_cpu(dy, None, seed, ctx.dropped)  # type: ignore[attr-defined]
    return dx, dy if ctx.residual else None, None, None  # type: ignore[attr-defined]


dropout_add_cpu.register_fake(lambda x, *_: x.new_empty(x.shape))
dropout_add_cpu.register_autograd(_mask_grads, setup_context=_save_mask)


# ---------------------------------------------------------------- attention


def attention(q: Tensor, kv: Tensor, heads: int, window: int, positions: range, p: float) -> Tensor:
    seed = draw_seed() if p else torch.zeros((), dtype=torch.int64)
    first, every = positions.start, positions.step
    sizes = [heads, min(window, kv.shape[1]), first, every]
    return torch.ops.decision_seq.attention_cpu(q, kv, seed, levels(p), sizes)[0]


@torch.library.custom_op("decision_seq::attention_cpu", mutates_args=(), device_types="cpu")
def attention_cpu(
    q: Tensor, kv: Tensor, seed: Tensor, dropped: int, sizes: list[int]
) -> tuple[Tensor, Tensor]:
    """y [B, l, D], and what backward needs of the softmax [B, H, l]; sizes: see `attention`."""
    q, kv = rows(q), rows(kv)
    y, lse = _attention_outputs(q, kv, seed, dropped, sizes)
    call(
        "attention_forward",
        *(*_qkv(q, kv), y.data_ptr(), lse.data_ptr()),
        *_attention_sizes(q, kv, seed, dropped, sizes),
    )
    return y, lse


@torch.library.custom_op(
    "decision_seq::attention_cpu_backward", mutates_args=(), device_types="cpu"
)
def attention_cpu_backward(
    dy: Tensor,
    y: Tensor,
    lse: Tensor,
    q: Tensor,
    kv: Tensor,
    seed: Tensor,
    dropped: int,
    sizes: list[int],
) -> tuple[Tensor, Tensor]:
    """Gradients of q and kv."""
    dy, q, kv = dy.contiguous(), rows(q), rows(kv)
    dq, dkv = q.new_empty(q.shape), kv.new_empty(kv.shape)
    width = q.shape[2]
    call(
        "attention_backward",
        *(dy.data_ptr(), y.data_ptr(), lse.data_ptr(), *_qkv(q, kv)),
        *(dq.data_ptr(), dkv.data_ptr(), dkv[..., width:].data_ptr(), 2 * width),
        *_attention_sizes(q, kv, seed, dropped, sizes),
    )
    return dq, dkv


def _qkv(q: Tensor, kv: Tensor) -> tuple[int, ...]:
    key, value = kv.chunk(2, dim=-1)
    row = view(kv)[1]
    return *view(q), key.data_ptr(), row, value.data_ptr(), row


def _attention_sizes(
    q: Tensor, kv: Tensor, seed: Tensor, dropped: int, sizes: list[int]
) -> tuple[int, ...]:
    heads, window, first, every = sizes
    batch, asked, width = q.shape
    shape = batch, heads, asked, kv.shape[1], width // heads
    return unsigned(seed), dropped, *shape, first, every, window, threads()


def _attention_outputs(
    q: Tensor, kv: Tensor, seed: Tensor, dropped: int, sizes: list[int]
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[0], sizes[0], q.shape[1])


def _save_attention(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]
) -> None:
    q, kv, seed, ctx.dropped, ctx.sizes = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(*output, q, kv, seed)
    ctx.set_materialize_grads(False)


def _attention_grads(ctx: torch.autograd.function.FunctionCtx, dy: Tensor, _: None) -> tuple:
    saved, rest = ctx.saved_tensors, (ctx.dropped, ctx.sizes)  # type: ignore[attr-defined]
    return *attention_cpu_backward(dy, *saved, *rest), None, None, None


attention_cpu.register_fake(_attention_outputs)
attention_cpu_backward.register_fake(
    lambda dy, y, lse, q, kv, seed, dropped, sizes: (q.new_empty(q.shape), kv.new_empty(kv.shape))
)
attention_cpu.register_autograd(_attention_grads, setup_context=_save_attention)
