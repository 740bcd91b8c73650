"""The same episodes through every source give the same store; what is malformed is one sentence."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_episodes, write_npz
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data import assert_same, write_hdf5, write_minari

from decision_seq.data import check, from_episodes, import_dataset
from decision_seq.data.check import examine
from decision_seq.data.distribution import histogram
from decision_seq.data.episodes import Episodes, from_flat
from decision_seq.data.export import EXPORTERS
from decision_seq.data.inspect import summarize
from decision_seq.data.library import listing, verify
from decision_seq.data.sources import absolute, resolve, stored
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.data.transforms import ReturnSpec
from decision_seq.data.windows import WindowSampler
from decision_seq.envs.reference_scores import (
    d4rl_datasets,
    find_d4rl,
    normalized_score,
    reference_returns,
)
from decision_seq.errors import UserError
from decision_seq.pickles import RefusedClass, load_plain

LENGTHS = [7, 1, 12, 3]


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


# ---- pickles -------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("module", [b"numpy._core", b"numpy.core"])
def test_pickles_of_every_protocol_and_numpy(protocol: int, module: bytes, tmp_path: Path) -> None:
    episodes = random_episodes(LENGTHS)
    content = pickle.dumps(trajectories(episodes), protocol)
    assert b"numpy._core" in content
    path = tmp_path / "t.pkl"
    if protocol < 4:  # names end in a line break; from 4 on their length stands before them
        content = content.replace(b"numpy._core", module)
    else:
        long, short = b"numpy._core.", module + b"."
        for name in (b"multiarray", b"numeric"):
            before, after = (
                bytes([0x8C, len(head) + len(name)]) + head + name for head in (long, short)
            )
            content = content.replace(before, after)
        content = _without_frames(content)
    path.write_bytes(content)
    assert_same(open_store([by_npz(tmp_path, episodes)]), open_store([str(path)]))


def _without_frames(content: bytes) -> bytes:
    """Protocol 4 says how long its parts are; without that its names can be changed."""
    assert content[2:3] == pickle.FRAME
    return content[:2] + content[11:]


def test_lists_and_scalars_in_pickles(tmp_path: Path) -> None:
    """Other people's scripts keep rewards as lists of numpy scalars, and call the end `dones`."""
    episodes = random_episodes(LENGTHS)
    own = [
        {
            "observations": list(e["observations"]),
            "actions": e["actions"].tolist(),
            "rewards": list(e["rewards"]),
            "dones": [False] * (len(e["rewards"]) - 1) + [e["terminated"]],
        }
        for e in each(episodes)
    ]
    path = tmp_path / "t.pkl"
    path.write_bytes(pickle.dumps(own))
    assert_same(open_store([by_npz(tmp_path, episodes)]), open_store([str(path)]))


class Malicious:
    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("call", "named"),
    [
        ((os.mkdir, "pwned"), "posix.mkdir"),
        ((subprocess.check_call, ["touch", "pwned"]), "subprocess.check_call"),
        ((eval, "open('pwned', 'w')"), "eval"),
        ((getattr, np.ndarray, "tofile"), "getattr"),
        ((np.load, "pwned"), "numpy.load"),
        ((np.save, "pwned", 1), "numpy.save"),
    ],
)
def test_a_malicious_pickle_is_refused_and_not_run(
    call: tuple[Any, ...],
    named: str,
    protocol: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps([{"observations": Malicious(*call)}], protocol))
    with pytest.raises(UserError, match=r"evil\.pkl: asks for .*" + named.split(".")[-1]) as error:
        open_store([str(path)])
    assert "refused" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "pwned").exists()


def test_forged_arrays_are_refused() -> None:
    """What would make numpy's own unpickling read memory that is not the pickle's."""
    reconstruct = np.zeros(1).__reduce__()[0]

    class Forged:
        def __init__(self, state: tuple[Any, ...]) -> None:
            self.state = state

        def __reduce__(self) -> tuple[Any, ...]:
            return reconstruct, (np.ndarray, (0,), b"b"), self.state

    floats, objects = np.dtype("f8"), np.dtype("O")
    assert load_plain(pickle.dumps(Forged((1, (1,), floats, False, bytes(8))))) == 0
    for state in (
        (1, (1000,), floats, False, bytes(8)),
        (1, (-1,), floats, False, bytes(8)),
        (1, (1,), objects, False, bytes(8)),
        (1, (1,), objects, False, [{}]),
        (1, (2**62,), floats, False, b""),
        (1, (1,), floats, False, "text"),
        (1, (1,), "f8", False, bytes(8)),
    ):
        with pytest.raises(pickle.UnpicklingError):
            load_plain(pickle.dumps(Forged(state)))


def test_a_pickle_cannot_change_the_functions_it_may_call() -> None:
    dtype = b"cnumpy\ndtype\n"
    with pytest.raises(pickle.UnpicklingError):
        load_plain(dtype + b"}b.")
    with pytest.raises(pickle.UnpicklingError):
        load_plain(b"cnumpy\nndarray\n(I1000000000000\ntR.")
    with pytest.raises(RefusedClass, match=r"os\.system"):
        load_plain(b"cos\nsystem\n(S'echo'\ntR.")
    assert load_plain(pickle.dumps({"a": [1, (2.5, None, True)]}, 0)) == {
        "a": [1, (2.5, None, True)]
    }


def test_a_pickle_that_repeats_itself_is_refused(tmp_path: Path) -> None:
    """A small file can name one array a million times."""
    one = trajectories(random_episodes([50]))[0]
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps([one] * 1000))
    with pytest.raises(UserError, match="repeats its arrays"):
        open_store([str(tmp_path / "bomb.pkl")])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": 1}, ["holds dict", "list of trajectories"]),
        ([], ["no episodes"]),
        ([3], ["episode 0", "expected a dict"]),
        ([{"observations": np.zeros((2, 3))}], ["episode 0", "`terminals` is missing"]),
        (
            [{"observations": np.zeros((2, 3)), "actions": np.zeros((2, 1)), "terminals": [0, 1]}],
            ["episode 0", "`rewards` is missing"],
        ),
    ],
)
def test_bad_trajectories_are_one_sentence(content: Any, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError) as error:
        open_store([str(tmp_path / "bad.pkl")])
    for word in ("bad.pkl", *words):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


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


# ---- tables --------------------------------------------------------------------------------


def test_own_names_by_a_file_beside_the_log(tmp_path: Path) -> None:
    episodes = random_episodes(LENGTHS)
    columns = table(episodes)
    renamed = {
        **{"run": columns["episode"], "x": columns["observation_0"]},
        **{"note": ["a,b"] * 23, "y": columns["observation_1"], "z": columns["observation_2"]},
        **{"u": columns["action_0"], "v": columns["action_1"], "r": columns["reward"]},
        "died": [int(flag) for flag in columns["terminated"]],
    }
    path = write_csv(tmp_path / "log.csv", renamed)
    with pytest.raises(UserError, match=r"log\.columns\.yaml"):
        open_store([str(path)])
    (tmp_path / "log.columns.yaml").write_text(
        "episode: run\nobservations: [x, y, z]\nactions: [u, v]\nreward: r\nterminated: died\n"
        "env: point-run\n"
    )
    store = open_store([str(path)])
    assert_same(open_store([by_npz(tmp_path, episodes)]), store)
    assert store.info["env_id"] == "decision-seq/PointRun-v0"
    (tmp_path / "log.columns.yaml").write_text(
        "episode: run\nobservations: [x]\nactions: [u, v]\nreward: r\nterminated: died\n"
    )
    assert open_store([str(path)]).observations.shape == (23, 1)  # read again
    (tmp_path / "log.columns.yaml").write_text(
        "episode: run\nobservations: [x, y, x]\nactions: [u, v]\nreward: r\nterminated: died\n"
    )
    with pytest.raises(UserError, match=r"columns\.yaml: column `x` is listed twice"):
        open_store([str(path)])
    (tmp_path / "log.columns.yaml").write_text("episodes: run\n")
    with pytest.raises(UserError, match="`episodes` is not a known key; the nearest is `episode`"):
        open_store([str(path)])


def change(name: str, row: int, value: Any) -> Callable[[dict[str, list[Any]]], None]:
    def apply(columns: dict[str, list[Any]]) -> None:
        columns[name][row] = value

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change("step", 3, 9), ["line 5: `step` is 9 after 2", "rise by one"]),
        (change("step", 2, 1), ["line 4: `step` is 1 after 1"]),
        (change("episode", 20, 10), ["line 22: episode 10 comes back"]),
        (change("reward", 4, "oops"), ["line 6: `reward` is 'oops', not a number"]),
        (change("observation_1", 0, ""), ["line 2: `observation_1` is '', not a number"]),
        (change("terminated", 1, "maybe"), ["line 3: `terminated` is 'maybe', not true"]),
        (change("terminated", 1, True), ["line 3: `terminated` is set, but the episode goes on"]),
        (change("episode", 3, "nan"), ["line 5: `episode` is nan", "number of its episode"]),
        (change("observation_0", 5, "nan"), ["`observations` is NaN", "step 5"]),
        (lambda c: c.pop("reward"), ["column `reward` is missing", "columns.yaml"]),
        (lambda c: c.pop("episode"), ["column `episode` is missing"]),
        (lambda c: [c.pop(f"observation_{i}") for i in range(3)], ["no observation columns"]),
        (lambda c: [c.pop(f"action_{i}") for i in range(2)], ["no action columns", "act_"]),
        (lambda c: [v.clear() for v in c.values()], ["has no rows"]),
        (change("reward", 22, "1\x00"), ["line 24"]),
    ],
)
def test_bad_logs_are_one_sentence_with_the_line(
    damage: Callable[[dict[str, list[Any]]], Any], words: list[str], tmp_path: Path
) -> None:
    columns = table(random_episodes(LENGTHS))
    damage(columns)
    path = write_csv(tmp_path / "bad.csv", columns)
    with pytest.raises(UserError) as error:
        open_store([str(path)])
    for word in ("bad.csv", *words):
        assert word in str(error.value), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00x", b"\n\n", b'"', b"a" * 200_000])
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".pkl"])
def test_what_is_no_table_is_one_sentence(content: bytes, suffix: str, tmp_path: Path) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"bad{suffix}") as error:
        open_store([str(path)])
    assert "\n" not in str(error.value)


def test_a_cut_off_log_names_the_line(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "cut.csv", table(random_episodes(LENGTHS)))
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b",", 0, len(content) - 30)])
    with pytest.raises(UserError, match=r"line 2\d has \d cells"):
        open_store([str(path)])


def test_logs_with_blank_lines_quotes_and_a_byte_order_mark(tmp_path: Path) -> None:
    episodes = random_episodes(LENGTHS)
    path = write_csv(tmp_path / "log.csv", table(episodes))
    lines = path.read_text().splitlines()
    quoted = [",".join(f'"{cell}"' for cell in line.split(",")) for line in lines]
    path.write_text("\ufeff" + "\r\n".join([*quoted[:5], "", *quoted[5:], "", ""]))
    assert_same(open_store([by_npz(tmp_path, episodes)]), open_store([str(path)]))
    quoted[7] = quoted[7].replace('"', "", 1)
    lines = [*quoted[:5], "", *quoted[5:6], quoted[6].replace('"1', '"x', 1)]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 8: `episode` is 'x"):
        open_store([str(path)])


# ---- D4RL ----------------------------------------------------------------------------------


def test_reference_scores_of_all_d4rl_datasets() -> None:
    datasets = d4rl_datasets()
    assert len(datasets) == 147 and len({d.file for d in datasets.values()}) == 147
    families = {name.split("-")[0] for name in datasets}
    assert {"hopper", "antmaze", "maze2d", "kitchen", "pen", "door", "flow", "carla"} <= families
    for dataset in datasets.values():
        assert dataset.random < dataset.expert and dataset.steps > 0
    assert reference_returns("kitchen-mixed-v0") == (0.0, 4.0)
    assert reference_returns("maze2d-umaze-v1") == (23.85, 161.86)
    assert normalized_score("antmaze-umaze-v2", 0.75) == 75.0
    assert reference_returns("Hopper-v5") == reference_returns("hopper-expert-v1")
    assert reference_returns("CartPole-v1") is None
    assert find_d4rl("walker_mixed") == datasets["walker2d-medium-replay-v0"]
    assert find_d4rl("hopper_medium_expert-v2") == datasets["hopper-medium-expert-v2"]
    assert find_d4rl("my-log") is None


@pytest.mark.parametrize(
    ("name", "timeouts", "terminal", "limit"),
    [
        ("hopper_medium-v2", True, True, None),
        ("hopper_medium", False, True, 1000),  # v0
        ("antmaze-umaze-v2", True, True, None),
        ("antmaze-umaze-v0", False, False, 700),
        ("maze2d-umaze-sparse-v1", True, False, None),  # never terminates
        ("maze2d-umaze-sparse-v1", False, False, 300),
        ("mini_kitchen_microwave_kettle_light_slider-v0", False, True, 280),
        ("pen-v0_demos_clipped", False, False, 100),
        ("door-expert-v1", True, False, None),
    ],
)
def test_d4rl_families(
    name: str, timeouts: bool, terminal: bool, limit: int | None, tmp_path: Path
) -> None:
    """Ends by terminals, timeouts or the environment's time limit, whichever the family has."""
    limit = limit or 1000
    lengths = [20, limit, 40 if terminal else limit, limit]
    lengths[0] = 20 if terminal or timeouts else limit
    episodes = random_episodes(lengths)
    ends = episodes.offsets[1:] - 1
    early = np.array(lengths) < limit
    episodes.terminated[ends] = early & terminal
    episodes.truncated[ends] = ~(early & terminal)
    path = write_hdf5(tmp_path / f"{name}.hdf5", episodes, timeouts=timeouts)
    store = open_store([str(path)])
    np.testing.assert_array_equal(store.offsets, episodes.offsets)
    np.testing.assert_array_equal(store.terminated, episodes.terminated)
    dataset = find_d4rl(name)
    assert dataset is not None or name.startswith("antmaze")
    if dataset is not None:
        low, high = dataset.reference
        assert store.info["dataset"] == dataset.name
        mean = float(store.episode_returns.mean(dtype=np.float64))
        score = summarize(store)["normalized_score_mean"]
        assert score == pytest.approx(100 * (mean - low) / (high - low))


def test_a_file_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    import h5py

    path = write_hdf5(tmp_path / "a.hdf5", random_episodes([5]))
    with h5py.File(path, "a") as file:
        del file["observations"]
        file.create_dataset("observations", (10**10, 11), "f4", chunks=(1000, 11))
    with pytest.raises(UserError, match="claims to be larger than"):
        open_store([str(path)])


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
    for word in ("minari[gcs]", "minari download gcp://bucket/mujoco/hopper/medium-v0", "copy its"):
        assert word in str(error.value)
    for other in ("s3://bucket/a-v0", "hf://a-v0", "hf://owner/no-version"):
        with pytest.raises(UserError, match="is not a dataset"):
            open_store([other])


@pytest.mark.slow  # the client tries for half a minute
def test_hugging_face_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"minari download hf://farama-minari/D4RL/door/human-v2"):
        open_store(["hf://farama-minari/D4RL/door/human-v2"])


# ---- the library ---------------------------------------------------------------------------


def test_import_list_and_open_again(tmp_path: Path) -> None:
    path = by_npz(tmp_path, random_episodes(LENGTHS))
    first = import_dataset([path], "mine")
    assert isinstance(first.observations, np.memmap)
    assert import_dataset([path], "mine").hash == first.hash  # the same again is no error
    assert stored.names() == ["mine"] and first.hash in listing()[0]
    os.remove(path)
    again = open_store(["mine"])
    assert_same(first, again)
    assert again.name == "mine" and absolute("mine") == "mine"
    with pytest.raises(UserError, match=r"mine: another dataset has this name"):
        import_dataset([by_npz(tmp_path, random_episodes([4]))], "mine")
    mixed = open_store(["mine", by_npz(tmp_path, random_episodes([4]))])
    assert mixed.episodes_per_source == (4, 1) and mixed.steps == 27
    np.testing.assert_array_equal(mixed.actions[:23], first.actions)


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "log.csv", "x" * 101, "a b"])
def test_names_that_would_be_taken_for_something_else(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset name"):
        import_dataset([by_npz(tmp_path, random_episodes([4]))], name)


def test_environment_of_an_import(tmp_path: Path) -> None:
    path = by_csv(tmp_path, random_episodes([4]))
    assert import_dataset([path], "a", env="point-run").info["env_id"] == "decision-seq/PointRun-v0"
    with pytest.raises(UserError, match="does not exist"):
        import_dataset([path], "b", env="no-such-thing")
    named = by_npz(tmp_path, random_episodes([4]))  # says Hopper-v5
    with pytest.raises(UserError, match="from Hopper-v5, not Walker2d-v5"):
        import_dataset([named], "c", env="walker2d")
    assert import_dataset([named], "d", env="Hopper-v4").info["env_id"] == "Hopper-v4"


def test_damage_is_noticed(tmp_path: Path) -> None:
    store = import_dataset([by_npz(tmp_path, random_episodes(LENGTHS))], "mine")
    verify(store)
    rewards = stored.library() / "mine" / "rewards.npy"
    content = bytearray(rewards.read_bytes())
    content[-1] ^= 1
    rewards.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        verify(open_store(["mine"]))
    with pytest.raises(UserError, match="checksum"):
        examine(["mine"])  # what `data check mine` says
    rewards.write_bytes(content[:-8])
    with pytest.raises(UserError, match="damaged"):
        open_store(["mine"])
    (stored.library() / "mine" / "meta.json").write_text("{")
    with pytest.raises(UserError, match=r"meta\.json: is damaged"):
        open_store(["mine"])


def test_seeds_and_missing_ends_are_imported_and_exported(tmp_path: Path) -> None:
    recorded = {"episode_seeds": np.array([3, 4, 5, 9]), "unended_episodes": np.array([1])}
    path = write_npz(tmp_path / "a.npz", random_episodes(LENGTHS), **recorded)
    store = import_dataset([str(path)], "mine")
    EXPORTERS["npz"](store, str(tmp_path / "out.npz"))
    EXPORTERS["minari"](open_store([str(path)]), "mine/recorded-v0")
    for source in (str(path), "mine", str(tmp_path / "out.npz"), "mine/recorded-v0"):
        episodes = resolve(source).read()
        assert (episodes.seeds, episodes.unended) == ((3, 4, 5, 9), (1,)), source
        assert open_store([source]).hash == store.hash
    check.write_npz(tmp_path / "part.npz", resolve("mine").read(), np.array([1, 3]))
    part = resolve(str(tmp_path / "part.npz")).read()
    assert (part.seeds, part.unended) == ((4, 9), (0,))
    meta = stored.library() / "mine" / "meta.json"  # as it was written before they were kept
    content = json.loads(meta.read_text())
    del content["seeds"], content["unended"]
    meta.write_text(json.dumps(content))
    assert resolve("mine").read().seeds == () and open_store(["mine"]).unended == ()
    meta.write_text(json.dumps(content | {"seeds": [1]}))
    with pytest.raises(UserError, match=r"meta\.json: is damaged"):
        open_store(["mine"])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("episode_seeds", np.arange(3), "has 3 numbers for 4 episodes"),
        ("episode_seeds", np.full(4, -1), "none below 0"),
        ("unended_episodes", np.array([4]), "names episode 4 of 4"),
        ("unended_episodes", np.array(["a"]), "must be whole numbers"),
    ],
)
def test_bad_seeds_are_one_sentence(
    key: str, value: np.ndarray, words: str, tmp_path: Path
) -> None:
    path = write_npz(tmp_path / "a.npz", random_episodes(LENGTHS), **{key: value})
    with pytest.raises(UserError, match=words):
        open_store([str(path)])


def test_two_processes_import_the_same_at_once(tmp_path: Path) -> None:
    path = by_npz(tmp_path, random_episodes([500] * 20))
    code = (
        "import sys; from decision_seq.data import import_dataset\n"
        "sys.stdin.readline(); print(import_dataset([sys.argv[1]], 'both').hash)"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    hashes = {process.communicate(timeout=60)[0].strip() for process in running}
    store = open_store(["both"])
    verify(store)
    assert hashes == {store.hash}
    assert sorted(p.name for p in stored.library().iterdir()) == [".both.lock", "both"]


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


def test_exports_are_not_overwritten(tmp_path: Path) -> None:
    store = open_store([by_npz(tmp_path, random_episodes([4]))])
    for out, word in ((tmp_path / "a.npz", "exists already"), (tmp_path / "a.zip", "ends in .npz")):
        with pytest.raises(UserError, match=word):
            EXPORTERS["npz"](store, str(out))
    by_minari(tmp_path, random_episodes([4]))
    with pytest.raises(UserError, match="exists already"):
        EXPORTERS["minari"](store, "test/same-v0")


def test_an_environment_that_minari_cannot_record_is_left_out(tmp_path: Path) -> None:
    """gymnasium takes a class as entry point, and cannot write it down."""
    import gymnasium as gym
    import minari

    from decision_seq.envs.toy import PointRun

    gym.register("Classy-v0", PointRun)
    try:
        width = PointRun().observation_space.shape[0]
        path = by_csv(tmp_path, random_episodes([4, 3], width=width, action_dim=1))
        store = import_dataset([path], "classy", env="Classy-v0")
        EXPORTERS["minari"](store, "mine/classy-v0")
        assert minari.load_dataset("mine/classy-v0").env_spec is None
        assert open_store(["mine/classy-v0"]).hash == store.hash
    finally:
        del gym.registry["Classy-v0"]


def test_histogram_counts_every_episode() -> None:
    values = np.array([0.0, 0.1, 5.0, 10.0])
    lines = histogram(values)
    assert [int(line.split()[-1]) for line in lines] == [2, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert histogram(np.full(7, 20)) == ["         20 all 7"]


# ---- mixtures ------------------------------------------------------------------------------


def sampler(store: EpisodeStore, kept: np.ndarray, **settings: Any) -> WindowSampler:
    return WindowSampler(store, kept, 2, ReturnSpec(), seed=3, **settings)


def sources_drawn(drawn: WindowSampler, store: EpisodeStore, batches: int) -> np.ndarray:
    """How often each source was drawn from, as shares."""
    ends = np.cumsum(store.episodes_per_source)
    episodes = [place[0] for i in range(batches) for place in drawn.places(i, 500)]
    counts = np.bincount(np.searchsorted(ends, episodes, side="right"), minlength=len(ends))
    return counts / counts.sum()


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4),
    data=st.data(),
)
def test_mixtures_draw_by_weight_and_uniformly_within_a_source(
    lengths: list[list[int]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("mixture")
    files = [
        str(write_npz(folder / f"{i}.npz", random_episodes(part, seed=i)))
        for i, part in enumerate(lengths)
    ]
    store = open_store(files)
    weights = [data.draw(st.integers(1, 5)) for _ in files]
    kept = data.draw(
        st.lists(st.integers(0, store.episodes - 1), min_size=1, unique=True).map(sorted)
    )
    drawn = sampler(store, np.array(kept), weights=weights)
    shares = sources_drawn(drawn, store, 8)
    source = np.searchsorted(np.cumsum(store.episodes_per_source), kept, side="right")
    expected = np.where(np.isin(np.arange(len(files)), source), weights, 0)
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.06)
    rows = np.concatenate([np.arange(*store.offsets[m : m + 2]) for m in kept])
    places = [p for i in range(8) for p in drawn.places(i, 500)]
    seen = {int(store.offsets[m]) + step for m, step in places}
    assert seen <= set(rows.tolist())
    if len(rows) * max(expected) < 100:
        assert seen == set(rows.tolist())


def test_mixtures_are_pure_and_no_weights_change_nothing(tmp_path: Path) -> None:
    files = [
        str(write_npz(tmp_path / f"{i}.npz", random_episodes([30 * i], seed=i))) for i in (1, 2)
    ]
    store, kept = open_store(files), np.arange(2)
    weighted = sampler(store, kept, weights=(3.0, 1.0))
    third = weighted.places(3, 64)
    weighted.batch(0, 64)
    assert weighted.places(3, 64) == third != weighted.places(4, 64)
    # what was drawn before there were mixtures, which a resumed run must draw again
    generator = np.random.Generator(np.random.Philox(key=3, counter=5 << 64))
    rows = generator.integers(90, size=8)
    assert sampler(store, kept).places(5, 8) == [
        (int(row >= 30), int(row if row < 30 else row - 30)) for row in rows
    ]
    with pytest.raises(UserError, match="3 weights for 2 sources"):
        sampler(store, kept, weights=(1, 1, 1))
    huge = sampler(store, kept, weights=(1e308, 1e308)).places(0, 64)  # their sum is infinite
    assert huge == sampler(store, kept, weights=(1, 1)).places(0, 64)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0, float("nan")]])
def test_weights_are_one_a_source_and_positive(weights: list[float]) -> None:
    from decision_seq.run_config import run_config

    plain = {"env": "point-run", "data": {"sources": ["a.npz", "b.npz"], "weights": weights}}
    with pytest.raises(UserError, match="weights"):
        run_config(plain, {}, "test")


def test_flat_arrays_need_no_copy() -> None:
    """Reading a large file must not double it: float32 arrays are taken as they are."""
    observations = np.zeros((5, 3), np.float32)
    ends = np.zeros(5, bool)
    episodes = from_flat(
        "x", observations, np.zeros((5, 2), np.float32), np.zeros(5), ends, ends, {}
    )
    assert np.shares_memory(episodes.observations, observations)
    assert not ends.any()  # but the caller's flags are not changed
