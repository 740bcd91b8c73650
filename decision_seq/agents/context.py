"""What an acting agent remembers: `window` recomputes the last K steps, `stream` carries a state.

Both see the same tokens while t < K and so agree there; afterwards the stream remembers more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from decision_seq.backbones import State
from decision_seq.backbones.base import LAST, as_lanes, zero_lanes

if TYPE_CHECKING:
    from decision_seq.agents.base import SequenceAgent


@dataclass
class StepInput:
    """One environment step in every lane, as network inputs."""

    now: dict[str, Tensor]  # return_to_go [lanes], observation [lanes, F], action: the PREVIOUS one
    timestep: Tensor  # [lanes] int64, 0 where an episode begins
    times: list[int]  # the same


class Moment(NamedTuple):
    """What an agent acts on in every lane, on its device."""

    observation: Tensor  # [lanes, ...] raw
    action: Tensor  # [lanes, A] or [lanes], the PREVIOUS one
    to_go: Tensor  # [lanes], the scaled return-to-go
    timestep: Tensor  # [lanes] int64, 0 where an episode begins
    times: list[int]  # the same: asking a GPU for them would wait for it
    memory: Memory


class Memory(Protocol):
    """The contract of both."""

    @classmethod
    def empty(cls, agent: SequenceAgent, lanes: int) -> Memory:
        """Before the first step."""

    def advance(
        self, agent: SequenceAgent, step: StepInput, kinds: tuple[str, ...]
    ) -> tuple[Tensor, Memory]:
        """Take in the step's tokens `kinds`: all that come before its action, or the next of them.

        Returns features [lanes, D] at the last of `kinds`, and the new memory.
        """

    def reset(self, agent: SequenceAgent, lanes: Tensor) -> Memory:
        """`lanes` [lanes] bool as new."""

    def tensors(self) -> list[Tensor]:
        """All that is remembered, [lanes, ...] each."""

    def holding(self, tensors: list[Tensor]) -> Memory:
        """Another, of those `tensors` instead."""


@dataclass
class WindowMemory:
    """The last K steps of every lane, left-aligned: step i of a lane's window is column i."""

    values: dict[str, Tensor]  # return_to_go [lanes, K], observation [lanes, K, F], action
    timesteps: Tensor  # [lanes, K] int64

    @classmethod
    def empty(cls, agent: SequenceAgent, lanes: int) -> WindowMemory:
        """All zeros."""
        k, spec, device = agent.config.context_length, agent.spec, agent.device
        action = (
            torch.zeros(lanes, k, dtype=torch.int64, device=device)
            if spec.discrete
            else torch.zeros(lanes, k, spec.action_dim, device=device)
        )
        values = {
            "return_to_go": torch.zeros(lanes, k, device=device),
            "observation": torch.zeros(lanes, k, agent.features, device=device),
            "action": action,
        }
        return cls(values, torch.zeros(lanes, k, dtype=torch.int64, device=device))

    def advance(
        self, agent: SequenceAgent, step: StepInput, kinds: tuple[str, ...]
    ) -> tuple[Tensor, WindowMemory]:
        """Write `kinds` into the step's column, recompute the window, read it at that column."""
        order, k = agent.config.tokens, agent.config.context_length
        lane = torch.arange(len(step.times), device=agent.device)
        column = step.timestep.clamp(max=k - 1)
        memory = self._next_column(step, lane, k) if kinds[0] == order[0] else self
        values = {name: table.clone() for name, table in memory.values.items()}
        for kind in kinds:
            values[kind][lane, column] = step.now[kind]

        columns = {min(time, k - 1) for time in step.times}
        position = order.index(kinds[-1])  # among a step's tokens, of the one that is read
        used = max(columns, default=0) + 1  # columns beyond are empty in every lane
        tokens = agent.embedding(
            {n: v[:, :used] for n, v in values.items()}, memory.timesteps[:, :used]
        )
        tokens = tokens[:, : (used - 1) * len(order) + position + 1]
        if len(columns) == 1:  # one place in all lanes: the last block is spared the others
            features = agent.backbone(tokens, LAST)[:, 0]
        else:
            features = agent.backbone(tokens)[lane, column * len(order) + position]
        return features, WindowMemory(values, memory.timesteps)

    def _next_column(self, step: StepInput, lane: Tensor, k: int) -> WindowMemory:
        """With the last step's action written, and a column for the new step."""
        action = self.values["action"].clone()
        last = (step.timestep - 1).clamp(0, k - 1)  # column of the step before
        before = action[lane, last]
        began = as_lanes(step.timestep > 0, before)  # those lanes have an action to remember
        action[lane, last] = torch.where(began, step.now["action"], before)
        full = step.timestep >= k  # drop the oldest step, to make room

        def shifted(table: Tensor) -> Tensor:
            return torch.where(as_lanes(full, table), table.roll(-1, dims=1), table)

        values = {name: shifted(t) for name, t in (self.values | {"action": action}).items()}
        timesteps = shifted(self.timesteps)
        timesteps[lane, step.timestep.clamp(max=k - 1)] = step.timestep
        return WindowMemory(values, timesteps)

    def reset(self, agent: SequenceAgent, lanes: Tensor) -> WindowMemory:
        """Zeros in those lanes; what is beyond a lane's length is never read, since causal."""
        return self.holding([zero_lanes(table, lanes) for table in self.tensors()])

    def tensors(self) -> list[Tensor]:
        """The tables."""
        return [*self.values.values(), self.timesteps]

    def holding(self, tensors: list[Tensor]) -> WindowMemory:
        """Other tables."""
        *values, timesteps = tensors
        return WindowMemory(dict(zip(self.values, values, strict=True)), timesteps)


@dataclass
class StreamMemory:
    """The backbone's state after the last token of every lane that was not an action."""

    state: State

    @classmethod
    def empty(cls, agent: SequenceAgent, lanes: int) -> StreamMemory:
        """A new state in every lane."""
        return cls(agent.backbone.init_state(lanes, agent.device))

    def advance(
        self, agent: SequenceAgent, step: StepInput, kinds: tuple[str, ...]
    ) -> tuple[Tensor, StreamMemory]:
        """Feed `kinds`; where they begin the step, first the action of the one before."""
        order, embedding, state = agent.config.tokens, agent.embedding, self.state
        if kinds[0] == order[0] and "action" in order:
            if 0 not in step.times:
                kinds = ("action", *kinds)
            elif any(step.times):  # a lane that begins has no previous step: undo it there
                action = embedding.step(step.now, step.timestep, ("action",))
                _, state = agent.backbone.step(action, state)
                state = agent.backbone.reset(state, step.timestep == 0)
        tokens = embedding.step(step.now, step.timestep, kinds)  # [lanes, len(kinds), D]
        features, state = agent.backbone.step(tokens, state, LAST)
        return features[:, -1], StreamMemory(state)

    def reset(self, agent: SequenceAgent, lanes: Tensor) -> StreamMemory:
        """A new state in those lanes."""
        return StreamMemory(agent.backbone.reset(self.state, lanes))

    def tensors(self) -> list[Tensor]:
        """Those of every layer."""
        return [tensor for layer in self.state for tensor in layer.values()]

    def holding(self, tensors: list[Tensor]) -> StreamMemory:
        """Another state."""
        rest = iter(tensors)
        return StreamMemory([{name: next(rest) for name in layer} for layer in self.state])


CONTEXTS: dict[str, type[WindowMemory] | type[StreamMemory]] = {
    "window": WindowMemory,
    "stream": StreamMemory,
}
