"""Numbers stay what they were from the file to the network, or somebody says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import SIDES, frame_episodes, random_episodes, write_npz
from source_files import each, table, trajectories, write_csv, write_hdf5, write_minari

from decision_seq.agents import SequenceAgent
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.backbones.mamba import MambaConfig
from decision_seq.data import from_episodes, import_dataset
from decision_seq.data.columns import constant_columns
from decision_seq.data.episodes import Episodes
from decision_seq.data.sources import minari_dataset
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.data.tools.check import check, examine
from decision_seq.data.tools.export import EXPORTERS
from decision_seq.data.tools.info import remarks
from decision_seq.data.transforms import ObservationNorm
from decision_seq.errors import UserError
from decision_seq.run_config import run_config
from decision_seq.training.loop import train


def found(source: str) -> dict[str, str]:
    """Messages of `data check` by rule."""
    return {finding.rule: str(finding) for finding in examine([source]).findings}


def with_columns(**columns: np.ndarray) -> Episodes:
    """Random episodes of 40 steps with these observation columns."""
    episodes = random_episodes([20, 20], width=3)
    for name, values in columns.items():
        episodes.observations[:, int(name[1:])] = values
    return episodes


# ---- constant columns ----------------------------------------------------------------------

NOISE = np.random.default_rng(0).standard_normal(40)
CONSTANT = {
    "one": np.ones(40),
    "zero with noise of a solver": 1e-12 * NOISE,
    "one with noise of float32": 1 + 6e-8 * NOISE,
    "a large offset with noise of float32": 1e6 + 0.03 * NOISE,
    "seconds since 1970, for a minute": 1.7e9 + np.arange(40),
}
VARYING = {
    "small": 1e-5 * NOISE,
    "around an offset": 1000 + NOISE,
    "around a large offset": 1e6 + NOISE,
    "two values": np.arange(40) % 2,
}


@pytest.mark.parametrize("values", CONSTANT.values(), ids=CONSTANT)
def test_a_constant_column_is_not_blown_up(values: np.ndarray) -> None:
    """What acting sees beside it by rounding is a small input."""
    episodes = with_columns(c1=values)
    norm = ObservationNorm.of(episodes.observations)
    assert norm.std[1] == 1 and (norm.std[[0, 2]] != 1).all()
    store = from_episodes(each(episodes), "constant")
    agent = SequenceAgent.for_dataset(
        ReturnConditionedConfig(context_length=5, backbone=MambaConfig(width=8, layers=1)), store
    )
    seen = torch.from_numpy(store.observations[:1].repeat(2, axis=0))
    seen[1, 1] *= 1 + 1e-5
    inputs = agent.preprocess(seen, torch.zeros(2, 2), torch.zeros(2))["observation"]
    assert abs(float(inputs[1, 1] - inputs[0, 1])) <= 1e-5 * max(1, abs(values).max()) * 1.01


@pytest.mark.parametrize("values", VARYING.values(), ids=VARYING)
def test_a_column_that_varies_is_not_constant(values: np.ndarray) -> None:
    episodes = with_columns(c1=values)
    assert constant_columns(episodes.observations) == []
    std = ObservationNorm.of(episodes.observations).std[1]
    assert std == pytest.approx(values.std() + 1e-6, rel=0.01)


def test_constant_columns_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from decision_seq.cli import data as commands

    assert constant_columns(np.zeros((4, 8, 8), np.uint8)) == []  # frames
    path = str(write_npz(tmp_path / "a.npz", with_columns(c0=CONSTANT["one"], c2=0.1), meta=None))
    commands.info((path,))
    commands.check((path,))  # returns: it is no error
    out = capsys.readouterr().out
    assert out.count("2 of 3 observation columns are constant") == 2 and ": 0, 2;" in out
    assert "0 findings, 0 of them errors" in out
    assert remarks(open_store([path])) == [f"a: {found(path)['constant']}"]


def test_constant_columns_are_named_once_in_training(
    toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(toy_file) as file:
        arrays = dict(file)
    arrays["observations"][:, 0] = 3
    np.savez(tmp_path / "a.npz", **arrays)
    agent = {"kind": "return_conditioned", "backbone": {"kind": "mamba", "width": 8, "layers": 1}}
    plain = {"env": "point-run", "data": {"sources": [str(tmp_path / "a.npz")]}, "agent": agent}
    config = run_config(plain | {"train": {"steps": 2, "batch_size": 2}}, {}, "test")
    train(config, tmp_path / "run", torch.device("cpu"))
    assert capsys.readouterr().err.count("1 of 2 observation columns is constant") == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_check_believes_a_simulator_with_constant_columns(dtype: Any) -> None:
    """Humanoid: 61 of its 348 columns never change, and float32 rounds them."""
    from decision_seq.envs.registry import make

    env = make("Humanoid-v5")
    env.action_space.seed(0)
    rng, seeds = np.random.default_rng(0), (5, 6, 7)
    episodes = []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        rows: list[Any] = []
        ended = False
        while not ended:
            action = rng.uniform(-0.4, 0.4, 17).astype(np.float32)
            following, reward, ended, _, _ = env.step(action)
            rows.append((np.asarray(observation, dtype), action, reward))
            observation = following
        names = ("observations", "actions", "rewards")
        columns = zip(names, map(np.array, zip(*rows, strict=True)), strict=True)
        episodes.append({**dict(columns), "terminated": True, "truncated": False})
    store = from_episodes(episodes, "humanoid", env="Humanoid-v5")
    store.seeds = seeds
    assert [finding.rule for finding in check(store, env)] == ["constant"]
    store.rewards[:] *= 2  # of an environment with other arguments
    assert [finding.rule for finding in check(store, env)] == ["replay", "constant"]
    env.close()


# ---- sums ----------------------------------------------------------------------------------


def rewarded(*rewards: list[float]) -> EpisodeStore:
    name = f"rewards{abs(hash(str(rewards)))}"
    return from_episodes(
        [
            {
                "observations": np.zeros((len(r), 2)),
                "actions": np.zeros((len(r), 1)),
                "rewards": r,
                "terminated": True,
                "truncated": False,
            }
            for r in rewards
        ],
        name,
    )


@pytest.mark.parametrize("huge", [1e9, 1e12, 1e17, 1e20, 1e30])
def test_one_huge_reward_leaves_other_returns_alone(huge: float) -> None:
    store = rewarded([0.0, -huge], [1.0] * 5, [0.1] * 5, [0.5, -huge, 0.25, 0.125], [1, 2, 3, 4, 5])
    assert store.episode_returns[1:3] == pytest.approx([5, 0.5])
    assert store.returns_to_go[-5:].tolist() == [15, 14, 12, 9, 5]
    assert store.returns_to_go[-7:-5].tolist() == [0.375, 0.125]  # after the penalty


def test_what_float32_cannot_hold_is_refused() -> None:
    with pytest.raises(UserError, match="`rewards` is NaN or infinite in float32 at step 1"):
        rewarded([0.0, 1e39])
    with pytest.raises(UserError, match="rewards of episode 1 add up to more than float32 holds"):
        rewarded([0.0, 1.0], [2e38, 2e38])


# ---- identifiers and large offsets -----------------------------------------------------------


@pytest.mark.parametrize("first", [1577134800018164901, 2**63 + 1, -(2**62) - 7])
def test_identifiers_of_64_bits_are_exact(first: int, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    episodes = random_episodes([3, 3, 3, 3])
    columns = table(episodes)
    columns["episode"] = [first + m for m in np.repeat(range(4), 3).tolist()]
    columns["step"] = [first + t for t in [0, 1, 2] * 4]  # a counter, nanoseconds say
    write_csv(tmp_path / "log.csv", columns)
    kind = pyarrow.uint64() if first > 2**63 else pyarrow.int64()
    arrays = {
        k: pyarrow.array(v, kind if k in ("episode", "step") else None) for k, v in columns.items()
    }
    parquet.write_table(pyarrow.table(arrays), tmp_path / "log.parquet")
    for name in ("log.csv", "log.parquet"):
        store = open_store([str(tmp_path / name)])
        assert store.lengths.tolist() == [3, 3, 3, 3], name
        np.testing.assert_array_equal(store.rewards, episodes.rewards)
    columns["episode"][-3:] = columns["episode"][:3]
    with pytest.raises(UserError, match=f"episode {first} comes back"):
        open_store([str(write_csv(tmp_path / "again.csv", columns))])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_identifiers_that_may_have_become_one_are_refused(dtype: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns: dict[str, Any] = table(random_episodes([3, 3]))
    first = 2.0 ** (np.finfo(dtype).nmant + 1)
    columns["episode"] = np.repeat(np.array([first, first + 1], dtype), 3)
    parquet.write_table(pyarrow.table(columns), tmp_path / "log.parquet")
    with pytest.raises(UserError, match=r"row 0: `episode` is .* too large .* to be exact"):
        open_store([str(tmp_path / "log.parquet")])
    columns["episode"] = [f"{9e15 + 1e16 * (i // 3):.1f}" for i in range(6)]
    with pytest.raises(UserError, match=r"line 5: `episode` is 1\.9e\+16, too large"):
        open_store([str(write_csv(tmp_path / "log.csv", columns))])


LARGE = {
    "seconds since 1970": 1.7e9 + 100 * NOISE,
    "the same, with gaps": np.where(np.arange(40) % 3, 1.7e9 + 100 * NOISE, 0),
    "identifiers": 1577134800018164901 + np.arange(40),
    "too small": 1e-45 * (3 + NOISE),
}


@pytest.mark.parametrize("values", LARGE.values(), ids=LARGE)
def test_differences_that_float32_does_not_keep_are_told(
    values: np.ndarray, tmp_path: Path
) -> None:
    columns: dict[str, Any] = table(random_episodes([20, 20]))
    columns["observation_1"] = values.tolist()
    path = str(write_csv(tmp_path / "log.csv", columns))
    assert "column `observation_1`: rounding to float32" in found(path)["rounded"]
    assert "rounded" not in found(str(write_csv(tmp_path / "b.csv", table(random_episodes([9])))))
    observations = random_episodes([20, 20]).observations.astype(np.float64)
    for key, place in {"observations": "observation column 0", "rewards": "reward"}.items():
        array = {"observations": values[:, None], "rewards": values}[key]
        changes = {"observations": observations, key: array}
        write_npz(tmp_path / "a.npz", random_episodes([20, 20]), meta=None, **changes)
        assert f"{place}: rounding" in found(str(tmp_path / "a.npz"))["rounded"]
    store = import_dataset([path], "large")  # and it is not forgotten
    assert store.findings and found("large")["rounded"] == found(path)["rounded"]
    assert any("rounding to float32" in line for line in remarks(store))


def test_ordinary_numbers_in_float64_are_not_told(tmp_path: Path) -> None:
    wide = {
        "position": 4000 + 30 * NOISE, "still": 0.3 + 1e-14 * NOISE, "count": np.arange(40) * 1000,
        "heavy tail": np.exp(9 * NOISE), "penalty": np.where(np.arange(40) == 7, -1e9, NOISE),
        "zero": np.zeros(40), "tenth": np.full(40, 0.1),
    }  # fmt: skip
    observations = np.stack(list(wide.values()), axis=1)
    write_npz(tmp_path / "a.npz", random_episodes([20, 20]), meta=None, observations=observations)
    assert set(found(str(tmp_path / "a.npz"))) == {"constant"}


# ---- time limits -----------------------------------------------------------------------------


def test_no_time_limit_is_invented(tmp_path: Path) -> None:
    """A log of one's own: episodes are as long as the file says."""
    episodes = random_episodes([1500, 1500, 1500])
    episodes.terminated[1499::1500], episodes.truncated[:] = True, False
    path = str(write_hdf5(tmp_path / "plant_log.hdf5", episodes, timeouts=False))
    assert open_store([path]).lengths.tolist() == [1500, 1500, 1500]
    assert "has no `timeouts`: episodes end at `terminals` alone" in found(path)["assumed-limit"]
    limited = str(write_hdf5(tmp_path / "hopper_log.hdf5", episodes, timeouts=False))
    assert open_store([limited]).lengths.tolist() == [1000, 500] * 3
    assert "limit of 1000 steps is assumed" in found(limited)["assumed-limit"]
    assert "ends 3 episodes" in remarks(open_store([limited]))[0]
    known = str(write_hdf5(tmp_path / "hopper_long.hdf5", episodes))
    assert "assumed-limit" not in found(known)


# ---- clusters --------------------------------------------------------------------------------


def test_clusters_of_terminals_are_no_episodes(tmp_path: Path) -> None:
    """D4RL's antmaze: terminals at every step near the goal."""
    episodes = random_episodes([701] * 4, width=29, action_dim=8)
    near = np.zeros(701, bool)
    near[400:440] = near[500:520:2] = True
    episodes.terminated[:] = np.tile(near, 4)
    episodes.truncated[:] = np.tile(np.arange(701) == 700, 4)
    path = str(write_hdf5(tmp_path / "antmaze-umaze-v2.hdf5", episodes))
    assert set(found(path)) == {"clusters"}
    assert "192 of 204 episodes have 2 steps or fewer" in found(path)["clusters"]
    assert "let `timeouts` end the episodes" in found(path)["clusters"]
    twice = random_episodes([400, 1] * 6)
    twice.terminated[twice.offsets[1:] - 1], twice.truncated[:] = True, False
    assert "clusters" in [finding.rule for finding in check(twice)]
    rng = np.random.default_rng(0)
    for lengths in ([1] * 40, rng.geometric(0.3, 400).tolist(), [200, 1, 180, 90, 1, 120, 50, 70]):
        short = random_episodes(list(lengths))
        short.terminated[short.offsets[1:] - 1], short.truncated[:] = True, False
        assert "clusters" not in [finding.rule for finding in check(short)]


# ---- episodes of different types ---------------------------------------------------------------


def test_episodes_of_different_types_are_one_dataset(tmp_path: Path) -> None:
    """Whole rewards in one episode and fractions in the next: as a list of them would be."""
    import pickle

    episodes = random_episodes([3, 3])
    for array in (episodes.observations, episodes.rewards):
        array[:3] = np.round(array[:3])
    parts = trajectories(episodes)
    for key, dtype in {"observations": np.int16, "rewards": np.int64}.items():
        parts[0][key] = parts[0][key].astype(dtype)
    parts[1]["observations"] = parts[1]["observations"].astype(np.float64)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(parts))
    store = open_store([str(tmp_path / "a.pkl")])
    np.testing.assert_array_equal(store.observations, episodes.observations)
    np.testing.assert_array_equal(store.rewards, episodes.rewards)
    parts[0]["actions"] = np.zeros((3, 2), np.int64)
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(parts))
    with pytest.raises(UserError, match="episode 1: `actions` is float32 of width 2 but episode 0"):
        open_store([str(tmp_path / "b.pkl")])


def test_an_episode_with_neither_end_is_incomplete() -> None:
    episodes = list(each(random_episodes([3, 3, 3])))
    episodes[1]["truncated"] = False
    store = from_episodes(episodes, "cut-off")
    assert store.incomplete == (1,) and store.truncated[5]


def minari_with(change: str, value: Any) -> str:
    """A Minari dataset whose second episode holds `value` under `change`."""
    name = write_minari("test/changed-v0", random_episodes([4, 4, 4]))
    replace_in_minari(name, change, value)
    return name


def replace_in_minari(name: str, change: str, value: Any) -> None:
    with h5py.File(minari_dataset.folder(name) / "data" / "main_data.hdf5", "a") as file:
        del file[f"episode_1/{change}"]
        file[f"episode_1/{change}"] = value


@pytest.mark.parametrize(
    ("change", "value", "words"),
    [
        ("observations", np.zeros((5, 4)), "`observations` is float64 of width 4 but episode 0"),
        ("actions", np.zeros((4, 2), int), "`actions` is int64 of width 2 but episode 0"),
        ("actions", np.zeros((3, 2)), "`actions` has 3 rows but `rewards` has 4"),
        ("observations", np.zeros((2, 3)), "`observations` has 2 rows"),
    ],
)
def test_minari_episodes_that_do_not_fit_are_one_sentence(
    change: str, value: np.ndarray, words: str
) -> None:
    name = minari_with(change, value)
    with pytest.raises(UserError, match=f"{name}: episode 1: {words}"):
        open_store([name])


@pytest.mark.parametrize(
    "other", [np.ones((4, *SIDES)), np.ones((4, 8, 8), np.uint8), np.ones((4, 3), np.uint8)]
)
def test_frames_of_an_episode_that_do_not_fit_are_not_left_black(
    other: np.ndarray, tmp_path: Path
) -> None:
    path = write_npz(tmp_path / "frames.npz", frame_episodes([3, 3, 3]), meta=None)
    EXPORTERS["minari"](open_store([str(path)]), "test/changed-v0")
    replace_in_minari("test/changed-v0", "observations", other)
    with pytest.raises(UserError, match="episode 1: `observations` is"):
        open_store(["test/changed-v0"])


def test_ends_within_a_minari_episode_are_told() -> None:
    name = minari_with("terminations", np.array([False, True, False, True]))
    assert "1 episodes have terminations" in found(name)["ends-within"]
