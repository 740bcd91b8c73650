"""Behaviour policies by environment and tier: what `collect` rolls out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from decision_seq.behaviours import maze_players, minigrid_players
from decision_seq.behaviours.actors import MLPPolicy, embedded_policies, embedded_tiers
from decision_seq.behaviours.atari_players import NOISE, PLAYERS, scripted
from decision_seq.behaviours.popgym_players import PLAYERS as POPGYM
from decision_seq.behaviours.sb3_library import library_behaviour
from decision_seq.behaviours.sb3_policy import ForeignLayout, load_sb3
from decision_seq.behaviours.toy_players import often_right, perfect_walker, steady_runner
from decision_seq.envs.atari import game_id
from decision_seq.envs.registry import MEMORY_IDS, NAMES, T_MAZE_IDS, make, resolve
from decision_seq.errors import UserError

Act = Callable[[np.ndarray], Any]  # observation -> action [A] or index
Start = Callable[[np.random.Generator], Act]  # at the start of an episode
Behaviour = Callable[[np.random.Generator, gym.Env[Any, Any]], Act]  # and given the environment
UNIFORM = "random"  # the tier that every environment has

# (gymnasium id, tier) -> policy of a toy environment, and what it does
TOYS: dict[tuple[str, str], tuple[Start, str]] = {
    (NAMES["point-run"], "mixed"): (steady_runner, "one constant speed an episode"),
    **{(i, "medium"): (often_right, "right three times of four") for i in MEMORY_IDS.values()},
    **{(i, "expert"): (perfect_walker, "always right") for i in T_MAZE_IDS.values()},
    **POPGYM,
}
# the same of games, with the share of random buttons in an episode
GAMES: dict[tuple[str, str], tuple[Behaviour, str]] = {
    (game_id(game, sticky), tier): (
        partial(scripted, noise),
        f"scripted, {' or '.join(f'{share:.0%}' for share in noise)} of the buttons at random",
    )
    for game in PLAYERS
    for sticky in (False, True)
    for tier, noise in NOISE.items()
}

# how the gymnasium ids of a family begin, tier, policy, and what it does
FAMILIES: tuple[tuple[str, str, Behaviour, str], ...] = (
    ("PointMaze_", maze_players.TIER, maze_players.random_goals, "scripted, random goals"),
    (
        "MiniGrid-Memory",
        minigrid_players.TIER,
        minigrid_players.looks_and_remembers,
        "scripted, always right",
    ),
)


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
    wanted = resolve(env)
    identifier, made = wanted.id, str(wanted)
    if policy is not None:
        provenance = {"behaviour": f"{policy.name} (Stable-Baselines3)", "tier": tier}
        try:
            return _blind(_checked(load_sb3(policy), str(policy), made)), provenance
        except ForeignLayout as reason:
            if not trust:
                raise UserError(
                    f"{reason}; Stable-Baselines3 can roll it out, but runs code that the file may "
                    "hold: if you trust where it is from, add --trust-policy"
                ) from None
            loaded_by_it = library_behaviour(policy, make(made), str(reason))
            return _blind(loaded_by_it), provenance
    name = identifier.rpartition("-v")[0].lower()
    embedded = {t: metadata for e, t, metadata in embedded_tiers() if e == name}
    toys = {t: start for (e, t), (start, _) in TOYS.items() if e == identifier}
    games = {t: of for (e, t), of in GAMES.items() if e == identifier}
    families = {
        t: (player, does) for start, t, player, does in FAMILIES if identifier.startswith(start)
    }
    if tier in games:
        player, summary = games[tier]
        return player, {"behaviour": f"decision-seq {env.lower()}-{tier} ({summary})", "tier": tier}
    if tier in families:
        player, summary = families[tier]
        return player, {"behaviour": summary, "tier": tier}
    if tier in toys:
        start = toys[tier]
        return _blind(start), {"behaviour": start.__name__.replace("_", " "), "tier": tier}
    if tier in embedded:
        provenance = {"behaviour": f"decision-seq {name}-{tier}", "tier": tier}
        kept = {k: embedded[tier][k] for k in ("algorithm", "command") if k in embedded[tier]}
        starts = [_checked(p, f"{env} {tier}", made) for p in embedded_policies(name, tier)]
        return _blind(_any_of(starts)), provenance | kept
    if tier == UNIFORM:
        return uniform, {"behaviour": "uniform from the action space", "tier": tier}
    there = ", ".join(dict.fromkeys([*embedded, *toys, *games, *families, UNIFORM]))
    raise UserError(
        f"{env}-{tier}: {env} has no player {tier!r}; there is: {there}; `decision-seq "
        "list tiers` shows those of other environments; roll out your own with --policy"
    )


def uniform(rng: np.random.Generator, env: gym.Env[Any, Any]) -> Act:
    """Any environment: actions drawn by its own action space, whatever is seen."""
    space = copy.deepcopy(env.action_space)  # episodes may be played side by side
    space.seed(int(rng.integers(2**31)))
    return lambda _observation: space.sample()


def _blind(start: Start) -> Behaviour:
    """A policy that needs nothing of the environment but its observations."""
    return lambda rng, _env: start(rng)


def _any_of(starts: Sequence[Start]) -> Start:
    """One of several policies an episode, drawn at random; a single one without a draw."""
    if len(starts) == 1:
        return starts[0]
    return lambda rng: starts[int(rng.integers(len(starts)))](rng)


def _checked(policy: MLPPolicy, source: str, env: str) -> Start:
    """`policy` as a behaviour, once its widths are known to fit the environment's."""
    environment = make(env)
    shapes = (environment.observation_space.shape, environment.action_space.shape)
    environment.close()
    widths = (policy.weights[0].shape[1],), (policy.weights[-1].shape[0],)
    if shapes != widths:
        raise UserError(
            f"{source}: the policy has observation and action shapes {widths}, but {env} "
            f"has {shapes}; choose the environment it was trained in"
        )

    def start(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
        return lambda observation: policy.act(observation[None], rng)[0]

    return start
