"""Whether data, an agent and an environment belong together, asked before the first step is taken.

What cannot be right is an error. What may be right is said once: another version of an
environment, or arguments that the data do not name.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import Env

from decision_seq.agents.spec import AgentSpec
from decision_seq.data.origin import recorded
from decision_seq.data.store import EpisodeStore
from decision_seq.envs.atari import COLOURED
from decision_seq.envs.reference_scores import atari_game
from decision_seq.envs.registry import identity_of
from decision_seq.envs.variants import difference, fitting
from decision_seq.errors import UserError, say_once
from decision_seq.spaces.steps import StepForm, alike

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


def check_left_out(store: EpisodeStore, said: Sequence[str]) -> None:
    """Raise UserError where the data have parts that no agent reads, and nobody said to leave them
    out; or where what is to be left out is none of these."""
    unread = store.info.get("left_out", [])
    if missing := [path for path in unread if path not in said]:
        raise UserError(
            f"{store.name}: `{missing[0]}` of its observations is read by no agent; write "
            f"`data.leave_out: [{', '.join(unread)}]` to go on without"
        )
    if unknown := [path for path in said if path not in unread]:
        raise UserError(
            f"{store.name}: data.leave_out names `{unknown[0]}`; what can be left out is "
            f"{', '.join(unread) or 'nothing'}"
        )


def check_fit(spec: AgentSpec, env: Env[Any, Any]) -> None:
    """Raise UserError where the data's observations or actions are not the environment's, or the
    data are of another environment; say so where they are of a variant of it."""
    name = _name(env)
    differs = difference(spec.env, name) if spec.env else None
    if differs and differs.kind == "environment":
        raise UserError(f"{differs}; {FIX}")
    form = StepForm(env)
    own = spec.observation_space
    fits = spec.observation_shape == form.shape and bool(form.dtype.names) == (not form.shape)
    if not fits or (own is not None and not form.stacked and not alike(own, form.observations)):
        raise UserError(
            f"the data has observations of {own or _described(spec.observation_shape)}, but {name} "
            f"gives {_seen(form)}; {_suggestion(spec, name)}"
        )
    _check_actions(spec, form, name)
    _check_sample(form, env, name)
    if differs:
        say_once(f"decision-seq: {differs}")


def _check_actions(spec: AgentSpec, form: StepForm, name: str) -> None:
    space, own = form.action_space, spec.action_space
    if own is not None and not alike(own, form.actions):
        raise UserError(f"the data has actions of {own}, but {name} takes {space}; {FIX}")
    if spec.discrete != form.discrete:
        kind = "discrete" if spec.discrete else "continuous"
        raise UserError(f"the data has {kind} actions, but {name} takes {space}; {FIX}")
    if not form.discrete:
        if spec.action_dim != form.actions.features:
            raise UserError(
                f"the data has actions of width {spec.action_dim}, but {name} takes width "
                f"{form.actions.features}; {FIX}"
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


def _check_sample(form: StepForm, env: Env[Any, Any], name: str) -> None:
    """One action there and back, before anything is trained."""
    space = copy.deepcopy(env.action_space)  # the environment's own draws stay its own
    space.seed(0)
    drawn = space.sample()
    row = int(drawn) if form.discrete else form.actions.pack(drawn).astype(np.float32)
    if not space.contains(form.action(row)):
        raise UserError(
            f"{name}: the action {drawn} of its space {space} comes back as {form.action(row)}, "
            "which is none; wrap the environment to take plainer actions"
        )


def _seen(form: StepForm) -> str:
    table = form.observations
    return _described(form.shape) if len(table.leaves) == 1 and form.shape else str(table)


def _suggestion(spec: AgentSpec, name: str) -> str:
    """What to use instead where observations do not fit."""
    game, theirs = (atari_game(env.partition("?")[0]) for env in (name, spec.env or name))
    if game and spec.observation_shape == COLOURED and theirs == game:
        short = game.replace("_", "-")
        return f"the data's colours are those of `{short}-sticky?colour=true`"
    if spec.frames:
        return FIX
    variant = fitting(spec.env, name, spec.observation_shape[0])
    return f"{variant} gives the data's" if variant else FIX


def _name(env: Env[Any, Any]) -> str:
    return str(identity_of(env.spec)) if env.spec else str(env)


def _described(shape: tuple[int, ...]) -> str:
    return f"width {shape[0]}" if len(shape) == 1 else f"shape {' x '.join(map(str, shape))}"
