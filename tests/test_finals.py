"""What was seen after an episode's last step: kept where a source has it, in step with episodes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import random_episodes, write_npz
from source_files import each, write_hdf5, write_minari

from decision_seq.data import from_episodes, import_dataset
from decision_seq.data.episodes import Episodes
from decision_seq.data.finals import FINALS
from decision_seq.data.sources import ogbench, resolve, stored
from decision_seq.data.store import open_folder, open_store, write_store
from decision_seq.data.tools.check import drop_bad, examine
from decision_seq.data.tools.export import EXPORTERS
from decision_seq.data.tools.library import verify
from decision_seq.errors import UserError

EPISODES = random_episodes([7, 1, 12, 3])
FINAL = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
Write = Callable[[Path, np.ndarray], str]


def after(finals: np.ndarray) -> np.ndarray:
    """`next_observations` [N, 3]"""
    rows = np.roll(EPISODES.observations, -1, axis=0)
    rows[EPISODES.offsets[1:] - 1] = finals
    return rows


def whole(finals: np.ndarray) -> Iterator[dict[str, Any]]:
    """Episodes with observations [T + 1, 3]."""
    for episode, final in zip(each(EPISODES), finals, strict=True):
        yield episode | {"observations": np.append(episode["observations"], final[None], axis=0)}


def by_python(_path: Path, finals: np.ndarray) -> str:
    return from_episodes(whole(finals), "handed-over").name


def by_json(path: Path, finals: np.ndarray) -> str:
    lines = [
        {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in episode.items()}
        for episode in whole(finals)
    ]
    (path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(path / "a.jsonl")


def by_minari(_path: Path, finals: np.ndarray) -> str:
    return write_minari("test/finals-v0", EPISODES, finals)


def by_npz(path: Path, finals: np.ndarray) -> str:
    return str(write_npz(path / "a.npz", EPISODES, final_observations=finals))


def by_next_observations(path: Path, finals: np.ndarray) -> str:
    return str(write_npz(path / "b.npz", EPISODES, next_observations=after(finals)))


def by_d4rl(path: Path, finals: np.ndarray) -> str:
    file = write_hdf5(path / "c.hdf5", EPISODES)
    with h5py.File(file, "a") as opened:
        opened["next_observations"] = after(finals)
    return str(file)


def by_import(path: Path, finals: np.ndarray) -> str:
    return import_dataset([by_json(path, finals)], "kept").name


def by_exported_npz(path: Path, finals: np.ndarray) -> str:
    EXPORTERS["npz"](open_store([by_json(path, finals)]), str(path / "out.npz"))
    return str(path / "out.npz")


def by_exported_minari(path: Path, finals: np.ndarray) -> str:
    EXPORTERS["minari"](open_store([by_json(path, finals)]), "mine/exported-v0")
    return "mine/exported-v0"


SOURCES = [
    by_python, by_json, by_minari, by_npz, by_next_observations, by_d4rl, by_import,
    by_exported_npz, by_exported_minari,
]  # fmt: skip


@pytest.mark.parametrize("write", SOURCES, ids=lambda f: f.__name__)
def test_every_source_keeps_them(write: Write, tmp_path: Path) -> None:
    """Beside the same hash: that names the episodes."""
    source = write(tmp_path, FINAL)
    store = open_store([source])
    np.testing.assert_array_equal(store.final_observations, FINAL)
    assert store.hash == open_store([str(write_npz(tmp_path / "x.npz", EPISODES))]).hash
    np.testing.assert_array_equal(resolve(source).read().final_observations, FINAL)
    verify(store)


@pytest.mark.parametrize(
    "finals",
    [
        EPISODES.observations[EPISODES.offsets[1:] - 1],
        np.roll(EPISODES.observations, -1, axis=0)[EPISODES.offsets[1:] - 1],
        np.zeros_like(FINAL),
        np.where(np.arange(4)[:, None] == 2, np.float32(np.nan), FINAL),
    ],
    ids=["the last once more", "rows shifted", "zeros", "one not finite"],
)
def test_what_only_fills_a_place_is_not_taken_for_them(finals: np.ndarray, tmp_path: Path) -> None:
    for write in (by_next_observations, by_d4rl, by_minari):
        assert open_store([write(tmp_path, finals)]).final_observations is None, write.__name__


def test_all_episodes_and_all_sources_have_them_or_none(tmp_path: Path) -> None:
    some = [*whole(FINAL)]
    some[2] = [*each(EPISODES)][2]
    assert from_episodes(some, "some").final_observations is None
    one, other = by_json(tmp_path, FINAL), by_minari(tmp_path, FINAL[::-1])
    both = open_store([one, other]).final_observations
    np.testing.assert_array_equal(both, np.concatenate([FINAL, FINAL[::-1]]))
    plain = str(write_npz(tmp_path / "x.npz", EPISODES))
    assert open_store([one, plain]).final_observations is None


def test_they_stay_in_step_with_episodes(tmp_path: Path) -> None:
    bad = dataclasses.replace(EPISODES, actions=EPISODES.actions.copy())
    bad.actions[EPISODES.offsets[1]] = np.nan  # the episode of one step
    source = str(write_npz(tmp_path / "bad.npz", bad, final_observations=FINAL))
    assert [d["episode"] for d in drop_bad(examine([source]), tmp_path / "out.npz")] == [1]
    clean = open_store([str(tmp_path / "out.npz")])
    np.testing.assert_array_equal(clean.final_observations, FINAL[[0, 2, 3]])
    path = write_npz(tmp_path / "pointmaze-medium-navigate-v0.npz", EPISODES, meta=None)
    episodes = resolve(by_npz(tmp_path, FINAL)).read()
    assert ogbench.chosen(path, episodes, ogbench.Choice(goals=True)).final_observations is None
    with pytest.raises(UserError, match=r"a\.npz: `final_observations` is of shape \(3, 3\)"):
        resolve(by_npz(tmp_path, FINAL[1:])).read()


def test_an_imported_dataset_gets_them_later_and_their_damage_is_noticed(tmp_path: Path) -> None:
    plain = str(write_npz(tmp_path / "x.npz", EPISODES))
    first = import_dataset([plain], "mine")
    source = by_json(tmp_path, FINAL)
    mixed = open_store(["mine", source])
    assert (first.final_observations, first.finals_hash) == (None, "")
    assert mixed.final_observations is None
    again = import_dataset([source], "mine")
    np.testing.assert_array_equal(again.final_observations, FINAL)
    assert again.hash == first.hash and again.finals_hash
    assert import_dataset([plain], "mine").finals_hash == again.finals_hash  # they are not lost
    both = open_store(["mine", source])  # not the one that was cached before
    assert both.final_observations is not None and both.hash == mixed.hash
    with pytest.raises(UserError, match="another dataset has this name"):
        import_dataset([by_json(tmp_path, FINAL + 1)], "mine")
    file = stored.library() / "mine" / f"{FINALS}.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        verify(open_store(["mine"]))
    np.save(file, FINAL[1:])
    with pytest.raises(UserError, match="damaged"):
        open_store(["mine"])


def test_of_another_shape_they_are_not_written(tmp_path: Path) -> None:
    wrong = dataclasses.replace(EPISODES, final_observations=FINAL[:, :2])
    with pytest.raises(UserError, match="`final_observations` must be what observations are"):
        write_store(tmp_path / "store", wrong, {})
    right: Episodes = dataclasses.replace(EPISODES, final_observations=FINAL)
    write_store(tmp_path / "store", right, {})
    assert open_folder(tmp_path / "store", "a").final_observations is not None
