"""Behaviour cloning with a sequence model: imitates the data, or its best episodes (%BC)."""

from __future__ import annotations

from dataclasses import dataclass

from decision_seq.agents.base import SequenceAgent
from decision_seq.agents.spec import AgentConfig, register


@dataclass(frozen=True)
class BehaviourCloningConfig(AgentConfig):
    """Tokens of a step: observation, action. No return is asked for or seen."""

    layouts = (("observation", "action"), ("observation",))

    tokens: tuple[str, ...] = ("observation", "action")


@register(
    "behaviour_cloning", "imitates the data (data.top_fraction: its best)", BehaviourCloningConfig
)
class BehaviourCloning(SequenceAgent):
    """Imitates what the data did."""
