"""`decision-seq collect`."""

from __future__ import annotations

from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from decision_seq.cli.arguments import OptionalPath, OptionalStr


def collect(
    env: Annotated[Positional[str], arg(metavar="ENV")],
    tier: Annotated[Positional[str], arg(metavar="TIER")],
    steps: int = 100_000,
    policy: OptionalPath = None,
    out: OptionalStr = None,
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
