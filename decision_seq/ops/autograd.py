"""How the fused operators differentiate and what shapes they give: the same for every device.

Such an operator takes (u, dt, A, B, C, D, z, with_grad) and returns (y, checkpoints); its backward
takes (dy, u, dt, A, B, C, D, z, checkpoints) and returns the gradients of all that is not None.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def checkpoint_every(length: int) -> int:
    """Steps between checkpoints: at 16 backward works in a CPU's L1 cache, 32 saves memory."""
    return 16 if length <= 1024 else 32


def scan(
    operator: Callable[..., tuple[Tensor, Tensor]], inputs: tuple[Tensor | None, ...]
) -> Tensor:
    """y; the checkpoints are only written where a gradient may be asked for."""
    with_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    return operator(*inputs, with_grad)[0]


def register_scan(
    operator: Any, backward: Any, outputs: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]
) -> None:
    """Make `operator` differentiable by the operator `backward`, and both known to torch.compile.

    outputs: (u, A, with_grad) -> empty tensors like the operator's results.
    """

    def save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs[:-1], output[1])
        ctx.set_materialize_grads(False)  # or zeros would be written for the checkpoints' gradient

    def grads(ctx: torch.autograd.function.FunctionCtx, dy: Tensor, _: None) -> tuple:
        known = backward(dy, *ctx.saved_tensors)  # type: ignore[attr-defined]
        return *known, *[None] * (8 - len(known))

    operator.register_fake(lambda *inputs: outputs(inputs[0], inputs[2], inputs[-1]))
    backward.register_fake(lambda *inputs: [_empty(x) for x in inputs[1:-1] if x is not None])
    operator.register_autograd(grads, setup_context=save)


def register_conv(operator: Any, backward: Any) -> None:
    """Likewise for (x, weight, bias) -> y with backward (dy, x, weight, bias) -> gradients."""

    def save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def grads(ctx: torch.autograd.function.FunctionCtx, dy: Tensor) -> tuple:
        return backward(dy, *ctx.saved_tensors)  # type: ignore[attr-defined]

    operator.register_fake(lambda x, weight, bias: _empty(x))
    backward.register_fake(lambda dy, *inputs: tuple(map(_empty, inputs)))
    operator.register_autograd(grads, setup_context=save)


def _empty(like: Tensor) -> Tensor:
    return like.new_empty(like.shape)
