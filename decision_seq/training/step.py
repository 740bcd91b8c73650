"""A gradient step, and everything that it changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from decision_seq.agents import SequenceAgent
from decision_seq.backbones.contract import State
from decision_seq.data.streams import Sampler, StreamSampler
from decision_seq.data.windows import Batch
from decision_seq.run_config import RunConfig, TrainConfig
from decision_seq.training import stream
from decision_seq.training.distributed import World
from decision_seq.training.faults import FiniteGuard
from decision_seq.training.optim import autocast, average_decay, learning_rate
from decision_seq.training.random import RandomStream


@dataclass
class Learner:
    """Everything that changes during training."""

    agent: SequenceAgent
    averaged: SequenceAgent  # the moving average of the weights, or the agent itself
    optimizer: torch.optim.Optimizer
    guard: FiniteGuard
    loss_sum: torch.Tensor  # of the batches since the last logged row that were not skipped
    loss_count: torch.Tensor  # of these
    step: int = 0
    world: World = field(default_factory=World)
    random: RandomStream = field(default_factory=RandomStream)  # of dropout
    carried: State | None = None  # on streams: the backbone's after the window before

    def __post_init__(self) -> None:
        self.loss: Callable[[Batch], torch.Tensor] = self.world.loss_of(self.agent)
        self.weights: list[torch.Tensor] = list(self.agent.parameters())

    def state(self) -> dict[str, Any]:
        """What resuming needs, as tensors and plain values."""
        cpu, *cuda = self.random.state()
        return {
            "step": self.step,
            "agent": self.agent.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "skipped": self.guard.skipped,
            "torch_rng": cpu,
            "cuda_rng": cuda,
            "carried": self.carried,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`, bit for bit on CPU."""
        self.step = state["step"]
        self.agent.load_state_dict(state["agent"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss_sum.copy_(state["loss_sum"])
        self.loss_count.copy_(state["loss_count"])
        self.guard.skipped.copy_(state["skipped"])
        self.random.restore([state["torch_rng"], *state["cuda_rng"]])
        if (carried := state.get("carried")) is not None:
            device = self.agent.device
            self.carried = [{k: t.to(device) for k, t in part.items()} for part in carried]


def gradient_step(learner: Learner, sampler: Sampler, config: RunConfig) -> Tensor:
    """One step of AdamW on one batch. Returns the gradient's norm before clipping."""
    settings = config.train
    batch, numbers = next_batch(learner, sampler, settings), step_numbers(learner.step, settings)
    with learner.random:
        loss = batch_loss(learner, batch, settings)
    norm = update(learner, loss, settings, *numbers)
    learner.step += 1
    return norm


def next_batch(learner: Learner, sampler: Sampler, settings: TrainConfig) -> Batch:
    """That of the next step; the agent is brought to where it is learned from."""
    if isinstance(sampler, StreamSampler):
        begins = sampler.begins(learner.step, settings.batch_size)
        learner.carried = stream.begin(learner.agent, learner.carried, begins)
    if not learner.agent.training:  # as rollouts and validation leave it
        learner.agent.train()
    return sampler.batch(learner.step, settings.batch_size, learner.world.rows)


def step_numbers(step: int, settings: TrainConfig) -> tuple[int, float, float]:
    """What differs between steps beside the batch: the step, its rate, what an average keeps."""
    return step, learning_rate(step, settings), average_decay(step, settings)


def batch_loss(learner: Learner, batch: Batch, settings: TrainConfig) -> Tensor:
    """[], with a gradient; it draws from torch's generators as they are."""
    with autocast(learner.agent.device, settings.precision):
        loss, learner.carried = stream.loss_after(
            learner.agent, learner.carried, batch, learner.loss
        )
        return loss


def update(
    learner: Learner,
    loss: Tensor,
    settings: TrainConfig,
    step: int | Tensor,
    rate: float | Tensor,
    kept: float | Tensor,
) -> Tensor:
    """Bring the weights, their average and the counts to after the step. Returns the gradient's
    norm before clipping.

    Args:
        learner: all but its `step` is changed, in place.
        loss: [] of the step's batch.
        settings: of the run.
        step: from 0; as `rate` and `kept` (`step_numbers`) a number, or a tensor [] on the device.
        rate: the learning rate.
        kept: what the moving average keeps of itself.
    """
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    learner.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    loss = learner.world.mean(loss.detach())
    norm = torch.nn.utils.clip_grad_norm_(learner.weights, settings.gradient_clip)
    skip = learner.guard.judge(step, loss, norm)
    learner.optimizer.found_inf = skip  # type: ignore[attr-defined]  # read by fused AdamW
    learner.optimizer.step()
    if learner.carried is not None:
        learner.carried = stream.forget(learner.carried, skip)
    if settings.ema is not None:
        pairs = zip(learner.averaged.parameters(), learner.weights, strict=True)
        with torch.no_grad():
            for average, weight in pairs:
                average.lerp_(weight, 1 - kept)
            buffers = zip(learner.averaged.buffers(), learner.agent.buffers(), strict=True)
            for old, new in buffers:
                old.copy_(new)  # not weights: what a mixer knows about its present ones
    learner.loss_sum += loss.masked_fill(skip.bool(), 0)
    learner.loss_count += 1 - skip
    return norm
