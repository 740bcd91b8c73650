"""The Ant of D4RL's datasets, for which no version of gymnasium has the observations."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco.ant_v4 import AntEnv

FORCES = 84  # 14 bodies with 6 external forces each


class D4RLAnt(AntEnv):
    """Ant-v4 with D4RL's 111 observations: the 84 contact forces of Ant-v2, which MuJoCo 2 left at
    zero, follow the 27 numbers of Ant-v4. With `use_contact_forces` Ant-v4 is as wide, but what an
    agent of D4RL's data would see there it never saw in training.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        (width,) = self.observation_space.shape or (0,)
        self.observation_space = spaces.Box(-np.inf, np.inf, (width + FORCES,), np.float64)

    def _get_obs(self) -> np.ndarray:
        return np.concatenate([super()._get_obs(), np.zeros(FORCES)])
