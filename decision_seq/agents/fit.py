"""Whether an agent and an environment belong together, asked before the first step is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Env, spaces

from decision_seq.agents.base import AgentSpec
from decision_seq.envs.reference_scores import atari_game
from decision_seq.errors import UserError


def check_fit(spec: AgentSpec, env: Env[Any, Any]) -> None:
    """Raise UserError where the data's observations or actions are not the environment's."""
    name = env.spec.id if env.spec else str(env)
    fix = "choose the environment that the data came from"
    shape = env.observation_space.shape or ()
    if spec.observation_shape != shape:
        raise UserError(
            f"the data has observations of {_described(spec.observation_shape)}, but {name} gives "
            f"{_described(shape)}; {fix}"
        )
    if spec.frames and spec.env:  # frames of all games have one shape, so their names must tell
        ours, theirs = atari_game(spec.env), atari_game(name)
        if ours and theirs and ours != theirs:
            raise UserError(
                f"the data is of the game {ours} ({spec.env}), but {name} is {theirs}; {fix}"
            )
    space = env.action_space
    if spec.discrete != isinstance(space, spaces.Discrete):
        kind = "discrete" if spec.discrete else "continuous"
        raise UserError(f"the data has {kind} actions, but {name} takes {space}; {fix}")
    size = int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or ()))
    # of discrete actions the data may happen to hold only the first few
    fewer_fit = spec.discrete and not spec.action_count_known
    if spec.action_dim > size or (spec.action_dim < size and not fewer_fit):
        has, takes = "actions of width {}", "width {}"
        if spec.discrete:
            has, takes = "{} discrete actions", "{}"
        raise UserError(
            f"the data has {has.format(spec.action_dim)}, but {name} takes "
            f"{takes.format(size)}; {fix}"
        )


def _described(shape: tuple[int, ...]) -> str:
    return f"width {shape[0]}" if len(shape) == 1 else f"shape {' x '.join(map(str, shape))}"
