"""A dataset's transitions (s, a, r, s'), as rows of its flat arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decision_seq.data.frames import as_bytes, joined
from decision_seq.data.store import EpisodeStore
from decision_seq.data.transforms import ObservationNorm, ReturnSpec
from decision_seq.data.windows import WindowSampler
from decision_seq.errors import UserError


@dataclass(frozen=True)
class Transitions:
    """N transitions. The last step of a truncated episode is one where the source has what was seen
    after it, `store.final_observations`. That of a terminated one always is: its next observation
    does not matter."""

    # of rows [B], or steps + m for what was seen after episode m: [B, S] standardised; of images
    # the stacks [B, n, H, W(, C)] that are seen there, of records with images their bytes
    # [B, n, bytes]
    observe: Callable[[Tensor], Tensor]
    actions: Tensor  # [steps, A] in units of the agent's action scale, or [steps] int64
    rewards: Tensor  # [steps]
    terminated: Tensor  # [steps], 1 or 0
    rows: np.ndarray  # [N], those with a next observation, or the end, behind them
    following: Tensor  # [steps], what to observe of the next observation

    @classmethod
    def of(
        cls, store: EpisodeStore, action_scale: Tensor, frame_stack: int | None = None
    ) -> Transitions:
        """Raises UserError for actions that are no plain vector or choice, of which no values are
        fitted yet.

        Args:
            store: the dataset.
            action_scale: [A], of the agent's actions; [] if they are discrete.
            frame_stack: images seen at a step, by default the store's.
        """
        if store.action_table is not None:
            raise UserError(
                f"{store.name}: its actions have several parts or no bounds, of which no values "
                "are fitted; leave out agent.guidance and agent.advantage_weight"
            )
        last = store.offsets[1:] - 1
        following = np.arange(1, store.steps + 1)
        if store.final_observations is None:
            following[-1] -= 1  # beyond the end: not looked at
            rows = np.delete(np.arange(store.steps), last[~store.terminated[last]])
        else:
            following[last] = store.steps + np.arange(store.episodes)
            rows = np.arange(store.steps)
        actions = torch.from_numpy(store.actions)
        return cls(
            _stacks(store, frame_stack) if store.frames else _vectors(store),
            actions if store.discrete else actions / action_scale,
            torch.from_numpy(store.rewards),
            torch.from_numpy(store.terminated.astype(np.float32)),
            rows,
            torch.from_numpy(following),
        )

    def draw(self, generator: np.random.Generator, size: int) -> tuple[Tensor, ...]:
        """`size` random ones: s [B, S], a, r [B], terminated [B], s' [B, S]."""
        rows = torch.from_numpy(self.rows[generator.integers(len(self.rows), size=size)])
        return (
            self.observe(rows),
            self.actions[rows],
            self.rewards[rows],
            self.terminated[rows],
            self.observe(self.following[rows]),
        )


def _vectors(store: EpisodeStore) -> Callable[[Tensor], Tensor]:
    table = store.observation_table
    norm = ObservationNorm.of(store.observations, table.scaled if table else None)
    seen = [store.observations]
    seen += [] if store.final_observations is None else [store.final_observations]
    standardised = torch.from_numpy(joined([(part - norm.mean) / norm.std for part in seen]))
    return lambda rows: standardised[rows]


def _stacks(store: EpisodeStore, frame_stack: int | None) -> Callable[[Tensor], Tensor]:
    steps = WindowSampler(store, np.arange(store.episodes), 1, ReturnSpec(), 0, stack=frame_stack)
    if store.final_observations is None:
        return lambda rows: steps.windows(rows).observations[:, 0]
    last = torch.from_numpy(store.offsets[1:] - 1)
    finals = torch.from_numpy(as_bytes(store.final_observations))

    def observe(rows: Tensor) -> Tensor:
        episodes = rows - store.steps
        after = episodes >= 0
        rows = torch.where(after, last[episodes.clamp(min=0)], rows)
        stacks = steps.windows(rows).observations[:, 0]
        newest = finals[episodes[after], None]
        stacks[after] = torch.cat([stacks[after][:, 1:], newest], dim=1)
        return stacks

    return observe
