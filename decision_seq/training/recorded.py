"""Gradient steps as one CUDA graph: on a GPU a step of a small model is several hundred kernels,
which take longer to launch than to run. Loss, gradient, clipping, optimiser and averages are
launched as one, and compute what they compute one by one, dropout included. torch.compile would
take a minute to begin with, and other kernels; whatever waits for no number can be recorded.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from decision_seq.data.streams import Sampler
from decision_seq.data.windows import Batch
from decision_seq.hardware import to_device
from decision_seq.ops.graphs import Graph, Record, aside, cuda_graph
from decision_seq.run_config import RunConfig
from decision_seq.training.step import (
    Learner,
    batch_loss,
    gradient_step,
    next_batch,
    step_numbers,
    update,
)

WARM_UPS = 3  # steps before one is recorded


def can_record(learner: Learner, config: RunConfig) -> bool:
    """Whether `train.compile` asks for it, on a GPU. States that go from batch to batch and several
    processes are not recorded, nor are several seeds at once, which share their launches."""
    cuda = learner.agent.device.type == "cuda"
    wanted = cuda and config.train.compile == "auto"
    return wanted and not config.train.stream and learner.world.size == 1


class RecordedSteps:
    """Gradient steps of one run, as `gradient_step` makes them."""

    def __init__(
        self, learner: Learner, sampler: Sampler, config: RunConfig, record: Record = cuda_graph
    ) -> None:
        self.learner, self.sampler, self.config, self.record = learner, sampler, config, record
        self.fields: list[str] = []  # of a batch
        self.shapes: list[torch.Size] = []
        self.graph: Graph | None = None
        self.done, self.possible = 0, True  # steps of these shapes; whether one can be recorded

    def __call__(self) -> Tensor:
        """Make the next step. Returns the gradient's norm before clipping."""
        before = self.learner.random.state()
        if self.possible:
            try:
                return self._step()
            except RuntimeError as error:  # an agent does what a graph cannot hold
                self.possible, why = False, str(error).splitlines()[0]
                told = f"decision-seq: gradient steps are not recorded as a CUDA graph ({why})"
                print(told, file=sys.stderr)
                self.learner.random.restore(before)
        return gradient_step(self.learner, self.sampler, self.config)

    def _step(self) -> Tensor:
        learner, settings = self.learner, self.config.train
        batch = vars(next_batch(learner, self.sampler, settings))
        numbers = step_numbers(learner.step, settings)
        sent = to_device(torch.tensor(numbers, dtype=torch.float64), learner.agent.device)
        self.fields = list(batch)
        inputs = [*batch.values(), sent]
        shapes = [tensor.shape for tensor in inputs]
        if shapes != self.shapes:
            self.shapes, self.graph, self.done = shapes, None, 0
        with learner.random:
            (norm,) = self._run(inputs)
        self.done += 1
        for group in learner.optimizer.param_groups:
            group["lr"] = numbers[1]  # as a number, for checkpoints
        learner.step += 1
        return norm

    def _run(self, inputs: list[Tensor]) -> list[Tensor]:
        if self.done < WARM_UPS:
            with aside(self.learner.agent.device, may_wait=self.done < WARM_UPS - 1):
                return self._tensors(inputs)
        if self.graph is None:
            self.graph = self._recorded(inputs)
        return self.graph(inputs)

    def _recorded(self, inputs: list[Tensor]) -> Graph:
        groups = self.learner.optimizer.param_groups
        for group in groups:
            group["capturable"] = True  # it asks for that within a graph
        try:
            return Graph(self._tensors, inputs, self.record)
        finally:
            for group in groups:
                group["capturable"] = False

    def _tensors(self, inputs: list[Tensor]) -> list[Tensor]:
        """A step as a function of tensors alone: no number of Python's may differ between steps."""
        *batch, numbers = inputs
        step, rate, kept = numbers.unbind()
        loss = batch_loss(
            self.learner, Batch(**dict(zip(self.fields, batch, strict=True))), self.config.train
        )
        return [update(self.learner, loss, self.config.train, step, rate.float(), kept.float())]
