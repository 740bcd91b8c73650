"""Mixtures: how often each of a dataset's sources is drawn from, whatever its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from decision_seq.data.store import EpisodeStore
from decision_seq.errors import UserError


@dataclass(frozen=True)
class Mixture:
    """P sources with windows to draw from: first a source by its share, then a window uniformly."""

    firsts: np.ndarray  # [P] int64, number of the source's first eligible step
    counts: np.ndarray  # [P] int64, its eligible steps
    shares: np.ndarray  # [P] float64, probabilities

    @classmethod
    def of(
        cls,
        store: EpisodeStore,
        episodes: np.ndarray,
        eligible: np.ndarray,
        weights: Sequence[float],
    ) -> Mixture:
        """Shares in proportion to `weights`, one a source of the store.

        A source none of whose episodes are drawn from has no share.

        Args:
            store: made of several sources.
            episodes: [M] indices of the episodes to draw from, ascending.
            eligible: [M] eligible steps of each.
            weights: relative, above 0.

        Raises:
            UserError: not one weight a source.
        """
        sources = len(store.episodes_per_source)
        if len(weights) != sources:
            raise UserError(
                f"{store.name}: {len(weights)} weights for {sources} sources; give one a source"
            )
        ends = np.cumsum(store.episodes_per_source)
        source = np.searchsorted(ends, episodes, side="right")  # [M]
        counts = np.bincount(source, weights=eligible, minlength=sources).astype(np.int64)
        firsts = np.cumsum(counts) - counts
        there = counts > 0
        shares = np.asarray(weights, np.float64)[there]
        shares = shares / shares.max()  # the sum of huge ones is infinite
        return cls(firsts[there], counts[there], shares / shares.sum())

    def draw(self, generator: np.random.Generator, size: int) -> np.ndarray:
        """[size] int64 numbers of eligible steps."""
        chosen = generator.choice(len(self.shares), size, p=self.shares)
        return self.firsts[chosen] + generator.integers(self.counts[chosen])
