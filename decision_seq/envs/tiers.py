"""Behaviour policies by environment and tier: what `collect` rolls out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from decision_seq.envs.behaviour import MLPPolicy, embedded_policy, embedded_tiers
from decision_seq.envs.memory import often_right
from decision_seq.envs.registry import MEMORY_IDS, NAMES, env_id, make
from decision_seq.envs.sb3_library import library_behaviour
from decision_seq.envs.sb3_policy import ForeignLayout, load_sb3
from decision_seq.envs.toy import steady_runner
from decision_seq.errors import UserError

Behaviour = Callable[[np.random.Generator], Callable[[np.ndarray], np.ndarray]]

# (gymnasium id, tier) -> policy of a toy environment, and what it does
TOYS: dict[tuple[str, str], tuple[Behaviour, str]] = {
    (NAMES["point-run"], "mixed"): (steady_runner, "one constant speed an episode"),
    **{(i, "medium"): (often_right, "right three times of four") for i in MEMORY_IDS.values()},
}


def behaviour_for(
    env: str, tier: str, policy: Path | None, trust: bool = False
) -> tuple[Behaviour, dict[str, str]]:
    """The policy to roll out, and what to record about it.

    Args:
        env: environment name or gymnasium id.
        tier: which embedded policy, or what to call the data of `policy`.
        policy: Stable-Baselines3 or sb3-contrib .zip.
        trust: whether a policy we do not read ourselves may be loaded by these libraries, which
            run code that such a file holds.

    Raises UserError if there is no such tier, or the policy does not fit the environment.
    """
    identifier = env_id(env)
    if policy is not None:
        provenance = {"behaviour": f"{policy.name} (Stable-Baselines3)", "tier": tier}
        try:
            return _checked(load_sb3(policy), str(policy), identifier), provenance
        except ForeignLayout as reason:
            if not trust:
                raise UserError(
                    f"{reason}; Stable-Baselines3 can roll it out, but runs code that the file may "
                    "hold: if you trust where it is from, add --trust-policy"
                ) from None
            return library_behaviour(policy, make(identifier), str(reason)), provenance
    if toy := {t: policy for (e, t), (policy, _) in TOYS.items() if e == identifier}:
        if tier not in toy:
            raise UserError(f"{env} has no behaviour policy {tier!r}; there is: {', '.join(toy)}")
        return toy[tier], {"behaviour": toy[tier].__name__.replace("_", " "), "tier": tier}
    name = identifier.rpartition("-v")[0].lower()
    loaded = embedded_policy(name, tier)
    metadata = next(m for e, t, m in embedded_tiers() if (e, t) == (name, tier))
    provenance = {"behaviour": f"decision-seq {name}-{tier}", "tier": tier}
    provenance |= {k: metadata[k] for k in ("algorithm", "command") if k in metadata}
    return _checked(loaded, f"{env} {tier}", identifier), provenance


def _checked(policy: MLPPolicy, source: str, identifier: str) -> Behaviour:
    """`policy` as a behaviour, once its widths are known to fit the environment's."""
    environment = make(identifier)
    shapes = (environment.observation_space.shape, environment.action_space.shape)
    environment.close()
    widths = (policy.weights[0].shape[1],), (policy.weights[-1].shape[0],)
    if shapes != widths:
        raise UserError(
            f"{source}: the policy has observation and action shapes {widths}, but {identifier} "
            f"has {shapes}; choose the environment it was trained in"
        )

    def start(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
        return lambda observation: policy.act(observation[None], rng)[0]

    return start
