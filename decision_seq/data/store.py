"""EpisodeStore: trajectories as flat memory-mapped arrays, built once and cached by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes, check_finite, concatenate
from decision_seq.data.sources import resolve
from decision_seq.errors import UserError
from decision_seq.files import atomic_folder, cache_dir

LAYOUT = 1  # part of the cache key: raise it when the files' meaning changes
ARRAYS = (
    "observations",
    "actions",
    "rewards",
    "terminated",
    "truncated",
    "returns_to_go",
    "timesteps",
    "offsets",
)


@dataclass
class EpisodeStore:
    """N steps of M episodes as flat arrays, memory-mapped copy-on-write.

    `hash` is that of the arrays, so the same episodes have the same hash whatever file they
    came from. `name` is what a person calls the dataset: its sources.
    """

    observations: np.ndarray  # [N, *observation_shape] float32 or uint8
    actions: np.ndarray  # [N, A] float32 or [N] int64
    rewards: np.ndarray  # [N] float32
    terminated: np.ndarray  # [N] bool
    truncated: np.ndarray  # [N] bool
    returns_to_go: np.ndarray  # [N] float32, sum of rewards from this step to the episode's end
    timesteps: np.ndarray  # [N] int64, index within the episode
    offsets: np.ndarray  # [M + 1] int64
    info: dict[str, Any]
    hash: str
    name: str

    @property
    def steps(self) -> int:
        """N"""
        return len(self.rewards)

    @property
    def episodes(self) -> int:
        """M"""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """[M] steps of each episode."""
        return np.diff(self.offsets)

    @property
    def episode_returns(self) -> np.ndarray:
        """[M] undiscounted return of each episode."""
        return self.returns_to_go[self.offsets[:-1]]

    @property
    def discrete(self) -> bool:
        """Whether actions are indices rather than vectors."""
        return self.actions.ndim == 1

    @property
    def action_dim(self) -> int:
        """Width of a continuous action, or the number of discrete ones seen."""
        return int(self.actions.max()) + 1 if self.discrete else self.actions.shape[1]


def open_store(sources: Sequence[str]) -> EpisodeStore:
    """Open one dataset made of `sources` (files or Minari ids), building it on first use.

    Raises:
        UserError: a source is missing or malformed, or the cache cannot be written.
    """
    if not sources:
        raise UserError("data.sources is empty; name at least one file or Minari dataset id")
    readers = [resolve(source) for source in sources]
    fingerprints = [reader.fingerprint() for reader in readers]
    key = hashlib.sha256("\n".join([str(LAYOUT), *fingerprints]).encode()).hexdigest()[:24]
    folder = cache_dir() / "datasets" / key
    if not folder.exists():
        parts = [reader.read() for reader in readers]
        for source, part in zip(sources, parts, strict=True):
            check_finite(source, part)
        _write(folder, concatenate(parts, list(sources)))
    name = " + ".join(reader.name for reader in readers)
    return _open(folder, name)


def returns_to_go(rewards: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """[N] float32 suffix sums of `rewards` [N] within episodes, summed in float64."""
    total = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])  # [N + 1]
    ends = np.repeat(total[offsets[1:]], np.diff(offsets))  # [N]
    return (ends - total[:-1]).astype(np.float32)


def _write(folder: Path, episodes: Episodes) -> None:
    lengths, offsets = episodes.lengths, episodes.offsets
    arrays = {name: getattr(episodes, name, None) for name in ARRAYS}
    arrays["returns_to_go"] = returns_to_go(episodes.rewards, offsets)
    arrays["timesteps"] = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    digest = hashlib.sha256()
    with atomic_folder(folder) as temporary:
        for name in ARRAYS:
            array = np.ascontiguousarray(arrays[name])
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.data)
            np.save(temporary / f"{name}.npy", array)
        meta = {"hash": digest.hexdigest()[:16], "info": episodes.info}
        (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _open(folder: Path, name: str) -> EpisodeStore:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        # mode "c": nothing is written back, and torch accepts the arrays without a warning
        arrays = {array: np.load(folder / f"{array}.npy", mmap_mode="c") for array in ARRAYS}
        return EpisodeStore(**arrays, info=meta["info"], hash=meta["hash"], name=name)
    except (OSError, ValueError, KeyError, EOFError):
        raise UserError(
            f"{folder}: the cached copy of {name} is damaged; delete this folder and run again"
        ) from None
