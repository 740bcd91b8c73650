"""Agents: what a sequence model predicts, how it is trained and how it acts."""

from decision_seq.agents import behaviour_cloning, goal_conditioned, max_return, return_conditioned
from decision_seq.agents.base import SequenceAgent
from decision_seq.agents.checkpoint import load_agent, save_agent
from decision_seq.agents.presets import PRESETS
from decision_seq.agents.spec import AgentConfig, AgentSpec

__all__ = [
    "PRESETS",
    "AgentConfig",
    "AgentSpec",
    "SequenceAgent",
    "behaviour_cloning",
    "goal_conditioned",
    "load_agent",
    "max_return",
    "return_conditioned",
    "save_agent",
]
