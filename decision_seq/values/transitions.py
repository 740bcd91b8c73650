"""A dataset's transitions (s, a, r, s'), as rows of its flat arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decision_seq.data.store import EpisodeStore
from decision_seq.data.transforms import ObservationNorm
from decision_seq.errors import UserError


@dataclass(frozen=True)
class Transitions:
    """N transitions. The last step of a truncated episode is none: its next observation is not
    known. That of a terminated one is, and its next observation does not matter."""

    observations: Tensor  # [steps, S], standardised
    actions: Tensor  # [steps, A] in units of the agent's action scale, or [steps] int64
    rewards: Tensor  # [steps]
    terminated: Tensor  # [steps], 1 or 0
    rows: np.ndarray  # [N], those with a next observation, or the end, behind them

    @classmethod
    def of(cls, store: EpisodeStore, action_scale: Tensor) -> Transitions:
        """Raises UserError for images and for actions that are no plain vector or choice, of which
        no values are fitted yet."""
        if store.observations.ndim != 2 or store.observations.dtype != np.float32:
            raise UserError(
                f"{store.name}: its observations hold images, of which no values are fitted; leave "
                "out agent.guidance and agent.advantage_weight"
            )
        if store.action_table is not None:
            raise UserError(
                f"{store.name}: its actions have several parts or no bounds, of which no values "
                "are fitted; leave out agent.guidance and agent.advantage_weight"
            )
        table = store.observation_table
        norm = ObservationNorm.of(store.observations, table.scaled if table else None)
        last = store.offsets[1:] - 1
        cut = last[~store.terminated[last]]
        actions = torch.from_numpy(store.actions)
        return cls(
            torch.from_numpy((store.observations - norm.mean) / norm.std),
            actions if store.discrete else actions / action_scale,
            torch.from_numpy(store.rewards),
            torch.from_numpy(store.terminated.astype(np.float32)),
            np.delete(np.arange(store.steps), cut),
        )

    def draw(self, generator: np.random.Generator, size: int) -> tuple[Tensor, ...]:
        """`size` random ones: s [B, S], a, r [B], terminated [B], s' [B, S]."""
        rows = torch.from_numpy(self.rows[generator.integers(len(self.rows), size=size)])
        following = (rows + 1).clamp(max=len(self.rewards) - 1)  # beyond the end: not looked at
        return (
            self.observations[rows],
            self.actions[rows],
            self.rewards[rows],
            self.terminated[rows],
            self.observations[following],
        )
