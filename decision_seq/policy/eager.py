"""The engine that is PyTorch's operations one by one: the reference for the others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from decision_seq.agents import SequenceAgent
from decision_seq.hardware import on_its_way
from decision_seq.policy.contexts import CONTEXTS, PolicyState, StepBatch
from decision_seq.settings import Context


@dataclass
class Inputs:
    """What a step takes, [lanes, ...] each."""

    observation: np.ndarray  # raw, as `Seen` gives it
    action: np.ndarray  # the PREVIOUS one, rows [lanes, W] float32 or [lanes] int64
    return_to_go: np.ndarray  # [lanes] float32, scaled
    timestep: np.ndarray  # [lanes] int64, 0 where an episode begins


class Engine(Protocol):
    """How a policy computes. It remembers what its lanes have seen."""

    def start(self, inputs: Inputs) -> Callable[[], np.ndarray]:
        """Begin a step, which a GPU computes meanwhile. What is returned waits for its predictions
        [lanes, A] float32: actions in units of `action_scale`, or logits."""

    def reset(self, lanes: np.ndarray) -> None:
        """`lanes` [lanes] bool begin an episode."""

    def keep(self, lanes: np.ndarray) -> None:
        """Of the lanes only those `lanes` [lanes] bool go on."""


class EagerEngine:
    """A copy of the agent, on its device and in its dtype, in eval mode."""

    def __init__(self, agent: SequenceAgent, context: Context, lanes: int) -> None:
        self.agent = copy.deepcopy(agent).eval().requires_grad_(False)
        self.state: PolicyState = CONTEXTS[context].empty(self.agent, lanes)

    @staticmethod
    def unusable(agent: SequenceAgent) -> str:
        """Never: it takes every agent."""
        return ""

    @torch.inference_mode()
    def start(self, inputs: Inputs) -> Callable[[], np.ndarray]:
        """See `Engine`."""
        seen = self._sent(inputs)
        predicted, self.state = self._run(seen, inputs.timestep.tolist())
        return on_its_way(predicted.float())

    def _sent(self, inputs: Inputs) -> list[Tensor]:
        """What `forward_step` has seen, on the agent's device and in its dtype."""
        device, dtype = self.agent.device, self.agent.dtype
        observation = torch.as_tensor(inputs.observation)
        action = torch.as_tensor(inputs.action).to(device)
        to_go = torch.as_tensor(inputs.return_to_go)
        return [
            observation.to(device, dtype if observation.is_floating_point() else None),
            action.to(dtype) if action.is_floating_point() else action,
            to_go.to(device, dtype),
            torch.as_tensor(inputs.timestep).to(device),
        ]

    def _run(self, seen: list[Tensor], times: list[int]) -> tuple[Tensor, PolicyState]:
        return forward_step(self.agent, seen, times, self.state)

    @torch.inference_mode()
    def reset(self, lanes: np.ndarray) -> None:
        """See `Engine`."""
        self.state = self.state.reset(self.agent, torch.from_numpy(lanes).to(self.agent.device))

    @torch.inference_mode()
    def keep(self, lanes: np.ndarray) -> None:
        """See `Engine`."""
        here = torch.from_numpy(lanes).to(self.agent.device)
        self.state = self.state.holding([tensor[here] for tensor in self.state.tensors()])


def forward_step(
    agent: SequenceAgent, seen: list[Tensor], times: list[int], state: PolicyState
) -> tuple[Tensor, PolicyState]:
    """Predictions [lanes, A] and what is remembered. On a GPU it waits for nothing.

    Args:
        agent: in eval mode.
        seen: observation, PREVIOUS action, scaled return-to-go and timestep of every lane.
        times: the timesteps again, as numbers.
        state: what is remembered so far.
    """
    observation, action, to_go, timestep = seen
    step = StepBatch(agent.preprocess(observation, action, to_go), timestep, times)

    def extend(kinds: tuple[str, ...]) -> Tensor:
        nonlocal state
        features, state = state.extend(agent, step, kinds)
        return features

    return agent.forward_step(step.values, extend), state
