"""Reference returns for normalized scores: 0 is a uniform random policy, 100 an expert.

Values of D4RL (arXiv:2004.07219), measured there on the v0 to v2 environments. They are used for
v4 and v5 as well, which differ in details: Walker2d-v5 has other foot friction than v2 to v4, so
scores on it are not D4RL-v2 scores.
"""

from __future__ import annotations

REFERENCE_RETURNS: dict[str, tuple[float, float]] = {
    "Hopper": (-20.272305, 3234.3),
    "HalfCheetah": (-280.178953, 12135.0),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
}


def reference_returns(env_id: str) -> tuple[float, float] | None:
    """(random, expert) return for an environment id of any version, or None if there is none."""
    return REFERENCE_RETURNS.get(env_id.rpartition("-v")[0])


def normalized_score(env_id: str, episode_return: float) -> float | None:
    """100 * (return - random) / (expert - random), or None without references."""
    reference = reference_returns(env_id)
    if reference is None:
        return None
    low, high = reference
    return 100.0 * (episode_return - low) / (high - low)
