"""Lanes of Atari games: what an agent sees of each is the stack of its last four frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from decision_seq.envs.atari import FRAME_SKIP, FRAME_STACK, MAX_FRAMES, SIDE, AtariGame
from decision_seq.envs.lanes import Lanes


class AtariLanes(Lanes):
    """`count` games, each on a console and in a thread of its own: a lane depends on its seed
    alone, and a finished one is not stepped, so that no frame of a next episode can be counted.

    Args:
        identifier: gymnasium id, for results.
        env: one such game.
        count: number of lanes.
    """

    @classmethod
    def serves(cls, env: gym.Env[Any, Any], count: int, stack: int = FRAME_STACK) -> bool:
        """Whether `env` is a game of which so many frames are seen."""
        game = env.unwrapped
        return isinstance(game, AtariGame) and not game.colour and stack == FRAME_STACK

    def __init__(self, identifier: str, env: gym.Env[Any, Any], count: int) -> None:
        first = env.unwrapped
        assert isinstance(first, AtariGame)
        same = first.game, first.sticky, first.fire_reset
        more = [AtariGame(*same) for _ in range(count - 1)]
        self.games: list[AtariGame] = [first, *more]
        self.id, self.envs, self.action_space = identifier, [env, *more], env.action_space
        self._stacks = np.zeros((count, FRAME_STACK, SIDE, SIDE), np.uint8)

    @property
    def limit(self) -> int:
        """Steps after which the console ends a game."""
        return MAX_FRAMES // FRAME_SKIP

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start an episode in every lane, lane i from `seeds[i]`. Returns stacks [lanes, 4, 84, 84]
        uint8, oldest frame first; before an episode's first frame they are black."""
        for lane, seed in enumerate(seeds):
            self._stacks[lane] = self.games[lane].begin(int(seed))[0]
        return self._stacks.copy()

    def step(
        self, actions: np.ndarray, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step the lanes where `active` [lanes] is True with `actions` [lanes].

        Returns stacks [lanes, 4, 84, 84], rewards [lanes], terminated [lanes], truncated [lanes];
        a frozen lane repeats its last stack with reward 0.
        """
        rewards = np.zeros(len(self.games), np.float64)
        terminated, truncated = np.zeros((2, len(self.games)), bool)
        lanes = np.flatnonzero(active)
        for lane in lanes:  # all consoles start before the first is waited for
            self.games[lane].send(int(actions[lane]))
        for lane in lanes:
            outcome = self.games[lane].receive()
            self._stacks[lane], rewards[lane], terminated[lane], truncated[lane] = outcome
        return self._stacks.copy(), rewards, terminated, truncated
