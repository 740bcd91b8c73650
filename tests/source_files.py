"""The same episodes written in every format that is read, and handed over as Python code would."""

from __future__ import annotations

import csv
import pickle
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from conftest import write_npz
from minari.data_collector.episode_buffer import EpisodeBuffer

from decision_seq.data import from_episodes, import_dataset
from decision_seq.data.episodes import Episodes
from decision_seq.data.store import ARRAYS, EpisodeStore, open_store
from decision_seq.data.tools.export import EXPORTERS

LENGTHS = [7, 1, 12, 3]


def write_hdf5(path: Path, episodes: Episodes, timeouts: bool = True) -> Path:
    """D4RL's layout, with the extra groups that its files carry."""
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = episodes.observations, episodes.actions
        file["rewards"], file["terminals"] = episodes.rewards, episodes.terminated
        if timeouts:
            file["timeouts"] = episodes.truncated
        file["metadata/algorithm"] = "SAC"
        file["infos/qpos"] = np.zeros((len(episodes.rewards), 6))
    return path


def write_minari(dataset_id: str, episodes: Episodes, finals: np.ndarray | None = None) -> str:
    """The same episodes as a Minari dataset, with `finals` or the last observation twice."""
    import gymnasium as gym

    buffers = []
    for m, (start, stop) in enumerate(pairwise(episodes.offsets)):
        observations = episodes.observations[start:stop]
        after = observations[-1:] if finals is None else finals[m : m + 1]
        buffers.append(
            EpisodeBuffer(
                observations=np.concatenate([observations, after]),
                actions=episodes.actions[start:stop],
                rewards=list(episodes.rewards[start:stop]),
                terminations=list(episodes.terminated[start:stop]),
                truncations=list(episodes.truncated[start:stop]),
            )
        )
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            observation_space=gym.spaces.Box(-np.inf, np.inf, episodes.observations.shape[1:]),
            action_space=gym.spaces.Box(-1, 1, episodes.actions.shape[1:]),
            jpeg_encoding=False,
        )
    return dataset_id


def assert_same(a: EpisodeStore, b: EpisodeStore) -> None:
    for name in ARRAYS:
        mine, theirs = getattr(a, name), getattr(b, name)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs, err_msg=name)
    assert a.hash == b.hash


def each(episodes: Episodes) -> Iterator[dict[str, Any]]:
    """The episodes one by one, as Python code would hand them over."""
    for start, stop in pairwise(episodes.offsets):
        yield {
            "observations": episodes.observations[start:stop],
            "actions": episodes.actions[start:stop],
            "rewards": episodes.rewards[start:stop],
            "terminated": bool(episodes.terminated[stop - 1]),
            "truncated": bool(episodes.truncated[stop - 1]),
        }


def trajectories(episodes: Episodes) -> list[dict[str, Any]]:
    """As the Decision Transformer code keeps them."""
    return [
        {
            "observations": e["observations"],
            "next_observations": np.roll(e["observations"], -1, axis=0),
            "actions": e["actions"],
            "rewards": e["rewards"],
            "terminals": np.arange(len(e["rewards"])) == len(e["rewards"]) - e["terminated"],
        }
        for e in each(episodes)
    ]


def table(episodes: Episodes) -> dict[str, list[Any]]:
    """As a log, column by column."""
    lengths = np.diff(episodes.offsets)
    columns: dict[str, list[Any]] = {
        "episode": np.repeat(np.arange(len(lengths)) + 10, lengths).tolist(),
        "step": np.concatenate([np.arange(n) for n in lengths]).tolist(),
    }
    for i in range(episodes.observations.shape[1]):
        columns[f"observation_{i}"] = episodes.observations[:, i].tolist()
    if episodes.actions.ndim == 1:
        columns["action"] = episodes.actions.tolist()
    else:
        for i in range(episodes.actions.shape[1]):
            columns[f"action_{i}"] = episodes.actions[:, i].tolist()
    columns["reward"] = episodes.rewards.tolist()
    columns["terminated"] = episodes.terminated.tolist()
    columns["truncated"] = episodes.truncated.tolist()
    return columns


def write_csv(path: Path, columns: dict[str, list[Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def by_npz(folder: Path, episodes: Episodes) -> str:
    return str(write_npz(folder / "a.npz", episodes))


def by_hdf5(folder: Path, episodes: Episodes) -> str:
    return str(write_hdf5(folder / "b.hdf5", episodes))


def by_pickle(folder: Path, episodes: Episodes) -> str:
    path = folder / "c.pkl"
    path.write_bytes(pickle.dumps(trajectories(episodes)))
    return str(path)


def by_csv(folder: Path, episodes: Episodes) -> str:
    return str(write_csv(folder / "d.csv", table(episodes)))


def by_parquet(folder: Path, episodes: Episodes) -> str:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(table(episodes)), folder / "e.parquet")
    return str(folder / "e.parquet")


def by_minari(_folder: Path, episodes: Episodes) -> str:
    return write_minari("test/same-v0", episodes)


def by_minari_remote_form(_folder: Path, episodes: Episodes) -> str:
    return f"hf://someone/{write_minari('test/same-v0', episodes)}"


def by_iterator(_folder: Path, episodes: Episodes) -> str:
    return from_episodes(each(episodes), "handed-over").name


def by_name(folder: Path, episodes: Episodes) -> str:
    return import_dataset([by_npz(folder, episodes)], "kept").name


def by_folder(folder: Path, episodes: Episodes) -> str:
    """Two files, in the order of their names, and one that is none of ours."""
    (folder / "parts").mkdir()
    half = int(episodes.offsets[2])
    columns = table(episodes)
    write_csv(folder / "parts" / "1.csv", {k: v[:half] for k, v in columns.items()})
    write_csv(folder / "parts" / "2.csv", {k: v[half:] for k, v in columns.items()})
    (folder / "parts" / "readme.txt").write_text("notes")
    return str(folder / "parts")


def by_exported_minari(folder: Path, episodes: Episodes) -> str:
    EXPORTERS["minari"](open_store([by_npz(folder, episodes)]), "mine/exported-v0")
    return "mine/exported-v0"


def by_exported_npz(folder: Path, episodes: Episodes) -> str:
    EXPORTERS["npz"](open_store([by_csv(folder, episodes)]), str(folder / "out.npz"))
    return str(folder / "out.npz")
