"""How the kernels differentiate and what shapes they give. They have no second derivatives.
Without gradients a kernel is called directly, which saves 30 microseconds a call.

A scan, on any device, takes (u, dt, A, B, C, D, z, with_grad) and returns (y, checkpoints); its
backward takes (dy, u, dt, A, B, C, D, z, checkpoints) and returns the gradients of all that is not
None. A convolution takes (x, weight, bias) and returns y, its backward (dy, x, weight, bias).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from decision_seq.ops.operators import batched, differentiable, operator
from decision_seq.ops.seeds import folded, looped

Context = Any  # torch.autograd.function.FunctionCtx


def checkpoint_every(length: int) -> int:
    """Steps between checkpoints: at 20 backward works near a CPU's L1 cache, 32 saves memory."""
    return 20 if length <= 1024 else 32


def scan(kernel: Callable[..., tuple[Tensor, Tensor]], inputs: tuple[Tensor | None, ...]) -> Tensor:
    """y; the checkpoints are only written where a gradient may be asked for."""
    return kernel(*inputs, _with_grad(inputs))[0]


def _with_grad(inputs: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)


def scan_operator(
    name: str,
    forward: Callable,
    backward: Callable,
    outputs: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]],
    grouped: bool = False,
) -> Callable[..., tuple[Tensor, Tensor]]:
    """decision_seq::<name>, differentiable by <name>_backward.

    outputs: (u, A, with_grad) -> empty tensors like those that `forward` returns.
    grouped: whether A and D may be [G, E, N] and [G, E], for G groups of as many rows each.
    """
    run = operator(name, forward, lambda *inputs: outputs(inputs[0], inputs[2], inputs[-1]))
    adjoint = operator(
        f"{name}_backward",
        backward,
        lambda dy, *inputs: [_empty(x) for x in inputs[:-1] if x is not None],
    )

    def save(ctx: Context, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs[:-1], output[1])
        ctx.set_materialize_grads(False)  # or zeros would be written for the checkpoints' gradient

    def gradients(ctx: Context, dy: Tensor, _: None) -> tuple:
        known = adjoint(dy, *ctx.saved_tensors)
        return *known, *[None] * (8 - len(known))

    differentiable(name, gradients, save)

    def vmap(info: Any, dims: tuple, *inputs: Any) -> tuple[Any, Any]:
        known = _with_grad(inputs[:-1])  # within vmap no tensor says that it requires a gradient
        rule = folded(run, data=(0, 1, 3, 4, 6)) if grouped else looped(run)
        return rule(info, dims, *inputs[:-1], known)

    batched(name, vmap)
    return _cheapest(run, forward)


def conv_operator(
    name: str, forward: Callable, backward: Callable, grouped: bool = False
) -> Callable[..., Tensor]:
    """decision_seq::<name>, differentiable by <name>_backward. `grouped` as of a scan, for weights
    [G, E, 1, k] and biases [G, E]."""
    run = operator(name, forward, lambda x, weight, bias: _empty(x))
    adjoint = operator(f"{name}_backward", backward, lambda dy, *inputs: tuple(map(_empty, inputs)))
    differentiable(
        name,
        lambda ctx, dy: adjoint(dy, *ctx.saved_tensors),
        lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    batched(name, folded(run, data=(0,)) if grouped else looped(run))
    return _cheapest(run, forward)


def _cheapest(operator: Callable, forward: Callable) -> Callable:
    def run(*inputs: Any) -> Any:
        seen = torch.is_grad_enabled() or torch.compiler.is_compiling()
        return operator(*inputs) if seen else forward(*inputs)

    return run


def _empty(like: Tensor) -> Tensor:
    return like.new_empty(like.shape)
