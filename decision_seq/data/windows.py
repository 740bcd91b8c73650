"""WindowSampler: batches of fixed-length windows, one vectorised gather each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from decision_seq.data.frames import as_bytes, release
from decision_seq.data.mixture import Mixture
from decision_seq.data.store import EpisodeStore
from decision_seq.data.transforms import ReturnSpec
from decision_seq.hardware import to_device


@dataclass
class Batch:
    """B windows of K steps, right-padded. Pads are zeros where `mask` is False, but for stacks of
    images, of which a pad's still holds the last real ones."""

    # [B, K, S], or a view [B, K, n, H, W(, C)] of stacks of images, oldest first; of records with
    # images in them the bytes, [B, K, n, bytes] uint8
    observations: Tensor
    actions: Tensor  # [B, K, A] float32, or [B, K] int64 for discrete actions
    returns_to_go: Tensor  # [B, K] float32, scaled
    timesteps: Tensor  # [B, K] int64, index within the episode
    mask: Tensor  # [B, K] bool, True on real steps
    episode_returns: Tensor  # [B] float32, scaled, of the whole episode


@dataclass(frozen=True)
class Hindsight:
    """Goals that an episode reached later take the place of its own (arXiv:1707.01495)."""

    goal: slice  # columns of observations
    achieved: slice  # columns that say what is reached
    share: float  # of windows


class WindowSampler:
    """Windows whose start is uniform over all eligible steps.

    By default these are all steps, the distribution of Decision Transformer's code (which draws an
    episode by length, then a start within it). With `full`, as in Reinformer's, they are the steps
    with K - 1 more to come, and the first of an episode shorter than that: no window is cut off by
    an episode's end that need not be. Either way every step is in some window. `batch(i)` is a pure
    function of the seed and `i`: resuming or prefetching cannot change what is drawn.

    Args:
        store: the dataset.
        episodes: indices of the episodes to draw from.
        length: K, steps a window.
        returns: scale of the return-to-go.
        seed: of the draws.
        full: only full windows, where there are.
        stack: n, images a step; by default the store's `frame_stack`.
        weights: relative probability of each of the store's sources; by default every eligible
            step is as likely as any other.
        hindsight: goals to put in the place of those that the data name.
        device: where batches are delivered; on a GPU the tables are moved there once if they fit
            into half of its free memory.
    """

    def __init__(
        self,
        store: EpisodeStore,
        episodes: np.ndarray,
        length: int,
        returns: ReturnSpec,
        seed: int,
        device: torch.device | str = "cpu",
        full: bool = False,
        weights: Sequence[float] = (),
        stack: int | None = None,
        hindsight: Hindsight | None = None,
    ) -> None:
        self.length, self.seed, self.device = length, seed, torch.device(device)
        self._offsets = store.offsets
        starts, stops = store.offsets[episodes], store.offsets[episodes + 1]
        eligible = stops - starts  # steps an episode, from its first on
        if full:
            eligible = np.maximum(eligible - length + 1, 1)
        self.steps = int(eligible.sum())
        self._mixture = Mixture.of(store, episodes, eligible, weights) if weights else None
        # row of each eligible start, and where its episode stops
        before = np.cumsum(eligible) - eligible
        self._starts = np.arange(self.steps) - np.repeat(before - starts, eligible)  # [steps]
        self._stops = np.repeat(stops, eligible)  # [steps]
        self._columns = np.arange(length)
        self._generator = np.random.Generator(np.random.Philox(key=seed))
        self._fresh = self._generator.bit_generator.state  # before its first draw
        self._hindsight = hindsight
        self._stacked = store.frames
        self._stack = store.frame_stack if stack is None else stack
        self._mapped = store.observations  # released after reading where they are frames
        self._timesteps = torch.from_numpy(store.timesteps)
        scaled = store.episode_returns[episodes] / np.float32(returns.scale)
        self._episode_returns = np.repeat(scaled, eligible)  # [steps]
        self._tables = {
            "observations": torch.from_numpy(as_bytes(store.observations)),
            "actions": torch.from_numpy(store.actions),
            "returns_to_go": torch.from_numpy(store.returns_to_go / np.float32(returns.scale)),
            "timesteps": torch.from_numpy(store.timesteps),
        }
        self._make_resident()
        self._runs = self._make_runs()

    def batch(self, index: int, size: int, rows: slice = slice(None)) -> Batch:
        """Batch number `index`: `size` random windows, or those `rows` of them."""
        which = self._draw(index, size)
        batch = self.windows(which[rows])
        if self._hindsight is not None:
            drawn = self._generator.random((2, size))[:, rows]
            self._relabel(batch, which[rows], drawn, self._hindsight)
        return batch

    def places(self, index: int, size: int) -> list[tuple[int, int]]:
        """(episode, step within it) where each window of batch number `index` starts."""
        return self.places_of(self._draw(index, size))

    def places_of(self, which: np.ndarray) -> list[tuple[int, int]]:
        """(episode, step within it) of eligible steps `which` [B]."""
        rows = self._starts[which]
        episodes = np.searchsorted(self._offsets, rows, side="right") - 1
        return list(zip(episodes.tolist(), (rows - self._offsets[episodes]).tolist(), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """What a copy in another process needs: the data, once. The views of `_make_runs` would be
        written out K-fold."""
        return vars(self) | {"_runs": {}, "_timesteps": None, "_mapped": np.empty(0)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._timesteps = self._tables["timesteps"].cpu()
        self._runs = self._make_runs()

    def _draw(self, index: int, size: int) -> np.ndarray:
        """[size] int64 numbers of eligible steps; a function of the seed and `index` alone."""
        generator = self._generator  # what it drew before is forgotten: making one takes longer
        self._fresh["state"]["counter"][1] = index
        generator.bit_generator.state = self._fresh
        if self._mixture is not None:
            return self._mixture.draw(generator, size)
        return generator.integers(self.steps, size=size)

    def windows(self, which: Tensor | np.ndarray) -> Batch:
        """The windows that start at eligible steps `which` [B], int64 in [0, steps)."""
        chosen = np.asarray(which)
        first, stops = self._starts[chosen], self._stops[chosen]
        if self._runs and first.max(initial=0) < len(self._runs["actions"]):
            return self._cut_out(first, stops, self._episode_returns[chosen])
        return self._collect(
            torch.from_numpy(first)[:, None],
            torch.from_numpy(stops)[:, None],
            torch.from_numpy(self._episode_returns[chosen]),
        )

    def _relabel(
        self, batch: Batch, which: np.ndarray, drawn: np.ndarray, hindsight: Hindsight
    ) -> None:
        """Put what an episode came to later, from a window's last step on, in the place of its
        goal. `drawn` [2, B] in [0, 1): which step, and whether at all."""
        first, stops = self._starts[which], self._stops[which]
        last = np.minimum(first + self.length, stops) - 1
        later = torch.from_numpy(last + (drawn[0] * (stops - last)).astype(np.int64))
        chosen = torch.from_numpy(np.flatnonzero(drawn[1] < hindsight.share))
        table, seen = self._tables["observations"], batch.observations
        reached = self._move(table.index_select(0, later[chosen].to(table.device)))
        goals = reached[:, hindsight.achieved].to(seen.dtype).unsqueeze(1)
        seen[self._move(chosen), :, hindsight.goal] = goals

    def _cut_out(self, first: np.ndarray, stops: np.ndarray, returns: np.ndarray) -> Batch:
        """The windows from rows `first` [B] to `stops` [B], zero beyond: a piece of memory each."""
        mask = self._columns < (stops - first)[:, None]  # [B, K]
        pads = np.flatnonzero(~mask)
        values = {name: runs[first] for name, runs in self._runs.items()}  # [B, K * ...]
        values["timesteps"] = values["timesteps"] + self._columns
        for name, value in values.items():
            shape = self._tables[name].shape[1:]
            if len(pads):
                value.reshape(mask.size, *shape)[pads] = 0
            values[name] = value.reshape(*mask.shape, *shape)
        return Batch(
            mask=torch.from_numpy(mask),
            episode_returns=torch.from_numpy(returns),
            **{name: torch.from_numpy(value) for name, value in values.items()},
        )

    def _collect(self, first: Tensor, stops: Tensor, returns: Tensor) -> Batch:
        """The same row by row, for all that `_make_runs` leaves out; `first`, `stops` [B, 1]."""
        rows = first + torch.arange(self.length)  # [B, K]
        mask = rows < stops
        rows = torch.minimum(rows, stops - 1)  # pads repeat the last step, then zeroed
        observe = self._stacks if self._stacked else self._gather
        return Batch(
            observations=observe("observations", rows, mask),
            actions=self._gather("actions", rows, mask),
            returns_to_go=self._gather("returns_to_go", rows, mask),
            timesteps=self._gather("timesteps", rows, mask),
            mask=self._move(mask),
            episode_returns=self._move(returns),
        )

    def _stacks(self, name: str, rows: Tensor, mask: Tensor) -> Tensor:
        """[B, K, n, ...] of a table of images [N, ...]: each is moved once, the stacks are a view
        of K + n - 1 of them. Zeros stand before an episode's start."""
        first = rows[:, :1]
        back = torch.arange(1 - self._stack, 0)  # the older frames of the first stack
        there = self._timesteps[first] + back >= 0
        rows = torch.cat([torch.where(there, first + back, first), rows], dim=1)
        frames = self._gather(name, rows, torch.cat([there, mask], dim=1))
        release(self._mapped)  # else all that was read would count as this process's memory
        return frames.unfold(1, self._stack, 1).movedim(-1, 2)

    def _gather(self, name: str, rows: Tensor, mask: Tensor) -> Tensor:
        table = self._tables[name]
        index = rows.flatten()
        if table.device.type == self.device.type:  # "cuda" is "cuda:0"
            values = table.index_select(0, self._move(index))
        else:
            values = self._move(table.index_select(0, index))
        values = values.view(*mask.shape, *table.shape[1:])
        pad = self._move(~mask)
        return values.masked_fill_(pad.view(*mask.shape, *[1] * (values.ndim - 2)), 0)

    def _move(self, tensor: Tensor) -> Tensor:
        return to_device(tensor, self.device)

    def _make_resident(self) -> None:
        if self.device.type != "cuda":
            return
        needed = sum(table.numel() * table.element_size() for table in self._tables.values())
        free, _ = torch.cuda.mem_get_info(self.device)
        if needed < free // 2:
            self._tables = {name: t.to(self.device) for name, t in self._tables.items()}

    def _make_runs(self) -> dict[str, np.ndarray]:
        """Views of the tables whose row i is K successive rows from i on, [N - K + 1, K * ...] (of
        timesteps the first alone); none of frames or for a GPU, nor where N < K."""
        count = len(self._timesteps) - self.length + 1
        if self._stacked or self.device.type != "cpu" or count < 1:
            return {}
        runs = {}
        for name, table in self._tables.items():
            flat = np.ascontiguousarray(table.numpy()).reshape(len(table), -1)  # [N, ...]
            shape = count, flat.shape[1] * (1 if name == "timesteps" else self.length)
            runs[name] = as_strided(flat, shape, flat.strides, writeable=False)
        return runs
