"""T-Maze (Bakker, 2002): a corridor whose start says which way to turn at its end."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from decision_seq.errors import UserError

STEPS = (9, 30, 90, 150, 600)  # those with a name, t-maze-9 and so on


class TMaze(gym.Env[np.ndarray, np.int64]):
    """The passive T-Maze in the form of RATE (arXiv:2306.09459): T - 1 steps along the corridor,
    and one to the side at its junction.

    Observation: [y, hint, flag, noise]. y is 0 in the corridor, and 1 or -1 after the turn; the
    hint is the goal's side, 1 or -1, in the first observation and 0 afterwards; the flag is 1 at
    the junction; the noise is uniform in {-1, 0, 1} always. Action: 0 is x + 1, 1 is y + 1, 2 is
    x - 1, 3 is y - 1; walls stop what leads out of the maze. The turn at the junction ends the
    episode, with reward 1 on the goal's side and 0 on the other. No walk may take longer than the
    shortest one, T steps: gymnasium's time limit truncates it.

    The goal's side is 1 for an even seed of `reset` and -1 for an odd one, and drawn where no seed
    is given. So who always turns the same way succeeds in exactly half of an even number of
    successive seeds, as rollouts use them, and who does not remember the hint in half on average.
    """

    observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(4)

    def __init__(self, steps: int = 30) -> None:
        if steps < 2:
            raise UserError(f"steps is {steps}; the shortest maze takes 2, one of them the turn")
        self.corridor = steps - 1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        odd = self.np_random.integers(2) if seed is None else seed % 2
        self._goal = -1.0 if odd else 1.0
        self._x, self._y = 0, 0.0
        return self._observe(self._goal), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        along, aside = ((1, 0.0), (0, 1.0), (-1, 0.0), (0, -1.0))[int(action)]
        if self._x == self.corridor and aside:
            self._y = aside
        self._x = min(max(self._x + along, 0), self.corridor)
        return self._observe(), float(self._y == self._goal), bool(self._y), False, {}

    def _observe(self, hint: float = 0.0) -> np.ndarray:
        junction = float(self._x == self.corridor)
        return np.array([self._y, hint, junction, self.np_random.integers(-1, 2)], np.float32)
