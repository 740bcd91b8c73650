"""Policies rolled out: whole episodes side by side, one row an episode, videos of them."""

from decision_seq.eval.rollout.episodes import Episode, rollout

__all__ = ["Episode", "rollout"]
