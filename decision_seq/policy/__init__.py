"""Trained agents that act: in rollouts, in users' own loops, on robots alike."""

from decision_seq.policy.policy import Policy, load_policy

__all__ = ["Policy", "load_policy"]
