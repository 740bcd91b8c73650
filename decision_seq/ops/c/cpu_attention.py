"""The C kernel for causal attention on CPU, forward and backward; float32, or bfloat16 for which it
computes in float32. Memory grows with L, not L^2."""

from collections.abc import Callable

import torch
from torch import Tensor

from decision_seq.ops.autograd import Context, differentiable
from decision_seq.ops.c.cpu import call, half, rows, threads, view
from decision_seq.ops.c.cpu_block import draw_seed, levels, unsigned


def attention(q: Tensor, kv: Tensor, heads: int, window: int, positions: range, p: float) -> Tensor:
    seed = draw_seed() if p else torch.zeros((), dtype=torch.int64)
    sizes = [heads, min(window, kv.shape[1]), positions.start, positions.step]
    return attention_cpu(q, kv, seed, levels(p), sizes)[0]


def _forward(
    q: Tensor, kv: Tensor, seed: Tensor, dropped: int, sizes: list[int]
) -> tuple[Tensor, Tensor]:
    """y [B, l, D], and what backward needs of the softmax [B, H, l]; sizes: see `attention`."""
    q, kv = rows(q), rows(kv)
    y, lse = _outputs(q, kv, seed, dropped, sizes)
    numbers = _numbers(q, kv, seed, dropped, sizes)
    call("attention_forward", *_addresses(q, kv), y.data_ptr(), lse.data_ptr(), *numbers)
    return y, lse


def _backward(
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
        *(dy.data_ptr(), y.data_ptr(), lse.data_ptr(), *_addresses(q, kv)),
        *(dq.data_ptr(), dkv.data_ptr(), dkv[..., width:].data_ptr(), 2 * width),
        *_numbers(q, kv, seed, dropped, sizes),
    )
    return dq, dkv


def _addresses(q: Tensor, kv: Tensor) -> tuple[int, ...]:
    key, value = kv.chunk(2, dim=-1)
    row = view(kv)[1]
    return *view(q), key.data_ptr(), row, value.data_ptr(), row


def _numbers(
    q: Tensor, kv: Tensor, seed: Tensor, dropped: int, sizes: list[int]
) -> tuple[int, ...]:
    heads, window, first, every = sizes
    batch, asked, width = q.shape
    shape = batch, heads, asked, kv.shape[1], width // heads
    return unsigned(seed), dropped, half(q), *shape, first, every, window, threads()


def _outputs(
    q: Tensor, kv: Tensor, seed: Tensor, dropped: int, sizes: list[int]
) -> tuple[Tensor, Tensor]:
    lse = q.new_empty(q.shape[0], sizes[0], q.shape[1], dtype=torch.float32)
    return q.new_empty(q.shape), lse


def _save(ctx: Context, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, kv, seed, ctx.dropped, ctx.sizes = inputs
    ctx.save_for_backward(*output, q, kv, seed)
    ctx.set_materialize_grads(False)


def _grads(backward: Callable, ctx: Context, dy: Tensor, _: None) -> tuple:
    return *backward(dy, *ctx.saved_tensors, ctx.dropped, ctx.sizes), None, None, None


attention_cpu = differentiable(
    "attention_cpu",
    _forward,
    _backward,
    _outputs,
    lambda dy, y, lse, q, kv, *_: (q.new_empty(q.shape), kv.new_empty(kv.shape)),
    _save,
    _grads,
)
