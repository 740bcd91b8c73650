"""An agent's step on a GPU as one CUDA graph.

Such a step is a hundred small kernels, and launching them one by one takes several times as long as
they run. A graph launches all of them by one call. It works in fixed memory: what a step takes is
copied there first, and what it gives is copied out, so that states stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from decision_seq.agents.context import Memory, Moment
from decision_seq.backbones.stack import Watch
from decision_seq.ops.dispatch import say_once

if TYPE_CHECKING:
    from decision_seq.agents.base import SequenceAgent

Function = Callable[[list[Tensor]], list[Tensor]]
Record = Callable[[Function, list[Tensor]], tuple[Callable[[], object], list[Tensor]]]


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


class Recorded:
    """A function of tensors of these shapes."""

    def __init__(self, function: Function, inputs: list[Tensor], record: Record) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self.replay, self.outputs = record(function, self.inputs)

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        torch._foreach_copy_(self.inputs, inputs)
        self.replay()
        return [tensor.clone() for tensor in self.outputs]


class Recorder:
    """Records an agent's step when it comes to one that stays the same: past the first K, windows
    are full and so are caches. Other lanes, or weights or statistics elsewhere, are recorded anew.
    A recording has memory of its own: an agent on a GPU acts in one thread at a time."""

    def __init__(self, device: str = "cuda", record: Record = cuda_graph) -> None:
        self.device, self.record = device, record
        self.watch: Watch | None = None
        self.homes: list[tuple[Mapping[str, Tensor | None], str]] = []
        self.key: object = None
        self.recorded: Recorded | None = None
        self.possible = True

    def __reduce__(self) -> tuple[type[Recorder], tuple[str, Record]]:
        """A copy of the agent has weights of its own."""
        return Recorder, (self.device, self.record)

    def advance(self, agent: SequenceAgent, now: Moment) -> tuple[Tensor, Tensor, Memory]:
        """`SequenceAgent.advance`, from a recording if there can be one."""
        if not self._serves(agent, now.times):
            return agent.advance(now)

        def step(inputs: list[Tensor]) -> list[Tensor]:
            observation, action, to_go, timestep, *remembered = inputs
            memory = now.memory.holding(remembered)
            seen = Moment(observation, action, to_go, timestep, now.times, memory)
            predicted, after, later = agent.advance(seen)
            return [predicted, after, *later.tensors()]

        inputs = [now.observation, now.action, now.to_go, now.timestep, *now.memory.tensors()]
        key = self._key(now.memory, inputs)
        if key != self.key:  # what still grows never comes to a second of its kind
            self.key, self.recorded = key, None
        elif self.recorded is None:
            self.recorded = self._try(step, inputs)
        outputs = step(inputs) if self.recorded is None else self.recorded(inputs)
        predicted, after, *remembered = outputs
        return predicted, after, now.memory.holding(remembered)

    def _serves(self, agent: SequenceAgent, times: list[int]) -> bool:
        """Whether the step of lanes at `times` can be a recorded one."""
        if not self.possible or agent.device.type != self.device:
            return False
        if min(times, default=0) < agent.config.context_length or torch.compiler.is_compiling():
            return False
        if self.watch is None:
            self.watch = Watch(agent)
            for module in agent.modules():
                self.homes += [(module._parameters, name) for name in module._parameters]
                self.homes += [(module._buffers, name) for name in module._buffers]
        return self.watch.intact()

    def _key(self, memory: Memory, inputs: list[Tensor]) -> object:
        """What a recorded step holds fixed, beside the modules."""
        tensors = [table[name] for table, name in self.homes]
        places = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        shapes = [(tensor.shape, tensor.dtype) for tensor in inputs]
        return type(memory), places, shapes, torch.is_autocast_enabled(self.device)

    def _try(self, step: Function, inputs: list[Tensor]) -> Recorded | None:
        """None for an agent that does what a graph cannot hold, such as to look at a number."""
        try:
            return Recorded(step, inputs, self.record)
        except RuntimeError as error:
            self.possible, why = False, str(error).splitlines()[0]
            say_once(f"decision-seq: this agent's steps are not recorded as a CUDA graph ({why}).")
            return None
