"""One step of a streaming agent by one call, instead of some twenty small operations.

The same as `SequenceAgent.act` does with a `StreamMemory` otherwise, for agents of vector
observations whose blocks C knows. The weights of such an
agent push everything else out of the nearer caches at every step, so that what is small costs
several times its usual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from decision_seq.agents.context import Memory, StreamMemory
from decision_seq.backbones.stack import Weights, in_float32
from decision_seq.ops import Embedding, Token, policy_step, streams

if TYPE_CHECKING:
    from decision_seq.agents.base import AgentState, SequenceAgent

SHARED = ("embedding.timestep.weight", "embedding.norm.weight", "embedding.norm.bias")
HEAD = ("action_head.weight", "action_head.bias")


class AtOnce:
    """What that call takes, found once: looking it up by attribute would cost as much as it."""

    def __init__(self, agent: SequenceAgent, usual: bool) -> None:
        """`usual`: whether the agent does what all do between its inputs and its prediction."""
        config, self.blocks = agent.config, agent.backbone.in_one_call
        self.possible = usual and self.blocks.possible and agent.encoder is None
        self.begun = config.inputs
        self.continued = ("action", *config.inputs) if "action" in config.tokens else config.inputs
        self.embed = {kind: agent.embedding.embed[kind]._parameters for kind in config.tokens}
        self.shared, self.head = Weights(agent, SHARED), Weights(agent, HEAD)
        self.eps = agent.embedding.norm.eps
        self.squashed, self.buffers = not agent.spec.discrete, agent._buffers

    def serves(self, state: AgentState, times: list[int]) -> bool:
        """Whether `predict` can be called for lanes at `times`, in evaluation mode: those that
        begin have no action to be seen, so either all of them do or none."""
        return (
            self.possible
            and (0 not in times or not any(times))
            and isinstance(state.memory, StreamMemory)
            and in_float32(state.memory.state)
            and streams(self.head.now()[0], len(times), len(self.continued))
        )

    def predict(
        self, observation: Tensor, action: Tensor, to_go: Tensor, state: AgentState, begin: bool
    ) -> tuple[Tensor, Memory]:
        """Raw observations [lanes, S], the last actions [lanes, A] (or [lanes]) and scaled returns
        to go [lanes] -> predictions [lanes, A] and what is remembered."""
        assert isinstance(state.memory, StreamMemory)
        values = {"return_to_go": to_go.unsqueeze(1), "observation": observation, "action": action}
        time, norm, norm_bias = self.shared.now()
        kinds = self.begun if begin else self.continued
        stack, after = self.blocks.stack(state.memory.state, len(kinds))
        predicted = policy_step(
            [self._token(kind, values[kind]) for kind in kinds],
            state.timestep,
            Embedding(time, norm, norm_bias, self.eps, bounded=False),
            stack,
            self.head.now(),
            self.squashed,
        )
        return predicted, StreamMemory(after)

    def _token(self, kind: str, value: Tensor) -> Token:
        """Normalised as `SequenceAgent.values` does it."""
        own, mean, std = self.embed[kind], None, None
        if kind == "observation":
            mean, std = self.buffers["observation_mean"], self.buffers["observation_std"]
        elif kind == "action" and self.squashed:
            std = self.buffers["action_scale"]
        if own.get("bias") is not None:  # no index
            value = value.to(torch.float32)
        return Token(value, own["weight"], own.get("bias"), kind == "action", mean, std)  # type: ignore[arg-type]
