"""OGBench's environments (arXiv:2410.20092): determined by their seeds, and with goals in sight.

They draw tasks and places from NumPy's global generator, and tell an episode's goal in `info` of
`reset` alone. `OwnNumbers` is put around all of them; `OGBenchGoals` makes the goal a part of what
is observed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from decision_seq.errors import UserError


def is_ogbench(entry_point: object) -> bool:
    """Whether an environment with that entry point is one of OGBench's."""
    return str(entry_point).startswith("ogbench.")


class OwnNumbers(gym.Wrapper[Any, Any, Any, Any]):
    """NumPy's global generator is the environment's own while it is reset and stepped, seeded with
    it, and as it was for everybody else. Its action space, from which it draws the steps that begin
    an episode, is seeded as well."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        inner, kind = env.unwrapped, type(env.unwrapped)
        if isinstance(getattr(kind, "action_space", None), property):
            # robots make theirs anew whenever it is asked for, which forgets a seed
            inner.__class__ = type(kind.__name__, (kind,), {"action_space": inner.action_space})
        self._numbers = np.random.RandomState(0).get_state()

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """That of the environment: what is drawn changes nothing that an agent meets."""
        return self.env.spec

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._numbers = np.random.RandomState(seed % 2**32).get_state()
            self.env.unwrapped.action_space.seed(seed)
        with self._own():
            return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        with self._own():
            return self.env.step(action)

    @contextlib.contextmanager
    def _own(self) -> Iterator[None]:
        theirs = np.random.get_state()
        np.random.set_state(self._numbers)
        try:
            yield
        finally:
            self._numbers = np.random.get_state()
            np.random.set_state(theirs)


class OGBenchGoals(gym.Env[Any, Any]):
    """A goal-conditioned environment of OGBench whose observations are `observation` and
    `desired_goal`, an observation as well.

    Args:
        task: its gymnasium id.
        task_id: which of its tasks; by default the seed's: tasks take turns from seed to seed, the
            first with seed 0.
        render_mode: of videos.

    Raises:
        UserError: ogbench is not installed, has no such environment, or one without goals or tasks.
    """

    def __init__(
        self,
        task: str = "pointmaze-medium-v0",
        task_id: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        try:
            import ogbench  # noqa: F401  # registers them
        except ImportError:
            raise UserError(
                f"the task {task} needs ogbench; install it with "
                "`pip install 'decision-seq[ogbench]'`"
            ) from None
        if task not in gym.registry or not is_ogbench(gym.registry[task].entry_point):
            raise UserError(f"task is {task!r}; ogbench has no environment of that name")
        if "singletask" in task or not hasattr(
            (env := gym.make(task, render_mode=render_mode, disable_env_checker=True)).unwrapped,
            "num_tasks",
        ):
            raise UserError(f"task is {task!r}, which has no goals; name it `ogbench:{task}`")
        self.env, self.task_id, self.render_mode = OwnNumbers(env), task_id, render_mode
        self.tasks = int(env.unwrapped.num_tasks)
        if task_id is not None and not 1 <= task_id <= self.tasks:
            raise UserError(f"task_id is {task_id}; {task} has the tasks 1 to {self.tasks}")
        self.metadata = {"render_modes": ["rgb_array"], **env.metadata}
        seen = env.observation_space
        self.observation_space = spaces.Dict(desired_goal=seen, observation=seen)
        self.action_space = env.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        turn = self.np_random.integers(self.tasks) if seed is None else seed % self.tasks
        chosen = {"task_id": self.task_id or int(turn) + 1}
        seen, info = self.env.reset(seed=seed, options={**chosen, **(options or {})})
        self._goal = np.asarray(info["goal"])
        return self._observe(seen), {**info, **chosen}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, info = self.env.step(action)
        return self._observe(seen), float(reward), bool(terminated), bool(truncated), info

    def _observe(self, seen: Any) -> dict[str, np.ndarray]:
        return {"desired_goal": self._goal.copy(), "observation": np.asarray(seen)}

    def render(self) -> Any:
        """The environment's own picture."""
        return self.env.render()

    def close(self) -> None:
        self.env.close()
