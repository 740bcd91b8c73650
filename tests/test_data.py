"""Stores: one of all sources, built once; what is refused; transforms and summaries."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest
from conftest import random_episodes, write_npz
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import write_hdf5, write_minari

from decision_seq.data.episodes import Episodes
from decision_seq.data.store import EpisodeStore, open_store, returns_to_go
from decision_seq.data.tools.distribution import histogram
from decision_seq.data.tools.info import summarize
from decision_seq.data.transforms import ObservationNorm, delay_rewards, hold_out, top_fraction
from decision_seq.errors import UserError


def test_steps_after_the_last_end_are_kept_as_truncated(tmp_path: Path) -> None:
    episodes = random_episodes([4, 4])
    episodes.truncated[-1] = False
    store = open_store([str(write_npz(tmp_path / "a.npz", episodes))])
    assert store.steps == 8 and store.truncated[-1] and not store.terminated[-1]


def test_sources_join_into_one_dataset(tmp_path: Path) -> None:
    first, second = random_episodes([3, 2]), random_episodes([4], seed=1)
    files = [
        str(write_npz(tmp_path / "a.npz", first)),
        str(write_hdf5(tmp_path / "b.hdf5", second)),
    ]
    store = open_store(files)
    np.testing.assert_array_equal(store.offsets, [0, 3, 5, 9])
    np.testing.assert_array_equal(store.rewards, np.concatenate([first.rewards, second.rewards]))
    assert store.name == "a + b"


def test_store_is_built_once_and_rebuilt_for_other_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_npz(tmp_path / "a.npz", random_episodes([3]))
    first = open_store([str(path)])
    assert isinstance(first.observations, np.memmap)
    monkeypatch.setattr(
        "decision_seq.data.store.write_store", lambda *_: pytest.fail("built again")
    )
    assert open_store([str(path)]).hash == first.hash
    monkeypatch.undo()
    write_npz(path, random_episodes([3], seed=1))
    assert open_store([str(path)]).hash != first.hash


def test_return_to_go_is_the_naive_sum() -> None:
    rewards = np.random.default_rng(0).standard_normal(30).astype(np.float32)
    offsets = np.array([0, 4, 5, 30])
    naive = [
        sum(float(r) for r in rewards[t:stop])
        for start, stop in pairwise(offsets)
        for t in range(start, stop)
    ]
    np.testing.assert_allclose(returns_to_go(rewards, offsets), naive, rtol=1e-6, atol=1e-6)


def test_observation_statistics() -> None:
    data = np.random.default_rng(0).normal(5, 3, (1000, 2)).astype(np.float32)
    norm = ObservationNorm.of(data)
    np.testing.assert_allclose(norm.mean, data.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.std, data.std(0) + 1e-6, rtol=1e-5)


# ---- what is refused -----------------------------------------------------------------------


def nan_at(episodes: Episodes, row: int) -> np.ndarray:
    observations = episodes.observations.copy()
    observations[row, 1] = np.nan
    return observations


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"actions": None}, ["`actions` is missing"]),
        (
            {"observations": nan_at(random_episodes([5, 4]), 6)},
            ["NaN", "step 6", "episode 1", "step 1 in it"],
        ),
        ({"actions": np.zeros((8, 2), np.float32)}, ["`actions` has 8 rows", "9"]),
        ({"actions": np.array(["a"] * 9)}, ["`actions`"]),
        ({"observations": np.zeros((9, 0), np.float32)}, ["`observations`", "[steps, width]"]),
        ({"actions": np.full(9, 2**40)}, ["`actions`", "up to 65536 numbers"]),
        ({"rewards": np.array(1.0)}, ["`rewards`", "single value"]),
        ({"terminations": np.array(["False"] * 9)}, ["`terminations`"]),
        ({"truncations": np.full(9, np.nan)}, ["`truncations`", "0 and 1"]),
        ({"terminations": np.zeros((9, 2))}, ["`terminations`", "(9, 2)"]),
        ({"meta": np.array('{"env_id": 3}')}, ["`meta`"]),
        ({"meta": np.array("{")}, ["`meta`", "JSON"]),
        ({"rewards": np.array([{}] * 9, dtype=object)}, ["cannot be read"]),
    ],
)
def test_bad_npz_is_one_sentence(
    changes: dict[str, np.ndarray | None], words: list[str], tmp_path: Path
) -> None:
    path = write_npz(tmp_path / "bad.npz", random_episodes([5, 4]), **changes)
    with pytest.raises(UserError) as error:
        open_store([str(path)])
    assert "bad.npz" in str(error.value) and "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_empty_datasets_are_refused(tmp_path: Path) -> None:
    nothing = {
        "observations": np.zeros((0, 3), np.float32),
        "actions": np.zeros((0, 2), np.float32),
        "rewards": np.zeros(0, np.float32),
        "terminations": np.zeros(0, bool),
        "truncations": np.zeros(0, bool),
    }
    path = write_npz(tmp_path / "empty.npz", random_episodes([2]), **nothing)
    with pytest.raises(UserError, match="no steps"):
        open_store([str(path)])


def test_minari_episode_without_steps_is_refused() -> None:
    episodes = random_episodes([4, 3])
    dataset_id = write_minari("test/hollow-v0", episodes)
    data = minari.load_dataset(dataset_id).storage.data_path / "main_data.hdf5"
    with h5py.File(data, "a") as file:
        group = file["episode_1"]
        for name in ("rewards", "actions", "terminations", "truncations"):
            kept = group[name][:0]
            del group[name]
            group[name] = kept
        group.attrs["total_steps"] = 0
    with pytest.raises(UserError, match="episode 1 has no steps"):
        open_store([dataset_id])


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_cut_off_files_are_one_sentence(suffix: str, keep: float, tmp_path: Path) -> None:
    writer = write_npz if suffix == ".npz" else write_hdf5
    path = writer(tmp_path / f"cut{suffix}", random_episodes([50]))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(UserError, match="cut"):
        open_store([str(path)])


def test_a_minari_file_given_by_path_says_so(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "main.hdf5", "w") as file:
        file["episode_0/observations"] = np.zeros(3)
    with pytest.raises(UserError, match="`observations` is missing"):
        open_store([str(tmp_path / "main.hdf5")])


@pytest.mark.parametrize("name", ["missing.npz", "missing.hdf5", "hopper-medium", "nowhere/x"])
def test_unknown_datasets_are_one_sentence(name: str) -> None:
    with pytest.raises(UserError, match=name):
        open_store([name])


def test_remote_id_without_a_network_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minari's own client asks a closed local port, so nothing leaves the machine."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # between its tries
    with pytest.raises(UserError) as error:
        open_store(["mujoco/hopper/medium-v0"])
    assert "minari download mujoco/hopper/medium-v0" in str(error.value)


def test_a_dataset_of_ours_is_to_be_collected() -> None:
    with pytest.raises(UserError, match=r"not been collected yet .* collect hopper expert`"):
        open_store(["decision-seq/hopper/expert-v0"])


def test_sources_of_different_widths_are_refused(tmp_path: Path) -> None:
    files = [
        str(write_npz(tmp_path / f"{width}.npz", random_episodes([3], width=width)))
        for width in (3, 4)
    ]
    with pytest.raises(UserError, match=r"4\.npz: `observations` is float32 of width 4"):
        open_store(files)


def test_damaged_cache_names_the_folder(tmp_path: Path) -> None:
    from decision_seq.data import store as module

    path = str(write_npz(tmp_path / "a.npz", random_episodes([3])))
    open_store([path])
    (folder,) = (module.cache_dir() / "datasets").iterdir()
    (folder / "rewards.npy").write_bytes(b"half")
    with pytest.raises(UserError, match="delete this folder"):
        open_store([path])


# ---- transforms ----------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    fraction=st.floats(0.01, 1.0),
    seed=st.integers(0, 5),
)
def test_top_fraction_is_the_decision_transformer_codes_choice(
    lengths: list[int], fraction: float, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_npz(tmp_path_factory.mktemp("t") / "a.npz", random_episodes(lengths, seed=seed))
    store = open_store([str(path)])
    # their loop: from the best episode down, while the steps still fit; at least one episode
    order = np.argsort(store.episode_returns, kind="stable")
    chosen, steps = [int(order[-1])], lengths[order[-1]]
    for m in order[-2::-1]:
        if steps + lengths[m] > fraction * sum(lengths):
            break
        chosen, steps = [*chosen, int(m)], steps + lengths[m]
    assert top_fraction(store, fraction).tolist() == sorted(chosen)


def test_delayed_rewards_keep_the_return(tmp_path: Path) -> None:
    store = open_store([str(write_npz(tmp_path / "a.npz", random_episodes([4, 3])))])
    delayed = delay_rewards(store)
    np.testing.assert_allclose(delayed.episode_returns, store.episode_returns, rtol=1e-6)
    assert np.count_nonzero(delayed.rewards) == 2
    np.testing.assert_allclose(delayed.returns_to_go[:4], store.episode_returns[0], rtol=1e-6)


def test_hold_out_splits_whole_episodes() -> None:
    training, validation = hold_out(np.arange(40), 0.1, seed=0)
    assert len(validation) == 4 and sorted([*training, *validation]) == list(range(40))
    assert len(hold_out(np.arange(3), 0.99, seed=0)[0]) == 1  # something is left to learn from
    assert hold_out(np.arange(2), 0.05, seed=0)[1].size == 0  # not half of the data
    assert hold_out(np.arange(1), 0.5, seed=0)[1].size == 0
    assert hold_out(np.arange(9), 0.0, seed=0)[1].size == 0


# ---- summaries -----------------------------------------------------------------------------


def test_summary_counts(toy_store: EpisodeStore) -> None:
    summary = summarize(toy_store)
    assert (summary["episodes"], summary["steps"]) == (60, 1200)
    assert summary["return_mean"] == pytest.approx(toy_store.episode_returns.mean(), rel=1e-5)


def test_histogram_counts_every_episode() -> None:
    values = np.array([0.0, 0.1, 5.0, 10.0])
    lines = histogram(values)
    assert [int(line.split()[-1]) for line in lines] == [2, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert histogram(np.full(7, 20)) == ["         20 all 7"]
