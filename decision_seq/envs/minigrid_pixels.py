"""MiniGrid and BabyAI tasks seen in colour pictures instead of numbered squares."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from decision_seq.errors import UserError


class MiniGridPixels(gym.Env[np.ndarray, np.int64]):
    """A task of the minigrid package, its observation a picture [H, W, 3] uint8 and nothing else:
    the mission is not told, so it suits tasks whose mission is always the same.

    Args:
        task: gymnasium id of the task.
        view: "agent", the squares in front of it, or "all" of the room.
        tile: pixels along a square's side.
        render_mode: of videos, which show the whole room.

    Raises:
        UserError: minigrid is not installed, or has no such task.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(
        self,
        task: str = "MiniGrid-Empty-Random-6x6-v0",
        view: Literal["agent", "all"] = "agent",
        tile: int = 8,
        render_mode: str | None = None,
    ) -> None:
        try:
            import minigrid  # noqa: F401  # registers the tasks
        except ImportError:
            raise UserError(
                f"the task {task} needs minigrid; install it with "
                "`pip install 'decision-seq[minigrid]'`"
            ) from None
        if task not in gym.registry or "minigrid" not in str(gym.registry[task].entry_point):
            raise UserError(f"task is {task!r}; minigrid has no task of that name in this version")
        if view not in ("agent", "all"):
            raise UserError(f"view is {view!r}; it must be agent or all")
        self.render_mode, self.view, self.tile = render_mode, view, tile
        self.task: Any = gym.make(task, render_mode=render_mode, disable_env_checker=True).unwrapped
        room: Any = self.task
        squares = room.observation_space["image"].shape[:2]
        width, height = squares if view == "agent" else (room.width, room.height)
        shape = (height * tile, width * tile, 3)
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.action_space = room.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        _, info = self.task.reset(seed=seed, options=options)
        return self._seen(), info

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        _, reward, terminated, truncated, info = self.task.step(action)
        return self._seen(), float(reward), terminated, truncated, info

    def _seen(self) -> np.ndarray:
        mine = self.view == "agent"
        return self.task.get_frame(highlight=not mine, tile_size=self.tile, agent_pov=mine)

    def render(self) -> np.ndarray | None:
        """The whole room."""
        return self.task.render()

    def close(self) -> None:
        self.task.close()
