"""Lanes: many copies of one environment, stepped side by side for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from decision_seq.envs.registry import env_id, make
from decision_seq.spaces.steps import StepForm

SUCCESS = ("success", "is_success")  # what environments with goals say in `info`


class Lanes:
    """`count` copies of an environment. A finished lane is frozen: there is no autoreset, so no
    step of a next episode can be counted by mistake.

    Args:
        name: environment name or gymnasium id.
        count: number of lanes.
        stack: n, the last images that are seen at a step, where observations have images.
    """

    success: np.ndarray | None = None  # [lanes] bool: at some step; None where no step says

    def __init__(self, name: str, count: int, stack: int = 1) -> None:
        self.id = env_id(name)
        self.envs = [make(name) for _ in range(count)]
        self.action_space, self.form = self.envs[0].action_space, StepForm(self.envs[0])
        form = self.form
        self._has_images = len(form.shape) != 1  # images, or records that hold some
        shape = (count, *[stack] * self._has_images, *form.shape)
        self._observations = np.zeros(shape, form.dtype if self._has_images else np.float32)

    @property
    def limit(self) -> int | None:
        """Steps after which the environment itself ends an episode; None if it names no limit."""
        spec = self.envs[0].spec
        return spec.max_episode_steps if spec else None

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start an episode in every lane, lane i from `seeds[i]`.

        Returns:
            [lanes, S] float32; of images stacks [lanes, n, H, W(, C)], oldest first and zero before
            the episode began; of records with images in them the bytes [lanes, n, bytes] uint8.
        """
        if self._has_images:
            self._observations[:] = np.zeros((), self._observations.dtype)
        self.success = None
        for lane, seed in enumerate(seeds):
            self._see(lane, self.envs[lane].reset(seed=int(seed))[0])
        return self._seen()

    def step(
        self, actions: np.ndarray, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step the lanes where `active` [lanes] is True with `actions` [lanes, ...]: numbers of
        choices, or rows of numbers (`StepForm.action`).

        Returns observations as `reset`, rewards [lanes], terminated [lanes], truncated [lanes];
        a frozen lane repeats its last observation with reward 0.
        """
        rewards = np.zeros(len(self.envs), np.float64)
        terminated, truncated = np.zeros((2, len(self.envs)), bool)
        for lane in np.flatnonzero(active):
            action = self.form.action(actions[lane])
            observation, reward, terminated[lane], truncated[lane], info = self.envs[lane].step(
                action
            )
            self._see(int(lane), observation)
            rewards[lane] = reward
            for key in SUCCESS:
                if key in info:
                    if self.success is None:
                        self.success = np.zeros(len(self.envs), bool)
                    self.success[lane] |= bool(info[key])
        return self._seen(), rewards, terminated, truncated

    def _see(self, lane: int, observation: Any) -> None:
        seen = self.form.observe(observation)
        if self._has_images:
            self._observations[lane, :-1] = self._observations[lane, 1:]
            self._observations[lane, -1] = seen
        else:
            self._observations[lane] = seen

    def _seen(self) -> np.ndarray:
        seen = self._observations.copy()
        if seen.dtype.names:
            return seen.view(np.uint8).reshape(*seen.shape, seen.dtype.itemsize)
        return seen

    def close(self) -> None:
        """Free the simulators."""
        for env in self.envs:
            env.close()
