"""How the fused scan operators differentiate: the same for every device that has one.

Such an operator takes (u, dt, A, B, C, D, z, with_grad) and returns (y, checkpoints); its backward
takes (dy, u, dt, A, B, C, D, z, checkpoints) and returns the gradients of all that is not None.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def scan(
    operator: Callable[..., tuple[Tensor, Tensor]], inputs: tuple[Tensor | None, ...]
) -> Tensor:
    """y; the checkpoints are only written where a gradient may be asked for."""
    with_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    return operator(*inputs, with_grad)[0]


def register_scan(operator: Any, backward: Callable[..., list[Tensor]]) -> None:
    """Make `operator` differentiable by `backward`."""

    def save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs[:-1], output[1])
        ctx.set_materialize_grads(False)  # or zeros would be written for the checkpoints' gradient

    def grads(ctx: torch.autograd.function.FunctionCtx, dy: Tensor, _: None) -> tuple:
        known = backward(dy, *ctx.saved_tensors)  # type: ignore[attr-defined]
        return *known, *[None] * (8 - len(known))

    operator.register_autograd(grads, setup_context=save)


def register_conv(operator: Any, backward: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> None:
    """Likewise for (x, weight, bias) -> y with backward (dy, x, weight, bias) -> gradients."""

    def save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def grads(ctx: torch.autograd.function.FunctionCtx, dy: Tensor) -> tuple:
        return backward(dy, *ctx.saved_tensors)  # type: ignore[attr-defined]

    operator.register_autograd(grads, setup_context=save)
