"""How the fused operators differentiate and what shapes they give.

A scan, on any device, takes (u, dt, A, B, C, D, z, with_grad) and returns (y, checkpoints); its
backward takes (dy, u, dt, A, B, C, D, z, checkpoints) and returns the gradients of all that is not
None. A convolution takes (x, weight, bias) and returns y, its backward (dy, x, weight, bias).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import custom_op

Context = Any  # torch.autograd.function.FunctionCtx, to which `save` adds what it likes


def differentiable(
    name: str,
    forward: Callable,
    backward: Callable,
    outputs: Callable,
    gradients: Callable,
    save: Callable[[Context, tuple, Any], None],
    grads: Callable[..., tuple],
) -> Callable:
    """A kernel as a function of tensors that autograd, torch.compile and torch.export know.

    Compiled code sees the custom operator decision_seq::<name>. Other code takes a shorter way to
    the same functions: an operator's dispatch costs 50 us a call, 3 ms a training step.

    Args:
        name: of the operator; its gradient is <name>_backward.
        forward, backward: compute on real tensors.
        outputs, gradients: give what those return, empty.
        save: (ctx, inputs, output), keeps what `grads` needs.
        grads: (backward, ctx, *gradients of the output) -> gradients of the inputs, by `backward`.
    """
    operator: Any = custom_op(f"decision_seq::{name}", forward, mutates_args=())
    adjoint: Any = custom_op(f"decision_seq::{name}_backward", backward, mutates_args=())
    operator.register_fake(outputs)
    adjoint.register_fake(gradients)
    operator.register_autograd(partial(grads, adjoint), setup_context=save)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Context, *inputs: Any) -> Any:
            output = forward(*inputs)
            save(ctx, inputs, output)
            return output

        @staticmethod
        @once_differentiable
        def backward(ctx: Context, *dys: Tensor) -> tuple:
            return grads(backward, ctx, *dys)

    def run(*inputs: Any) -> Any:
        return operator(*inputs) if torch.compiler.is_compiling() else Eager.apply(*inputs)

    return run


def checkpoint_every(length: int) -> int:
    """Steps between checkpoints: at 20 backward works near a CPU's L1 cache, 32 saves memory."""
    return 20 if length <= 1024 else 32


def scan(
    operator: Callable[..., tuple[Tensor, Tensor]], inputs: tuple[Tensor | None, ...]
) -> Tensor:
    """y; the checkpoints are only written where a gradient may be asked for."""
    with_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    return operator(*inputs, with_grad)[0]


def scan_operator(
    name: str,
    forward: Callable,
    backward: Callable,
    outputs: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]],
) -> Callable[..., tuple[Tensor, Tensor]]:
    """outputs: (u, A, with_grad) -> empty tensors like those that `forward` returns."""

    def save(ctx: Context, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs[:-1], output[1])
        ctx.set_materialize_grads(False)  # or zeros would be written for the checkpoints' gradient

    def grads(backward: Callable, ctx: Context, dy: Tensor, _: None) -> tuple:
        known = backward(dy, *ctx.saved_tensors)
        return *known, *[None] * (8 - len(known))

    return differentiable(
        name,
        forward,
        backward,
        outputs=lambda *inputs: outputs(inputs[0], inputs[2], inputs[-1]),
        gradients=lambda *inputs: [_empty(x) for x in inputs[1:-1] if x is not None],
        save=save,
        grads=grads,
    )


def conv_operator(name: str, forward: Callable, backward: Callable) -> Callable[..., Tensor]:
    return differentiable(
        name,
        forward,
        backward,
        outputs=lambda x, weight, bias: _empty(x),
        gradients=lambda dy, *inputs: tuple(map(_empty, inputs)),
        save=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
        grads=lambda backward, ctx, dy: backward(dy, *ctx.saved_tensors),
    )


def _empty(like: Tensor) -> Tensor:
    return like.new_empty(like.shape)
