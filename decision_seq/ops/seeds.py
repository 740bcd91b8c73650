"""Several seeds trained as one (`training/stacked.py`): what of them cannot be one operation over a
further dimension, because each draws random numbers of its own, or for want of such an operation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

Stream = AbstractContextManager[Any]  # within it, torch's generators are one seed's
_STREAMS: ContextVar[Sequence[Stream]] = ContextVar("streams", default=())


@contextlib.contextmanager
def each_drawing_from(streams: Sequence[Stream]) -> Iterator[None]:
    """Within, `torch.func.vmap` maps over seeds: what passes through `each_seed` draws for seed s
    from `streams[s]`."""
    token = _STREAMS.set(streams)
    try:
        yield
    finally:
        _STREAMS.reset(token)


def stacked() -> bool:
    """Whether `torch.func.vmap` maps over seeds here; what is compiled is of one seed."""
    return not torch.compiler.is_compiling() and bool(_STREAMS.get())


def each_seed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)`; where seeds are stacked, of each by itself, drawing from its stream."""
    return (
        seed_by_seed([function] * len(_STREAMS.get()), *tensors)
        if stacked()
        else function(*tensors)
    )


def seed_by_seed(functions: Sequence[Callable[..., Tensor]], *tensors: Tensor) -> Tensor:
    """`functions[s](*tensors)` of each stacked seed s, as `each_seed` calls them."""
    y: Tensor = _EachSeed.apply(functions, *tensors)
    return y


class _EachSeed(torch.autograd.Function):
    """Only its vmap rule is used; what that calls is differentiated as it is."""

    @staticmethod
    def forward(functions: Sequence[Callable[..., Tensor]], *tensors: Tensor) -> Tensor:
        raise AssertionError("seeds are not stacked")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any, dims: tuple, functions: Sequence[Callable[..., Tensor]], *tensors: Tensor
    ) -> tuple[Tensor, int]:
        outputs = []
        seeds = zip(*unstacked(info.batch_size, dims[-len(tensors) :], tensors), strict=True)
        for stream, function, inputs in zip(_STREAMS.get(), functions, seeds, strict=True):
            with stream:
                outputs.append(function(*inputs))
        return torch.stack(outputs), 0


def looped(operator: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """The vmap rule of a kernel that takes one set of weights: one call for each set. Of an
    operator with a second output, which none but its own gradient reads, that is left out."""

    def rule(info: Any, dims: tuple, *inputs: Any) -> tuple[Any, Any]:
        each = [operator(*i) for i in zip(*unstacked(info.batch_size, dims, inputs), strict=True)]
        if isinstance(each[0], Tensor):
            return torch.stack(each), 0
        return (torch.stack([y for y, _ in each]), each[0][1]), (0, None)

    return rule


def folded(operator: Callable[..., Any], data: Sequence[int]) -> Callable[..., tuple[Any, Any]]:
    """The vmap rule of a kernel that takes the weights [S, ...] of S groups of rows: seeds become
    rows. `data` says which inputs have rows."""

    def rule(info: Any, dims: tuple, *inputs: Any) -> tuple[Any, Any]:
        stacked = []
        for place, (x, dim) in enumerate(zip(inputs, dims, strict=True)):
            if isinstance(x, Tensor):
                x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
                x = x.flatten(0, 1) if place in data else x
            stacked.append(x)
        y = operator(*stacked)
        if isinstance(y, Tensor):
            return y.unflatten(0, (info.batch_size, -1)), 0
        return (y[0].unflatten(0, (info.batch_size, -1)), y[1]), (0, None)

    return rule


def unstacked(count: int, dims: Sequence[int | None], inputs: Sequence[Any]) -> list[Sequence[Any]]:
    """Each input's `count` slices along its dimension of `dims`; copies of it if there is none."""
    pairs = zip(dims, inputs, strict=True)
    return [[x] * count if dim is None else x.unbind(dim) for dim, x in pairs]
