"""A controller for gymnasium-robotics' point mazes: from one random cell to the next, all episode
long, whatever goal is asked for. What it reaches is learned from in hindsight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

TIER = "random-goals"
NEAR = 0.3  # of a cell's side: a cell on the way counts as reached
GAIN, DAMPING, NOISE = 8.0, 2.0, 0.3  # of a spring to the next cell; standard deviation of actions

Cell = tuple[int, int]


def random_goals(rng: np.random.Generator, env: gym.Env[Any, Any]) -> Callable[[Any], np.ndarray]:
    """At the start of an episode: a policy of observations with `observation`: x, y and speeds."""
    maze: Any = env.unwrapped.maze  # type: ignore[attr-defined]
    free = {
        (r, c) for r, row in enumerate(maze.maze_map) for c, cell in enumerate(row) if cell != 1
    }
    way: list[Cell] = []

    def act(observation: Any) -> np.ndarray:
        position, speed = np.split(np.asarray(observation["observation"], float), 2)
        if not way:
            here = tuple(int(i) for i in maze.cell_xy_to_rowcol(position))
            ends = sorted(free - {here})
            way[:] = path(free, here, ends[rng.integers(len(ends))])
        target = maze.cell_rowcol_to_xy(np.array(way[0]))
        if np.linalg.norm(target - position) < NEAR * maze.maze_size_scaling:
            way.pop(0)
        push = GAIN * (target - position) - DAMPING * speed + NOISE * rng.standard_normal(2)
        return push.clip(-1, 1).astype(np.float32)

    return act


def path(free: set[Cell], start: Any, end: Cell) -> list[Cell]:
    """Cells from `start` to `end`, by the shortest way; `end` alone where there is none."""
    before: dict[Any, Any] = {start: None}
    queue = deque([start])
    while queue:
        cell = queue.popleft()
        if cell == end:
            break
        for step in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            following = (cell[0] + step[0], cell[1] + step[1])
            if following in free and following not in before:
                before[following] = cell
                queue.append(following)
    if end not in before:
        return [end]
    cells = [end]
    while before[cells[-1]] not in (None, start):
        cells.append(before[cells[-1]])
    return cells[::-1]
