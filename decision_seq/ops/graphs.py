"""A function of tensors as one CUDA graph.

A step of acting or training is a hundred small kernels and more, and launching them one by one
takes several times as long as they run. A graph works in fixed memory: what the function takes is
copied there first, and what it gives is copied out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

Function = Callable[[list[Tensor]], list[Tensor]]
# what computes the function of these inputs again once they have changed, and its outputs
Record = Callable[[Function, list[Tensor]], tuple[Callable[[], object], list[Tensor]]]


class Graph:
    """A function of tensors of these shapes."""

    def __init__(self, function: Function, inputs: list[Tensor], record: Record) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self.replay, self.outputs = record(function, self.inputs)

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        torch._foreach_copy_(self.inputs, inputs)
        self.replay()
        return [tensor.clone() for tensor in self.outputs]


def cuda_graph(
    function: Function, inputs: list[Tensor], generators: Sequence[torch.Generator] = ()
) -> tuple[Callable[[], None], list[Tensor]]:
    """A `Record` of what has run `aside` already. The function is not carried out.

    generators: beside the device's own, those whose states the function draws from.
    """
    device = inputs[0].device
    with torch.cuda.device(device):
        current, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, stream=_stream(device)):
                outputs = function(inputs)
        finally:  # what fails inside can leave the other stream current
            torch.cuda.set_stream(current)
        return graph.replay, outputs


@contextmanager
def aside(device: torch.device, may_wait: bool = True) -> Iterator[None]:
    """What is to be recorded runs here before: what libraries set up at first must not be recorded.
    On a CPU nothing is changed.

    may_wait: else what would wait for the GPU raises RuntimeError, before anything is recorded.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        current, own = torch.cuda.current_stream(), _stream(device)
        own.wait_stream(current)
        try:
            with torch.cuda.stream(own), nullcontext() if may_wait else _never_waiting():
                yield
        finally:
            current.wait_stream(own)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextmanager
def _never_waiting() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
