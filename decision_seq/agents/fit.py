"""Whether an agent and an environment belong together, asked before the first step is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Env, spaces

from decision_seq.agents.base import AgentSpec
from decision_seq.errors import UserError


def check_fit(spec: AgentSpec, env: Env[Any, Any]) -> None:
    """Raise UserError where the data's observation width or actions are not the environment's."""
    name = env.spec.id if env.spec else str(env)
    fix = "choose the environment that the data came from"
    (width,) = env.observation_space.shape or (0,)
    if spec.observation_dim != width:
        raise UserError(
            f"the data has observations of width {spec.observation_dim}, but {name} gives width "
            f"{width}; {fix}"
        )
    space = env.action_space
    if spec.discrete != isinstance(space, spaces.Discrete):
        kind = "discrete" if spec.discrete else "continuous"
        raise UserError(f"the data has {kind} actions, but {name} takes {space}; {fix}")
    size = int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or ()))
    # of discrete actions the data may happen to hold only the first few
    if spec.action_dim > size or (not spec.discrete and spec.action_dim < size):
        raise UserError(
            f"the data has actions of width {spec.action_dim}, but {name} takes width {size}; {fix}"
        )
