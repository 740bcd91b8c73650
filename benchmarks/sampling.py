"""Batches of windows, beside what else draws them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from benchmarks import models
from benchmarks.measure import Options, Table, benchmark, take_turns, timers
from benchmarks.peers import d3rlpy
from decision_seq.data.store import EpisodeStore

ARRAYS = ("observations", "actions", "rewards", "offsets")


@benchmark("sampler", "a batch of 64 windows, beside the papers' loop, a data loader and d3rlpy's")
def sampler(options: Options) -> Iterator[Table]:
    data = models.store()
    windows = models.sampler(data, options.device)
    batch = itertools.count()
    loader = iter(DataLoader(RowByRow(data), batch_size=models.BATCH))
    contenders = {
        "ours": lambda: [windows.batch(next(batch), models.BATCH) for _ in range(20)],
        "papers' loop": lambda: rows_one_by_one(data, options.device),
        "data loader": lambda: [column.to(options.device) for column in next(loader)],
    }
    with d3rlpy("d3rlpy", "batch", options) as elsewhere:
        rows = take_turns(timers(contenders, options) | elsewhere, options, {"ours": 20.0})
    size = models.BATCH * models.STEPS * 4 * (models.OBSERVATIONS + models.ACTIONS + 4)
    yield Table(
        "A batch of 64 windows of 20 steps",
        rows,
        base="ours",
        note=f"It gathers {size / 1e3:.0f} kB. The data loader, with no workers, slices and pads "
        "row by row and collates, as CORL does it. d3rlpy's `sample_trajectory_batch` runs in a "
        "process of its own, which takes turns with this one, and stays in NumPy.",
    )


class RowByRow(IterableDataset):
    """One window after the other, as CORL's SequenceDataset yields them: returns-to-go are there,
    the window is sliced, normalised and, at an episode's end, padded."""

    def __init__(self, data: EpisodeStore) -> None:
        starts, stops = data.offsets[:-1], data.offsets[1:]
        columns = (data.observations, data.actions, data.returns_to_go)
        self.episodes = [
            tuple(column[start:stop] for column in columns)
            for start, stop in zip(starts, stops, strict=True)
        ]
        self.mean, self.std = data.observations.mean(0), data.observations.std(0) + 1e-6
        self.share = data.lengths / data.steps

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        while True:
            episode = self.episodes[np.random.choice(len(self.episodes), p=self.share)]
            start = random.randint(0, len(episode[0]) - 1)
            states, actions, returns = (col[start : start + models.STEPS] for col in episode)
            states, returns = (states - self.mean) / self.std, returns * 1e-3
            got = len(states)
            mask = np.hstack([np.ones(got), np.zeros(models.STEPS - got)])
            if got < models.STEPS:
                padding = ((0, models.STEPS - got), (0, 0))
                states, actions = np.pad(states, padding), np.pad(actions, padding)
                returns = np.pad(returns, padding[0])
            yield states, actions, returns, np.arange(start, start + models.STEPS), mask


def rows_one_by_one(data: EpisodeStore, device: str) -> list[Tensor]:
    """What Decision Transformer's experiment.py does for every batch (arXiv:2106.01345): draws
    episodes by length, then slices, pads, normalises and stacks row by row."""
    store = {name: np.asarray(getattr(data, name)) for name in ARRAYS}
    k, scale = models.STEPS, 1000.0
    lengths = np.diff(store["offsets"])
    drawn = np.random.choice(len(lengths), models.BATCH, p=lengths / lengths.sum())
    columns: list[list[np.ndarray]] = [[] for _ in range(6)]
    mean, std = store["observations"][:1000].mean(0), store["observations"][:1000].std(0)
    for episode in drawn:
        first, length = store["offsets"][episode], int(lengths[episode])
        start = random.randint(0, length - 1)
        at = slice(first + start, first + min(start + k, length))
        got = at.stop - at.start
        pad = k - got
        observations = store["observations"][at][None]
        zeros = np.zeros((1, pad, observations.shape[-1]))
        observations = (np.concatenate([zeros, observations], axis=1) - mean) / std
        actions = store["actions"][at][None]
        actions = np.concatenate([np.ones((1, pad, actions.shape[-1])) * -10.0, actions], axis=1)
        rewards = np.concatenate(
            [np.zeros((1, pad, 1)), store["rewards"][at].reshape(1, -1, 1)], axis=1
        )
        rest = store["rewards"][first + start : first + length]
        sums = np.zeros_like(rest)
        sums[-1] = rest[-1]
        for i in reversed(range(len(rest) - 1)):  # a Python loop to the episode's end, as there
            sums[i] = rest[i] + sums[i + 1]
        to_go = sums[:got].reshape(1, -1, 1)
        to_go = np.concatenate([np.zeros((1, pad, 1)), to_go], axis=1) / scale
        timesteps = np.concatenate(
            [np.zeros((1, pad)), np.arange(start, start + got)[None]], axis=1
        )
        mask = np.concatenate([np.zeros((1, pad)), np.ones((1, got))], axis=1)
        for column, value in zip(
            columns, (observations, actions, rewards, to_go, timesteps, mask), strict=True
        ):
            column.append(value)
    return [
        torch.from_numpy(np.concatenate(column, axis=0)).float().to(device) for column in columns
    ]
