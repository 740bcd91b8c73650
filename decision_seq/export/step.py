"""One step of a policy as a function of tensors: what ONNX and torch.export are given.

What a lane remembers is one row of numbers, all zeros where an episode begins. What the policy asks
for is counted from the same row, so a caller passes what the environment says and nothing else.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from decision_seq.agents import SequenceAgent
from decision_seq.policy.contexts import CONTEXTS, PolicyState, StreamState
from decision_seq.policy.eager import forward_step
from decision_seq.settings import Context


@dataclass(frozen=True)
class Field:
    """Numbers that a lane remembers, and where they lie in its row."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int

    @property
    def size(self) -> int:
        """Numbers a lane."""
        return torch.Size(self.shape).numel()

    def read(self, rows: Tensor) -> Tensor:
        """[lanes, state] -> [lanes, *shape]"""
        own = rows[:, self.start : self.start + self.size].unflatten(1, self.shape or (1,))
        return (own if self.shape else own.squeeze(1)).to(self.dtype)


class PolicyStep(nn.Module):
    """(observation, reward, target return, state) -> (action, state) for any number of lanes.

    Args:
        agent: the trained agent; it is copied, in float32 and on the CPU.
        context: "window" or "stream", as in `Policy`.
        space: of the environment's actions; actions are clipped to it.
    """

    def __init__(
        self, agent: SequenceAgent, context: Context, space: spaces.Space[Any] | None = None
    ) -> None:
        super().__init__()
        self.agent = copy.deepcopy(agent).float().cpu().eval().requires_grad_(False)
        self.config, self.spec, self.context = agent.config, agent.spec, context
        self.empty = filled(self.agent, context)
        act = ("action", () if self.spec.discrete else (self.spec.action_dim,))
        kind = torch.int64 if self.spec.discrete else torch.float32
        told = [("timestep", (), torch.int64), ("received", (), torch.float32), (*act, kind)]
        own = [(f"memory_{i}", t.shape[1:], t.dtype) for i, t in enumerate(self.empty.tensors())]
        self.fields: list[Field] = []
        for name, shape, dtype in [*told, *own]:
            self.fields.append(Field(name, tuple(shape), dtype, self.state_size))
        limits = space if isinstance(space, spaces.Box) else None
        self.low: Tensor | None
        self.high: Tensor | None
        for name in ("low", "high"):
            values = None if limits is None else torch.as_tensor(getattr(limits, name)).float()
            self.register_buffer(name, values, persistent=False)
        self.numbers = range(self.spec.action_start, self.spec.action_start + self.spec.action_dim)
        if isinstance(space, spaces.Discrete):  # fewer than the data's numbers allow for
            self.numbers = range(int(space.start), int(space.start + space.n))

    @property
    def state_size(self) -> int:
        """Numbers that a lane remembers."""
        return sum(field.size for field in self.fields)

    @property
    def samples(self) -> bool:
        """Whether it draws its actions, and so takes noise."""
        return self.config.temperature > 0

    def forward(
        self,
        observation: Tensor,
        reward: Tensor,
        target_return: Tensor,
        state: Tensor,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of every lane.

        Args:
            observation: [lanes, S] float32, or stacks of frames [lanes, 4, H, W] uint8.
            reward: [lanes], of the action before; at an episode's start it counts for nothing.
            target_return: [lanes], in the environment's units; may change at any step.
            state: [lanes, state_size], zeros where an episode begins.
            noise: [lanes, A] standard Gumbel noise, where actions are sampled; zeros take the
                likeliest.

        Returns:
            Actions as the environment takes them, [lanes, A] float32 or [lanes] int64; what they
            were made of, [lanes, A]: the same in units of the action scale, or logits; and the
            state.
        """
        timestep, received, action, *memory = (field.read(state) for field in self.fields)
        returns = self.config.returns
        if not returns.delayed:
            counted = reward.clamp(-1, 1) if returns.clipped else reward
            received = torch.where(timestep > 0, received + counted / returns.scale, received)
        seen = [observation, action, target_return / returns.scale - received, timestep]
        # as if some lanes began and the others had seen a full window: right for every lane
        times = [0, self.config.context_length]
        predicted, after = forward_step(self.agent, seen, times, self.empty.holding(memory))
        action = self._decode(predicted, noise)
        remembered = action - self.spec.action_start if self.spec.discrete else action
        parts = [timestep + 1, received, remembered, *after.tensors()]
        rows = [part.reshape(part.shape[0], -1).float() for part in parts]
        return action, predicted, torch.cat(rows, dim=1)

    def _decode(self, predicted: Tensor, noise: Tensor | None) -> Tensor:
        """`Policy._decode_action` in tensors."""
        if not self.spec.discrete:
            action = predicted * self.agent.action_scale
            return action if self.low is None else action.clamp(self.low, self.high)
        if noise is not None:
            predicted = predicted / self.config.temperature + noise
        action = predicted.argmax(-1) + self.spec.action_start
        return action.clamp(self.numbers[0], self.numbers[-1])


def filled(agent: SequenceAgent, context: Context) -> PolicyState:
    """The memory of a lane whose episode begins, in the shape that it has once the first K steps
    have passed: caches have grown by then, and zeros say that nothing is in them."""
    state = CONTEXTS[context].empty(agent, 1)
    if isinstance(state, StreamState):
        tokens = agent.config.context_length * len(agent.config.tokens)
        one = torch.zeros(1, tokens, agent.config.backbone.width)
        _, grown = agent.backbone.step(one, state.state)
        state = StreamState(grown)
    return state.holding([torch.zeros_like(tensor) for tensor in state.tensors()])
