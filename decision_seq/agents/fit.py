"""Whether data, an agent and an environment belong together, asked before the first step is taken.

What cannot be right is an error. What may be right is said once: another version of an
environment, or arguments that the data do not name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Env, spaces

from decision_seq.agents.base import AgentSpec
from decision_seq.data.origin import recorded
from decision_seq.data.store import EpisodeStore
from decision_seq.envs.registry import identity_of
from decision_seq.envs.variants import difference, fitting
from decision_seq.errors import UserError, say_once

FIX = "choose the environment that the data came from"


def check_origin(store: EpisodeStore, env: Env[Any, Any]) -> None:
    """Raise UserError where the data are beyond doubt of another environment than `env`, or of one
    made with other arguments, and `env` is not the one that they are to be evaluated in."""
    meant, used = store.info.get("eval_env_id"), _name(env)
    if meant and difference(meant, used) is None:
        return
    for own in recorded(store.info):
        found = difference(own, used)
        if found and found.certain:
            raise UserError(f"{store.name}: {found}; write `env: {meant or own}` in the config")


def check_fit(spec: AgentSpec, env: Env[Any, Any]) -> None:
    """Raise UserError where the data's observations or actions are not the environment's, or the
    data are of another environment; say so where they are of a variant of it."""
    name = _name(env)
    differs = difference(spec.env, name) if spec.env else None
    if differs and differs.kind == "environment":
        raise UserError(f"{differs}; {FIX}")
    shape = env.observation_space.shape or ()
    if spec.observation_shape != shape:
        raise UserError(
            f"the data has observations of {_described(spec.observation_shape)}, but {name} gives "
            f"{_described(shape)}; {_suggestion(spec, name)}"
        )
    _check_actions(spec, env.action_space, name)
    if differs:
        say_once(f"decision-seq: {differs}")


def _check_actions(spec: AgentSpec, space: spaces.Space[Any], name: str) -> None:
    if spec.discrete != isinstance(space, spaces.Discrete):
        kind = "discrete" if spec.discrete else "continuous"
        raise UserError(f"the data has {kind} actions, but {name} takes {space}; {FIX}")
    if not isinstance(space, spaces.Discrete):
        size = int(np.prod(space.shape or ()))
        if spec.action_dim != size:
            raise UserError(
                f"the data has actions of width {spec.action_dim}, but {name} takes width {size}; "
                f"{FIX}"
            )
        return
    low, high = int(space.start), int(space.start + space.n - 1)
    first, last = spec.action_start, spec.action_start + spec.action_dim - 1
    if not spec.action_count_known:  # the data may happen to hold only some
        first, last = spec.actions_seen or (max(first, low), last)
    fits = low <= first and last <= high
    if not fits or (spec.action_count_known and (first, last) != (low, high)):
        raise UserError(
            f"the data has the discrete actions {first} to {last}, but {name} takes {low} to "
            f"{high}; {FIX}, with actions numbered as it takes them"
        )


def _suggestion(spec: AgentSpec, name: str) -> str:
    """What to use instead where observations do not fit."""
    if spec.frames:
        return FIX
    variant = fitting(spec.env, name, spec.observation_shape[0])
    return f"{variant} gives the data's" if variant else FIX


def _name(env: Env[Any, Any]) -> str:
    return str(identity_of(env.spec)) if env.spec else str(env)


def _described(shape: tuple[int, ...]) -> str:
    return f"width {shape[0]}" if len(shape) == 1 else f"shape {' x '.join(map(str, shape))}"
