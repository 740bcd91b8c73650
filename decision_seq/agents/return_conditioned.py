"""Return-conditioned supervised learning: Decision Transformer (arXiv:2106.01345) and, with the
Mamba backbone, Decision Mamba (arXiv:2403.19925)."""

from __future__ import annotations

from dataclasses import dataclass

from decision_seq.agents.base import SequenceAgent
from decision_seq.agents.spec import AgentConfig, register


@dataclass(frozen=True)
class ReturnConditionedConfig(AgentConfig):
    """Tokens of a step: return-to-go, observation, action; the action may be left out."""

    layouts = (("return_to_go", "observation", "action"), ("return_to_go", "observation"))


@register("return_conditioned", "acts towards a target return you name", ReturnConditionedConfig)
class ReturnConditioned(SequenceAgent):
    """Imitates what the data did when that much return was still to come."""
