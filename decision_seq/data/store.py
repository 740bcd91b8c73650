"""EpisodeStore: trajectories as flat memory-mapped arrays, built once and cached by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes, check_finite, concatenate
from decision_seq.data.finals import FINALS, fits
from decision_seq.data.findings import Finding
from decision_seq.data.frames import chunks, is_vector, save
from decision_seq.data.sources import resolve, stored
from decision_seq.envs.atari import FRAME_STACK
from decision_seq.errors import UserError
from decision_seq.files import atomic_file, atomic_folder, cache_dir, remove_leftovers, write_text
from decision_seq.spaces.table import Table, from_json

LAYOUT = 7  # part of the cache key: raise it when the files' meaning changes
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

    observations: np.ndarray  # [N, S] float32 or uint8, images [N, H, W(, C)], or records [N]
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
    episodes_per_source: tuple[int, ...] = ()  # in the order of the sources; they sum to M
    incomplete: tuple[int, ...] = ()  # episodes without an end flag, which were marked truncated
    seeds: tuple[int, ...] = ()  # of the environment, an episode each, where the source has them
    findings: tuple[Finding, ...] = ()  # of reading: what had to be guessed or could not be kept
    # [M, ...] in the form of observations: what was seen after each episode's last step, where all
    # sources have it
    final_observations: np.ndarray | None = None
    finals_hash: str = ""  # of these alone: `hash` is the same with and without them

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
    def frames(self) -> bool:
        """Whether observations are images or have some in them."""
        return not is_vector(self.observations)

    @property
    def frame_stack(self) -> int:
        """How many of the last images an agent sees if nothing else is said: 4 of gray ones."""
        return FRAME_STACK if self.observations.ndim == 3 else 1

    @property
    def observation_table(self) -> Table | None:
        """What observations are made of, where that is more than one vector or gray image."""
        plain = self.info.get("observation_space")
        return None if plain is None else from_json(plain, self.name)

    @property
    def action_table(self) -> Table | None:
        """The same of actions that are more than one vector or choice."""
        plain = self.info.get("action_space")
        return None if plain is None else from_json(plain, self.name)

    @property
    def discrete(self) -> bool:
        """Whether actions are indices rather than vectors."""
        return self.actions.ndim == 1

    @property
    def action_dim(self) -> int:
        """Width of a continuous action; the number of discrete ones, as far as they were seen if
        the source does not say."""
        if not self.discrete:
            return self.actions.shape[1]
        return int(self.info.get("action_count") or self.actions.max() + 1)


def open_store(sources: Sequence[str]) -> EpisodeStore:
    """Open one dataset made of `sources` (files, folders, imported names, Minari ids), building it
    on first use.

    Raises:
        UserError: a source is missing or malformed, or the cache cannot be written.
    """
    if not sources:
        raise UserError("data.sources is empty; name at least one file or Minari dataset id")
    readers = [resolve(source) for source in sources]
    name = " + ".join(reader.name for reader in readers)
    if len(readers) == 1 and readers[0].folder is not None:
        return open_folder(readers[0].folder, name)
    fingerprints = [reader.fingerprint() for reader in readers]
    key = hashlib.sha256("\n".join([str(LAYOUT), *fingerprints]).encode()).hexdigest()[:24]
    folder = cache_dir() / "datasets" / key
    if not folder.exists():
        parts = [reader.read() for reader in readers]
        for source, part in zip(sources, parts, strict=True):
            check_finite(source, part)
        counts = [len(part.lengths) for part in parts]
        write_store(folder, concatenate(parts, list(sources)), {"episodes_per_source": counts})
    remove_leftovers(folder.parent, folder.name)  # of a process killed while it tidied up
    return open_folder(folder, name)


def returns_to_go(rewards: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """[N] float32 suffix sums of `rewards` [N] within episodes, each summed from its end in
    float64: a huge reward rounds neither what comes after it nor other episodes."""
    to_go = np.empty(len(rewards), np.float32)
    lengths = np.diff(offsets)
    for length in np.unique(lengths):  # episodes of one length at once
        rows = offsets[:-1][lengths == length, None] + np.arange(length)  # [M', length]
        backwards = np.cumsum(rewards[rows][:, ::-1], axis=1, dtype=np.float64)
        to_go[rows] = backwards[:, ::-1]
    return to_go


def write_store(folder: Path, episodes: Episodes, meta: dict[str, Any]) -> None:
    """Write episodes in our layout, atomically: a .npy file an array, and meta.json. Final
    observations, where there are any, have a checksum of their own."""
    lengths, offsets = episodes.lengths, episodes.offsets
    arrays: dict[str, Any] = {name: getattr(episodes, name, None) for name in ARRAYS}
    arrays["returns_to_go"] = returns_to_go(episodes.rewards, offsets)
    arrays["timesteps"] = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    with atomic_folder(folder) as temporary:
        for name in ARRAYS:
            save(temporary / f"{name}.npy", arrays[name])
        findings = [finding.plain() for finding in episodes.findings]
        kept: dict[str, Any] = {
            "incomplete": episodes.incomplete,
            "seeds": episodes.seeds,
            "findings": findings,
        }
        if episodes.final_observations is not None:
            kept["finals_hash"] = _save_finals(temporary, episodes)
        meta = {"episodes_per_source": [len(lengths)], "info": episodes.info, **kept} | meta
        text = json.dumps({"hash": checksum(arrays), "layout": LAYOUT, **meta})
        (temporary / "meta.json").write_text(text, encoding="utf-8")


def add_finals(folder: Path, episodes: Episodes) -> None:
    """Add the final observations of `episodes` to a stored dataset of the same without any."""
    meta = stored.read_meta(folder) | {"finals_hash": _save_finals(folder, episodes)}
    write_text(folder / "meta.json", json.dumps(meta))


def _save_finals(folder: Path, episodes: Episodes) -> str:
    finals = episodes.final_observations
    if finals is None or not fits(finals, episodes.observations, len(episodes.lengths)):
        raise UserError(f"{folder}: `{FINALS}` must be what observations are, one row an episode")
    with atomic_file(folder / f"{FINALS}.npy") as temporary:
        save(temporary, finals)
    return checksum(vars(episodes), (FINALS,))


def _check_sums(folder: Path, arrays: Mapping[str, Any]) -> None:
    """Datasets were imported when returns were differences of sums over all episodes: raise
    UserError where that rounded them."""
    exact = returns_to_go(arrays["rewards"], arrays["offsets"])
    if not np.allclose(arrays["returns_to_go"], exact, rtol=1e-3, atol=1e-6):
        raise UserError(
            f"{folder}: its returns are wrong: huge rewards of some episodes rounded those of "
            "others when it was imported; delete this folder and import it again"
        )


def checksum(arrays: Mapping[str, Any], names: Sequence[str] = ARRAYS) -> str:
    """16 hexadecimal digits of a store's arrays: names, types, shapes and every byte."""
    digest = hashlib.sha256()
    for name in names:
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        for chunk in chunks(array):
            digest.update(chunk.data)
    return digest.hexdigest()[:16]


def open_folder(folder: Path, name: str) -> EpisodeStore:
    """Open a dataset in our layout. Raises UserError if it is damaged."""
    meta = stored.read_meta(folder)
    arrays = stored.load_arrays(folder, ARRAYS, meta)
    if "layout" not in meta:
        _check_sums(folder, arrays)
    return EpisodeStore(
        **arrays,
        info=meta["info"],
        hash=meta["hash"],
        name=name,
        episodes_per_source=tuple(meta["episodes_per_source"]),
        finals_hash=meta.get("finals_hash", ""),
        **stored.recorded(folder, meta, len(arrays["offsets"]) - 1),
    )
