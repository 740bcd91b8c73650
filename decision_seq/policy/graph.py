"""The engine that launches a whole step as one CUDA graph.

A step is a hundred small kernels, and launching them one by one takes several times as long as they
run. A graph works in fixed memory: what a step takes is copied there first, and what it gives is
copied out, so that states stay what they were.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from decision_seq.agents import SequenceAgent
from decision_seq.hardware import all_to_device
from decision_seq.policy.contexts import PolicyState
from decision_seq.policy.eager import EagerEngine, Inputs, forward_step
from decision_seq.settings import Context

Function = Callable[[list[Tensor]], list[Tensor]]
Record = Callable[[Function, list[Tensor]], tuple[Callable[[], object], list[Tensor]]]


class GraphEngine(EagerEngine):
    """Records a step when it comes to one that stays the same: past the first K, windows are full
    and so are caches. With other lanes it is recorded anew. One thread at a time."""

    record: Record  # replaced by tests, which have no GPU

    def __init__(self, agent: SequenceAgent, context: Context, lanes: int) -> None:
        super().__init__(agent, context, lanes)
        self.record = cuda_graph
        self.shapes: list[torch.Size] = []
        self.graph: Graph | None = None
        self.possible = True

    @staticmethod
    def unusable(agent: SequenceAgent) -> str:
        """Why it cannot take `agent`, or ""."""
        return "" if agent.device.type == "cuda" else f"the agent is on {agent.device}, not a GPU"

    def _sent(self, inputs: Inputs) -> list[Tensor]:
        """All by one move."""
        arrays = (inputs.observation, inputs.action, inputs.return_to_go, inputs.timestep)
        here, dtype = all_to_device(arrays, self.agent.device), self.agent.dtype
        return [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in here]

    def _run(self, seen: list[Tensor], times: list[int]) -> tuple[Tensor, PolicyState]:
        if not self.possible or min(times, default=0) < self.agent.config.context_length:
            return super()._run(seen, times)

        def step(inputs: list[Tensor]) -> list[Tensor]:
            state = self.state.holding(inputs[len(seen) :])
            predicted, after = forward_step(self.agent, inputs[: len(seen)], times, state)
            return [predicted, *after.tensors()]

        inputs = [*seen, *self.state.tensors()]
        shapes = [tensor.shape for tensor in inputs]
        if shapes != self.shapes:  # what still grows never comes to a second of its kind
            self.shapes, self.graph = shapes, None
        elif self.graph is None:
            self.graph = self._try(step, inputs)
        predicted, *remembered = step(inputs) if self.graph is None else self.graph(inputs)
        return predicted, self.state.holding(remembered)

    def _try(self, step: Function, inputs: list[Tensor]) -> Graph | None:
        """None for an agent that does what a graph cannot hold, such as to look at a number."""
        try:
            return Graph(step, inputs, self.record)
        except RuntimeError as error:
            self.possible, why = False, str(error).splitlines()[0]
            print(f"decision-seq: steps are not recorded as a CUDA graph ({why})", file=sys.stderr)
            return None


class Graph:
    """A function of tensors of these shapes."""

    def __init__(self, function: Function, inputs: list[Tensor], record: Record) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self.replay, self.outputs = record(function, self.inputs)

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        torch._foreach_copy_(self.inputs, inputs)
        self.replay()
        return [tensor.clone() for tensor in self.outputs]


def cuda_graph(function: Function, inputs: list[Tensor]) -> tuple[Callable[[], None], list[Tensor]]:
    """What computes `function` of `inputs` again once they have changed, and where the outputs are
    then. Raises RuntimeError, before anything is recorded, if the function waits for the GPU."""
    with torch.cuda.device(inputs[0].device):
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):  # what libraries set up at first must not be recorded
            for _ in range(2):
                function(inputs)
            with never_waiting():
                function(inputs)
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=aside):
                outputs = function(inputs)
        finally:  # what fails inside can leave the other stream current
            torch.cuda.set_stream(current)
        return graph.replay, outputs


@contextmanager
def never_waiting() -> Iterator[None]:
    """What would wait for the GPU raises RuntimeError instead."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
