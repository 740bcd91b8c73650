"""One step of a streaming agent by one call, instead of some twenty small operations.

The same as `SequenceAgent.act` does with a `StreamMemory` otherwise, for agents of vector
observations whose blocks C knows. The weights of such an agent push everything else out of the
nearer caches at every step, so that what is small costs several times its usual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from decision_seq.agents.context import Memory, Moment, StreamMemory
from decision_seq.backbones import Backbone
from decision_seq.backbones.stack import Watch, Weights, holds
from decision_seq.model.tokens import TokenEmbedding
from decision_seq.ops import Embedding, Token, policy_step, streams

if TYPE_CHECKING:
    from decision_seq.agents.base import SequenceAgent

SHARED = ("embedding.timestep.weight", "embedding.norm.weight", "embedding.norm.bias")
HEAD = ("action_head.weight", "action_head.bias")
PARTS = ("embedding", "backbone", "action_head")


class AtOnce:
    """What that call takes, found once: looking it up by attribute would cost as much as it."""

    def __init__(self, agent: SequenceAgent, usual: bool) -> None:
        """`usual`: whether the agent does what all do between its inputs and its prediction."""
        config, self.blocks, embedding = agent.config, agent.backbone.in_one_call, agent.embedding
        plain = type(agent.backbone) is Backbone and type(embedding) is TokenEmbedding
        self.possible = (
            usual
            and plain
            and embedding.timestep is not None
            and self.blocks.possible
            and agent.encoder is None
        )
        self.begun = config.inputs
        self.continued = ("action", *config.inputs) if "action" in config.tokens else config.inputs
        self.embed = {kind: embedding.embed[kind]._parameters for kind in config.tokens}
        tokens = [
            f"embedding.embed.{kind}.{name}"
            for kind, own in self.embed.items()
            for name, weight in own.items()
            if weight is not None
        ]
        if not self.possible:
            return
        self.weights = Weights(agent, [*SHARED, *HEAD, *tokens])
        self.watch = Watch(embedding, agent.action_head)
        self.parts = [(name, agent._modules[name]) for name in PARTS]
        self.modules = agent._modules
        self.norm = embedding.norm
        self.squashed, self.buffers = not agent.spec.discrete, agent._buffers

    def predict(self, now: Moment) -> tuple[Tensor, Memory] | None:
        """Predictions [lanes, A] and what is remembered, or None where that is left to others:
        lanes that begin have no action to be seen, so either all of them do or none."""
        begin, lanes = not any(now.times), len(now.times)
        kinds = self.begun if begin else self.continued
        if not self.possible or not (begin or 0 not in now.times):
            return None
        if any(self.modules[name] is not part for name, part in self.parts):
            return None
        if not isinstance(now.memory, StreamMemory) or not self.watch.intact():
            return None
        if not streams(self.norm.weight, lanes, len(kinds)) or not self._fits(now):
            return None
        weights = self.weights.addresses()
        call = self.blocks.stack(now.memory.state, lanes, len(kinds))
        if weights is None or call is None:
            return None
        time, norm, norm_bias, *head = weights.tensors[:5]
        predicted = policy_step(
            [self._token(kind, now) for kind in kinds],
            now.timestep,
            Embedding(time, norm, norm_bias, self.norm.eps, bounded=False),
            call[0],
            head,
            self.squashed,
        )
        return predicted, StreamMemory(call[1])

    def _fits(self, now: Moment) -> bool:
        """Whether statistics and times are what C takes them for."""
        statistics = ("observation_mean", "observation_std", "action_scale")[: 2 + self.squashed]
        widths = (now.observation.shape[1], now.observation.shape[1], now.action.shape[-1])
        return holds(now.timestep, (len(now.times),), torch.int64) and all(
            holds(self.buffers[name], (width,), torch.float32)  # type: ignore[arg-type]
            for name, width in zip(statistics, widths, strict=False)
        )

    def _token(self, kind: str, now: Moment) -> Token:
        """Normalised as `SequenceAgent.values` does it."""
        own, mean, std = self.embed[kind], None, None
        value = now.action
        if kind == "return_to_go":
            value = now.to_go.unsqueeze(1)
        elif kind == "observation":
            value, mean = now.observation, self.buffers["observation_mean"]
            std = self.buffers["observation_std"]
        elif self.squashed:
            std = self.buffers["action_scale"]
        if own.get("bias") is not None:  # no index
            value = value.to(torch.float32)
        return Token(value, own["weight"], own.get("bias"), kind == "action", mean, std)  # type: ignore[arg-type]
