"""`decision-seq collect`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import FlagCreatePairsOff, Positional


def collect(
    env: Positional[str],
    tier: Positional[str],
    steps: int = 100_000,
    policy: Path | None = None,
    out: str | None = None,
    seed: int = 0,
    trust_policy: FlagCreatePairsOff[bool] = False,
    simulator: Literal["auto", "warp"] = "auto",
) -> None:
    """Roll a behaviour policy out and store the episodes as a Minari dataset.

    Args:
        env: environment name (see `list envs`) or gymnasium id, with arguments like
            Hopper-v5?terminate_when_unhealthy=false.
        tier: which policy (see `list tiers`), or random; with --policy, what to call the data.
        steps: fewest environment steps; the last episode is completed.
        policy: Stable-Baselines3 or sb3-contrib .zip to roll out instead; VecNormalize statistics
            are read from NAME.vecnormalize.pkl or vecnormalize.pkl beside it.
        out: Minari dataset id; by default decision-seq/ENV/TIER-v0.
        seed: of environment and policy.
        trust_policy: let Stable-Baselines3 load a --policy of a kind that is not read here; it runs
            code that the file may hold.
        simulator: warp simulates Hopper, HalfCheetah, Walker2d or Ant by MuJoCo Warp, on a GPU if
            there is one.
    """
    from decision_seq.api import datasets

    print(datasets.collect(env, tier, steps, policy, out, seed, trust_policy, simulator))
