"""Gradient steps as one CUDA graph: on a GPU a step of a small model is several hundred kernels,
which take longer to launch than to run. Loss, gradient, clipping, optimiser and averages are
launched as one, and compute what they compute one by one, dropout included. torch.compile would
take a minute to begin with, and other kernels; whatever waits for no number can be recorded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol

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
    processes are not recorded."""
    cuda = learner.agent.device.type == "cuda"
    wanted = cuda and config.train.compile == "auto"
    return wanted and not config.train.stream and learner.world.size == 1


class Steps(Protocol):
    """Gradient steps of one run, or of several at once, of which a step can be a function of
    tensors alone: no number of Python's differs between one and the next."""

    @property
    def learners(self) -> Sequence[Learner]:
        """Those that learn; all on one device."""

    def inputs(self) -> list[Tensor]:
        """What differs between steps: the next one's batches and numbers."""

    def compute(self, inputs: list[Tensor]) -> list[Tensor]:
        """The step. Returns one tensor, the norms of the gradients before clipping."""

    def ended(self) -> None:
        """Count it."""

    def plain(self) -> Tensor:
        """All that, kernel by kernel."""

    def recording(self) -> AbstractContextManager[object]:
        """Within, `compute` is recorded rather than carried out."""


class RecordedSteps:
    """`steps`, recorded after the first few, as `record` does it."""

    def __init__(self, steps: Steps, record: Record | None = None) -> None:
        self.steps, streams = steps, [learner.random for learner in steps.learners]
        generators = [own for stream in streams for own in stream.generators]
        self.streams, self.device = streams, steps.learners[0].agent.device
        self.record: Record = record or partial(cuda_graph, generators=generators)
        self.shapes: list[torch.Size] = []
        self.graph: Graph | None = None
        self.done, self.possible = 0, True  # steps of these shapes; whether one can be recorded

    def __call__(self) -> Tensor:
        """Make the next step. Returns the norms of the gradients before clipping."""
        before = [stream.state() for stream in self.streams]
        if self.possible:
            try:
                return self._step()
            except RuntimeError as error:  # an agent does what a graph cannot hold
                self.possible, why = False, str(error).splitlines()[0]
                told = f"decision-seq: gradient steps are not recorded as a CUDA graph ({why})"
                print(told, file=sys.stderr)
                for stream, state in zip(self.streams, before, strict=True):
                    stream.restore(state)
        return self.steps.plain()

    def _step(self) -> Tensor:
        inputs = self.steps.inputs()
        shapes = [tensor.shape for tensor in inputs]
        if shapes != self.shapes:
            self.shapes, self.graph, self.done = shapes, None, 0
        (norms,) = self._run(inputs)
        self.done += 1
        self.steps.ended()
        return norms

    def _run(self, inputs: list[Tensor]) -> list[Tensor]:
        if self.done < WARM_UPS:
            with aside(self.device, may_wait=self.done < WARM_UPS - 1):
                return self.steps.compute(inputs)
        if self.graph is None:
            with self.steps.recording():
                self.graph = Graph(self.steps.compute, inputs, self.record)
        return self.graph(inputs)


class SingleSteps:
    """Gradient steps of one run, as `gradient_step` makes them."""

    def __init__(self, learner: Learner, sampler: Sampler, config: RunConfig) -> None:
        self.learners, self.sampler, self.config = [learner], sampler, config
        self.fields: list[str] = []  # of a batch

    def inputs(self) -> list[Tensor]:
        (learner,), settings = self.learners, self.config.train
        batch = vars(next_batch(learner, self.sampler, settings))
        numbers = torch.tensor(step_numbers(learner.step, settings), dtype=torch.float64)
        self.fields = list(batch)
        return [*batch.values(), to_device(numbers, learner.agent.device)]

    def compute(self, inputs: list[Tensor]) -> list[Tensor]:
        (learner,), (*batch, numbers) = self.learners, inputs
        step, rate, kept = numbers.unbind()
        with learner.random:
            whole = Batch(**dict(zip(self.fields, batch, strict=True)))
            loss = batch_loss(learner, whole, self.config.train)
        return [update(learner, loss, self.config.train, step, rate.float(), kept.float())]

    def ended(self) -> None:
        (learner,) = self.learners
        rate = step_numbers(learner.step, self.config.train)[1]
        for group in learner.optimizer.param_groups:
            group["lr"] = rate  # as a number, for checkpoints
        learner.step += 1

    def plain(self) -> Tensor:
        return gradient_step(self.learners[0], self.sampler, self.config)

    @contextmanager
    def recording(self) -> Iterator[None]:
        groups = self.learners[0].optimizer.param_groups
        for group in groups:
            group["capturable"] = True  # it asks for that within a graph
        try:
            yield
        finally:
            for group in groups:
                group["capturable"] = False
