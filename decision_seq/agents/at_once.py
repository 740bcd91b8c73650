"""One step of a streaming agent by one call, instead of some twenty small operations.

The same as `SequenceAgent.act` does with a `StreamMemory` otherwise, for agents of vector
observations whose backbone is all Mamba, where there is a kernel for it. The weights of such an
agent push everything else out of the nearer caches at every step, so that what is small costs
several times its usual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from decision_seq.agents.context import Memory, StreamMemory
from decision_seq.backbones.mamba import MambaBackbone, unstack
from decision_seq.ops import policy_step, streams

if TYPE_CHECKING:
    from decision_seq.agents.base import AgentState, SequenceAgent


def serves(agent: SequenceAgent, state: AgentState) -> bool:
    """Whether `predict_next` can be called for this step: lanes that begin have no action to be
    seen, so either all of them do or none."""
    times = state.timestep.tolist()
    return (
        agent.looks_once
        and not agent.training
        and isinstance(agent.backbone, MambaBackbone)
        and isinstance(state.memory, StreamMemory)
        and agent.encoder is None
        and (0 not in times or not any(times))
        and streams(agent.action_head.weight, len(times) * len(agent.config.tokens))
    )


def predict_next(
    agent: SequenceAgent, observation: Tensor, action: Tensor, to_go: Tensor, state: AgentState
) -> tuple[Tensor, Memory]:
    """Raw observations [lanes, S], the last actions [lanes, A] (or [lanes]) and scaled returns to
    go [lanes] -> predictions [lanes, A] and what is remembered."""
    embedding, backbone, memory = agent.embedding, agent.backbone, state.memory
    assert isinstance(backbone, MambaBackbone) and isinstance(memory, StreamMemory)
    discrete, kinds = agent.spec.discrete, agent.config.inputs
    if "action" in agent.config.tokens and int(state.timestep[0]):
        kinds = ("action", *kinds)
    makers = {
        "return_to_go": lambda: embedding.streamed("return_to_go", to_go),
        "observation": lambda: embedding.streamed(
            "observation", observation, agent.observation_mean, agent.observation_std
        ),
        "action": lambda: embedding.streamed(
            "action", action, std=None if discrete else agent.action_scale
        ),
    }
    predicted, conv, h = policy_step(
        [makers[kind]() for kind in kinds],
        state.timestep,
        embedding.shared(),
        backbone.stack(memory.state),
        (agent.action_head.weight, agent.action_head.bias),
        not discrete,
    )
    return predicted, StreamMemory(unstack(conv, h))
