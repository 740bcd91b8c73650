"""In the place of a CUDA graph, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from decision_seq.ops.graphs import Function
from decision_seq.training.random import RandomStream


class Tape(TorchDispatchMode):
    """A `Record` that writes down PyTorch's operations with their tensors and numbers, and carries
    them out again in the same memory: no line of Python runs again. As with a graph, recording
    changes nothing, what looks at a number raises RuntimeError, and each stream of random numbers
    goes on from where it is: entering and leaving one is written down, too."""

    def __init__(self) -> None:
        super().__init__()
        self.recordings = self.replays = 0

    def __call__(
        self, function: Function, inputs: list[Tensor]
    ) -> tuple[Callable[[], None], list[Tensor]]:
        self.recordings += 1
        self.calls: list[tuple[Callable[[], Any], list[Tensor]]] = []
        self.written: list[tuple[Tensor, Tensor]] = []  # with what was there before
        self.streams: dict[RandomStream, list[Tensor]] = {}  # likewise
        try:
            with pytest.MonkeyPatch.context() as patch, self:
                for name in ("__enter__", "__exit__"):
                    patch.setattr(RandomStream, name, self._noted(getattr(RandomStream, name)))
                outputs = function(inputs)
        finally:
            for stream, state in self.streams.items():
                stream.restore(state)
            with torch.no_grad():
                for tensor, before in reversed(self.written):
                    tensor.copy_(before)
        return self._replay, outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a number was looked at")
        kwargs = kwargs or {}
        for place, argument in enumerate(func._schema.arguments):
            if argument.is_write:
                given = args[place] if place < len(args) else kwargs.get(argument.name)
                self.written += [(alias, alias.clone()) for alias in _aliases(given)]
        result = func(*args, **kwargs)
        self.calls.append((partial(func, *args, **kwargs), _aliases(result)))
        return result

    def _noted(self, method: Callable[..., None]) -> Callable[..., None]:
        """The method of a stream, written down when it is called."""

        def call(stream: RandomStream, *of: object) -> None:
            self.streams.setdefault(stream, stream.state())
            self.calls.append((partial(method, stream, *of), []))
            method(stream, *of)

        return call

    def _replay(self) -> None:
        self.replays += 1
        with torch._C._AutoDispatchBelowAutograd():  # where they were written down
            for call, results in self.calls:
                for old, new in zip(results, _aliases(call()), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def _aliases(tensors: Any) -> list[Tensor]:
    """Of what may change its shape in place later on."""
    return [leaf.detach() for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor)]
