"""StreamSampler: consecutive windows of whole episodes, for training with a carried state."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from decision_seq.data.windows import Batch, WindowSampler
from decision_seq.hardware import to_device


class StreamSampler:
    """Row b of batch number i + 1 is the window after row b of batch number i, K steps on in the
    same episode, or the first of another one. Each row goes through all episodes, in an order of
    its own, before it begins again in another. `batch(i)` is a pure function of the seed and `i`.

    Args:
        windows: cuts windows of K steps out of the episodes, at any step; its seed and device are
            those of the stream.
        lengths: [M] steps of these episodes.
        spread: rows enter their first episode at different windows. Else those of episodes as long
            as each other have all beginnings in one batch, and all ends in another.
    """

    def __init__(self, windows: WindowSampler, lengths: np.ndarray, spread: bool = False) -> None:
        self._windows, self._spread = windows, spread
        self._first = np.cumsum(lengths) - lengths  # number of each episode's first step
        self._counts = -(-lengths // windows.length)  # windows of each
        # windows of all episodes, and of the longest
        self._total, self.longest = int(self._counts.sum()), int(self._counts.max())
        self._orders: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}

    def batch(self, index: int, size: int, rows: slice = slice(None)) -> Batch:
        """Batch number `index` of `size` rows, or those `rows` of them."""
        return self._windows.windows(self._places(index, size)[0][rows])

    def begins(self, index: int, size: int) -> Tensor:
        """[size] bool: the rows of batch number `index` that begin an episode."""
        return to_device(torch.from_numpy(self._places(index, size)[1]), self._windows.device)

    def places(self, index: int, size: int) -> list[tuple[int, int]]:
        """(episode, step within it) where each window of batch number `index` starts."""
        return self._windows.places_of(self._places(index, size)[0])

    def _places(self, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the steps where the windows start, and whether an episode does."""
        starts, begins = np.empty(size, np.int64), np.empty(size, bool)
        for row in range(size):
            ahead = row * self.longest // size if self._spread else 0
            epoch, at = divmod(index + ahead, self._total)
            order, ends = self._order(row, epoch)
            place = int(np.searchsorted(ends, at, side="right"))
            episode = order[place]
            window = at - (ends[place] - self._counts[episode])
            starts[row] = self._first[episode] + window * self._windows.length
            begins[row] = window == 0
        return starts, begins

    def _order(self, row: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """In which order a row takes the episodes, and the number of windows up to each one's end;
        kept until the next epoch."""
        kept = self._orders.get(row)
        if kept is None or kept[0] != epoch:
            order = np.random.default_rng([self._windows.seed, row, epoch]).permutation(
                len(self._counts)
            )
            kept = self._orders[row] = (epoch, order, np.cumsum(self._counts[order]))
        return kept[1:]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_orders": {}}


Sampler = WindowSampler | StreamSampler
