"""The same episodes through every source give the same store; what is malformed is one sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_episodes
from source_files import (
    LENGTHS,
    assert_same,
    by_csv,
    by_exported_minari,
    by_exported_npz,
    by_folder,
    by_hdf5,
    by_iterator,
    by_minari,
    by_minari_remote_form,
    by_name,
    by_npz,
    by_parquet,
    by_pickle,
    table,
    write_csv,
    write_minari,
)

from decision_seq.data import from_episodes, import_dataset
from decision_seq.data.episodes import Episodes, from_flat
from decision_seq.data.sources import absolute, stored
from decision_seq.data.store import open_store
from decision_seq.data.tools.check import examine
from decision_seq.errors import UserError

SOURCES: list[Callable[[Path, Episodes], str]] = [
    by_hdf5,
    by_pickle,
    by_csv,
    by_parquet,
    by_minari,
    by_minari_remote_form,
    by_iterator,
    by_name,
    by_folder,
    by_exported_minari,
    by_exported_npz,
]


@pytest.mark.parametrize("write", SOURCES, ids=lambda f: f.__name__)
def test_every_source_gives_the_same_store(
    write: Callable[[Path, Episodes], str], tmp_path: Path
) -> None:
    episodes = random_episodes(LENGTHS)
    reference = open_store([by_npz(tmp_path, episodes)])
    np.testing.assert_array_equal(reference.offsets, [0, 7, 8, 20, 23])
    assert_same(reference, open_store([write(tmp_path, episodes)]))


@pytest.mark.parametrize("write", [by_csv, by_parquet, by_iterator, by_exported_minari])
def test_discrete_actions_stay_numbers(
    write: Callable[[Path, Episodes], str], tmp_path: Path
) -> None:
    continuous = random_episodes(LENGTHS)
    actions = np.arange(23) % 4
    episodes = dataclasses.replace(continuous, actions=actions)
    reference = open_store([by_npz(tmp_path, episodes)])
    assert reference.discrete and reference.action_dim == 4
    assert_same(reference, open_store([write(tmp_path, episodes)]))


def test_flat_arrays_need_no_copy() -> None:
    """Reading a large file must not double it: float32 arrays are taken as they are."""
    observations = np.zeros((5, 3), np.float32)
    ends = np.zeros(5, bool)
    episodes = from_flat(
        "x", observations, np.zeros((5, 2), np.float32), np.zeros(5), ends, ends, {}
    )
    assert np.shares_memory(episodes.observations, observations)
    assert not ends.any()  # but the caller's flags are not changed


# ---- iterators -----------------------------------------------------------------------------

FINE = {
    "observations": np.zeros((4, 3)),
    "actions": np.zeros((4, 2)),
    "rewards": np.zeros(4),
    "terminated": True,
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": []}, ["no steps"]),
        ({"actions": np.zeros((3, 2))}, ["`actions` has 3 rows", "`rewards` has 4"]),
        ({"actions": np.zeros((4, 3))}, ["`actions` is float64 of width 3", "width 2"]),
        ({"actions": np.zeros(4, int)}, ["`actions` is int64 numbers"]),
        ({"rewards": 1.0}, ["`rewards` is a single value"]),
        ({"rewards": np.zeros((4, 2))}, ["`rewards` has several columns"]),
        ({"terminated": [False, True, False, True]}, ["`terminated` is set at step 1 of 4"]),
        ({"terminated": 3}, ["other values than 0 and 1"]),
        ({"observations": [[1], [2, 3]]}, ["`observations` is not an array of numbers"]),
        ({"observations": ["a"] * 4}, ["`observations` is not an array of numbers"]),
    ],
)
def test_bad_episodes_are_one_sentence(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        from_episodes([FINE, FINE | changes], "bad")
    for word in ("bad: episode 1", *words):
        assert word in str(error.value)
    assert stored.names() == []


def test_the_observation_after_the_last_action_is_left_out() -> None:
    longer = FINE | {"observations": np.arange(15.0).reshape(5, 3)}
    store = from_episodes([longer, FINE], "longer", env="point-run")
    assert store.steps == 8 and store.observations[3, 0] == 9 and store.observations[4, 0] == 0
    assert store.info["env_id"] == "decision-seq/PointRun-v0"
    assert store.terminated.sum() == 2 and not store.truncated.any()


# ---- folders -------------------------------------------------------------------------------


def test_folders(tmp_path: Path) -> None:
    episodes = random_episodes(LENGTHS)
    folder = Path(by_folder(tmp_path, episodes))
    first = open_store([str(folder)])
    assert first.name == "parts" and first.episodes_per_source == (4,)
    assert absolute(str(folder)) == str(folder)
    write_csv(folder / "3.csv", table(random_episodes([5])))
    assert open_store([str(folder)]).steps == 28  # a new file is noticed
    write_csv(folder / "4.csv", table(random_episodes([5], width=4)))
    with pytest.raises(UserError, match=r"4\.csv: `observations` is float32 of width 4"):
        open_store([str(folder)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no \.npz"):
        open_store([str(tmp_path / "empty")])


# ---- Minari --------------------------------------------------------------------------------


def test_remote_forms_say_how_to_get_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minari's own message where its extra is missing; what to run and where to put it always."""
    import minari

    def fails(source: str) -> None:
        assert source == "gcp://bucket/mujoco/hopper/medium-v0"
        raise ImportError('pip install "minari[gcs]"')

    monkeypatch.setattr(minari, "download_dataset", fails)
    with pytest.raises(UserError) as error:
        open_store(["gcp://bucket/mujoco/hopper/medium-v0"])
    for word in (
        "a package is missing",
        "minari[gcs]",
        "minari download gcp://bucket/mujoco/hopper/medium-v0",
        "copy its",
    ):
        assert word in str(error.value)
    for other in ("s3://bucket/a-v0", "hf://a-v0", "hf://owner/no-version"):
        with pytest.raises(UserError, match="is not a dataset"):
            open_store([other])


@pytest.mark.parametrize(
    "command",
    [open_store, examine, lambda names: import_dataset(names, "kept")],
    ids=["open", "check", "import"],
)
def test_every_command_asks_minari_for_what_is_not_here(
    command: Callable[[list[str]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import minari

    asked = []

    def fetch(source: str) -> None:
        asked.append(source)
        write_minari("test/remote-v0", random_episodes(LENGTHS))

    monkeypatch.setattr(minari, "download_dataset", fetch)
    for _ in range(2):
        command(["hf://someone/test/remote-v0"])
    assert asked == ["hf://someone/test/remote-v0"]  # once: then it is local
    with pytest.raises(UserError, match="run `decision-seq collect hopper expert`"):
        command(["decision-seq/hopper/expert-v0"])


@pytest.mark.slow  # the client tries for half a minute
def test_hugging_face_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"minari download hf://farama-minari/D4RL/door/human-v2"):
        open_store(["hf://farama-minari/D4RL/door/human-v2"])
