"""`decision-seq collect`."""

from __future__ import annotations

import re
from pathlib import Path

from tyro.conf import FlagCreatePairsOff, Positional


def collect(
    env: Positional[str],
    tier: Positional[str],
    steps: int = 100_000,
    policy: Path | None = None,
    out: str | None = None,
    seed: int = 0,
    trust_policy: FlagCreatePairsOff[bool] = False,
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
    """
    from decision_seq.behaviours.tiers import behaviour_for
    from decision_seq.data.tools.collect import check_id, collect
    from decision_seq.progress import progress_bar

    place = re.sub(r"[^\w-]+", "-", env.lower())  # of an id, whose arguments hold other characters
    dataset_id = out or f"decision-seq/{place}/{tier}-v0"
    check_id(dataset_id)
    behaviour, provenance = behaviour_for(env, tier, policy, trust_policy)
    with progress_bar() as bar:
        task = bar.add_task("collecting", total=steps, note="")
        summary = collect(
            env,
            behaviour,
            steps,
            dataset_id,
            seed,
            provenance,
            lambda done: bar.update(task, completed=done),
        )
    print(
        f"{dataset_id}: {summary['episodes']} episodes, {summary['steps']} steps, "
        f"return {summary['return_mean']:.1f} ± {summary['return_std']:.1f}"
    )
