"""What a policy remembers between steps: `window` recomputes the last K steps, `stream` carries the
backbone's state. Both see the same tokens while t < K and so agree there; afterwards the stream
remembers more.

States are values: a step makes a new one and leaves the old as it was. Dimension 0 is the lane.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decision_seq.agents import SequenceAgent
from decision_seq.backbones import State
from decision_seq.backbones.contract import LAST, as_lanes, zero_lanes


@dataclass
class StepBatch:
    """One environment step in every lane, on the agent's device."""

    values: dict[str, Tensor]  # return_to_go [lanes], observation [lanes, F], action: the PREVIOUS
    timestep: Tensor  # [lanes] int64, 0 where an episode begins
    times: list[int]  # the same: asking a GPU for them would wait for it


@dataclass
class WindowState:
    """The last K steps of every lane, left-aligned: step i of a lane's window is column i."""

    values: dict[str, Tensor]  # return_to_go [lanes, K], observation [lanes, K, F], action
    timesteps: Tensor  # [lanes, K] int64

    @classmethod
    def empty(cls, agent: SequenceAgent, lanes: int) -> WindowState:
        """All zeros."""
        shape, spec = (lanes, agent.config.context_length), agent.spec
        zeros, timesteps = agent.action_head.weight.new_zeros, torch.zeros(shape, dtype=torch.int64)
        timesteps = timesteps.to(agent.device)
        values = {
            "return_to_go": zeros(shape),
            "observation": zeros(*shape, agent.features),
            "action": timesteps.clone() if spec.discrete else zeros(*shape, spec.action_dim),
            **{kind: zeros(*shape, width) for kind, width in agent.token_widths.items()},
        }
        return cls(values, timesteps)

    def extend(
        self, agent: SequenceAgent, step: StepBatch, kinds: tuple[str, ...]
    ) -> tuple[Tensor, WindowState]:
        """Take in the step's tokens `kinds`: all that come before its action, or the next of them.
        They are written into the step's column, and the window is recomputed.

        Returns features [lanes, D] at the last of `kinds`, and the new state.
        """
        order, k = agent.config.tokens, agent.config.context_length
        lane = torch.arange(step.timestep.shape[0], device=agent.device)
        column = step.timestep.clamp(max=k - 1)
        state = self._next_column(step, lane, k) if kinds[0] == order[0] else self
        values = {name: table.clone() for name, table in state.values.items()}
        for kind in kinds:
            values[kind][lane, column] = step.values[kind]

        columns = {min(time, k - 1) for time in step.times}
        position = order.index(kinds[-1])  # among a step's tokens, of the one that is read
        used = max(columns, default=0) + 1  # columns beyond are empty in every lane
        tokens = agent.embedding(
            {n: v[:, :used] for n, v in values.items()}, state.timesteps[:, :used]
        )
        tokens = tokens[:, : (used - 1) * len(order) + position + 1]
        if len(columns) == 1:  # one place in all lanes: the last block is spared the others
            features = agent.backbone(tokens, LAST)[:, 0]
        else:
            features = agent.backbone(tokens)[lane, column * len(order) + position]
        return features, WindowState(values, state.timesteps)

    def _next_column(self, step: StepBatch, lane: Tensor, k: int) -> WindowState:
        """With the last step's action written, and a column for the new step."""
        action = self.values["action"].clone()
        last = (step.timestep - 1).clamp(0, k - 1)  # column of the step before
        before = action[lane, last]
        began = as_lanes(step.timestep > 0, before)  # those lanes have an action to remember
        action[lane, last] = torch.where(began, step.values["action"], before)
        full = step.timestep >= k  # drop the oldest step, to make room

        def shifted(table: Tensor) -> Tensor:
            return torch.where(as_lanes(full, table), table.roll(-1, dims=1), table)

        values = {name: shifted(t) for name, t in (self.values | {"action": action}).items()}
        timesteps = shifted(self.timesteps)
        timesteps[lane, step.timestep.clamp(max=k - 1)] = step.timestep
        return WindowState(values, timesteps)

    def reset(self, agent: SequenceAgent, lanes: Tensor) -> WindowState:
        """Zeros in those lanes; what is beyond a lane's length is never read, since causal."""
        return self.holding([zero_lanes(table, lanes) for table in self.tensors()])

    def tensors(self) -> list[Tensor]:
        """The tables."""
        return [*self.values.values(), self.timesteps]

    def holding(self, tensors: list[Tensor]) -> WindowState:
        """Other tables."""
        *values, timesteps = tensors
        return WindowState(dict(zip(self.values, values, strict=True)), timesteps)


@dataclass
class StreamState:
    """The backbone's state after the last token of every lane that was not an action."""

    state: State

    @classmethod
    def empty(cls, agent: SequenceAgent, lanes: int) -> StreamState:
        """A new state in every lane."""
        return cls(agent.backbone.init_state(lanes, agent.device, agent.dtype))

    def extend(
        self, agent: SequenceAgent, step: StepBatch, kinds: tuple[str, ...]
    ) -> tuple[Tensor, StreamState]:
        """Feed `kinds`; where they begin the step, first the action of the one before."""
        order, embedding, state = agent.config.tokens, agent.embedding, self.state
        if kinds[0] == order[0] and "action" in order:
            if 0 not in step.times:
                kinds = ("action", *kinds)
            elif any(step.times):  # a lane that begins has no previous step: undo it there
                action = embedding.step(step.values, step.timestep, ("action",))
                _, state = agent.backbone.step(action, state)
                state = agent.backbone.reset(state, step.timestep == 0)
        tokens = embedding.step(step.values, step.timestep, kinds)  # [lanes, len(kinds), D]
        features, state = agent.backbone.step(tokens, state, LAST)
        return features[:, -1], StreamState(state)

    def reset(self, agent: SequenceAgent, lanes: Tensor) -> StreamState:
        """A new state in those lanes."""
        return StreamState(agent.backbone.reset(self.state, lanes))

    def tensors(self) -> list[Tensor]:
        """Those of every layer."""
        return [tensor for layer in self.state for tensor in layer.values()]

    def holding(self, tensors: list[Tensor]) -> StreamState:
        """Another state."""
        rest = iter(tensors)
        return StreamState([{name: next(rest) for name in layer} for layer in self.state])


PolicyState = WindowState | StreamState
CONTEXTS: dict[str, type[PolicyState]] = {
    "window": WindowState,
    "stream": StreamState,
}
