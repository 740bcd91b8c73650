"""The engine that launches a whole step as one CUDA graph. What a step takes and gives is copied,
so that states stay what they were.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from decision_seq.agents import SequenceAgent
from decision_seq.hardware import all_to_device
from decision_seq.ops.graphs import Function, Graph, Record, aside, cuda_graph
from decision_seq.policy.contexts import PolicyState
from decision_seq.policy.eager import EagerEngine, Inputs, forward_step
from decision_seq.settings import Context


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
            for may_wait in (True, True, False):
                with aside(self.agent.device, may_wait):
                    step(inputs)
            return Graph(step, inputs, self.record)
        except RuntimeError as error:
            self.possible, why = False, str(error).splitlines()[0]
            print(f"decision-seq: steps are not recorded as a CUDA graph ({why})", file=sys.stderr)
            return None
