"""One step of a policy as a function of tensors: what ONNX and torch.export are given.

What a lane remembers is one row of numbers, all zeros where an episode begins. What the policy asks
for is counted from the same row, so a caller passes what the environment says and nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from decision_seq.agents import SequenceAgent
from decision_seq.export.observed import Observed
from decision_seq.policy.contexts import CONTEXTS, PolicyState, StreamState
from decision_seq.policy.eager import forward_step
from decision_seq.policy.policy import action_limits
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
        self.observed = Observed(agent.spec, agent.config.frame_stack)
        self.empty = filled(self.agent, context)
        self.codec, acts = self.spec.action_codec, self.spec.action_space
        self.width = acts.width if acts else self.spec.action_dim  # of an action, if not discrete
        act = ("action", () if self.spec.discrete else (self.width,))
        kind = torch.int64 if self.spec.discrete else torch.float32
        told = [("timestep", (), torch.int64), ("received", (), torch.float32), (*act, kind)]
        own = [(f"memory_{i}", t.shape[1:], t.dtype) for i, t in enumerate(self.empty.tensors())]
        self.fields: list[Field] = []
        for name, shape, dtype in [*told, *own]:
            self.fields.append(Field(name, tuple(shape), dtype, self.state_size))
        limits = None
        if space is not None and not self.spec.discrete:
            limits = action_limits(space, self.width)
        self.low: Tensor | None
        self.high: Tensor | None
        for name, values in zip(("low", "high"), limits or (None, None), strict=True):
            bound = None if values is None else torch.as_tensor(values).float()
            self.register_buffer(name, bound, persistent=False)
        self.numbers = range(self.spec.action_start, self.spec.action_start + self.spec.action_dim)
        if isinstance(space, spaces.Discrete):  # fewer than the data's numbers allow for
            self.numbers = range(int(space.start), int(space.start + space.n))
        self.names = tuple(self.inputs)

    @property
    def state_size(self) -> int:
        """Numbers that a lane remembers."""
        return sum(field.size for field in self.fields)

    @property
    def samples(self) -> bool:
        """Whether it draws its actions, and so takes noise."""
        return self.config.temperature > 0

    @property
    def inputs(self) -> dict[str, Callable[[int], Tensor]]:
        """What a step takes, by name and in order, as what makes zeros of so many lanes.

        observation: [lanes, S] float32, or stacks of frames [lanes, n, H, W(, C)]; of records the
            numbers, and each image as observation.PATH.
        reward: [lanes], of the action before; at an episode's start it counts for nothing.
        target_return: [lanes], in the environment's units; may change at any step.
        state: [lanes, state_size], zeros where an episode begins.
        noise: [lanes, A] standard Gumbel noise, where actions are sampled; zeros take the
            likeliest.
        """
        forms = {one.name: (one.shape, one.dtype) for one in self.observed.inputs}
        rows: dict[str, tuple[int, ...]] = {"reward": (), "target_return": ()}
        rows |= {"state": (self.state_size,)}
        rows |= {"noise": (self.spec.action_dim,)} if self.samples else {}
        forms |= {name: (shape, torch.float32) for name, shape in rows.items()}

        def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[int], Tensor]:
            return lambda lanes: torch.zeros(lanes, *shape, dtype=dtype)

        return {name: zeros(*form) for name, form in forms.items()}

    def forward(self, *given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of every lane.

        Args:
            given: `inputs`, in their order.

        Returns:
            Actions as the environment takes them, [lanes, A] float32 or [lanes] int64, or the rows
            of numbers [lanes, W] of those with several parts; what they were made of, [lanes, A]:
            vectors in units of their scale, or logits; and the state.
        """
        named = dict(zip(self.names, given, strict=True))
        reward, target_return, state = (named[n] for n in ("reward", "target_return", "state"))
        timestep, received, action, *memory = (field.read(state) for field in self.fields)
        returns = self.config.returns
        if not returns.delayed:
            counted = reward.clamp(-1, 1) if returns.clipped else reward
            received = torch.where(timestep > 0, received + counted / returns.scale, received)
        seen = [
            self.observed.joined(named),
            action,
            target_return / returns.scale - received,
            timestep,
        ]
        # as if some lanes began and the others had seen a full window: right for every lane
        times = [0, self.config.context_length]
        predicted, after = forward_step(self.agent, seen, times, self.empty.holding(memory))
        action = self._decode(predicted, named.get("noise"))
        remembered = action - self.spec.action_start if self.spec.discrete else action
        parts = [timestep + 1, received, remembered, *after.tensors()]
        rows = [part.reshape(part.shape[0], -1).float() for part in parts]
        return action, predicted, torch.cat(rows, dim=1)

    def _decode(self, predicted: Tensor, noise: Tensor | None) -> Tensor:
        """`Policy._decode_action` in tensors."""
        if not self.spec.discrete:
            action = predicted * self.agent.action_scale
            if self.codec is not None:
                action = self.codec.choose(action, noise, self.config.temperature or 1.0)
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
