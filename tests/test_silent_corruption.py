"""What is stored is what was written, to float32, or the import says so.

Episodes of any numbers (types, offsets, lengths, identifiers, flags) are written in every format by
writers that know nothing of the package, and compared with what the store holds.
"""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decision_seq.data import from_episodes
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.data.tools.check import examine

FLOATS = ("f2", "f4", "f8", ">f8")
INTEGERS = ("i1", "u1", "i2", "i4", "u4", "i8", "u8")
FLAGS = ("?", "u1", "i8", "f4", "f8")
OFFSETS = (0, 0, 1, -300, 70_000, 2**24, -(10**9), 1_700_000_000, 2**53 + 1, 1577134800018164901)
SCALES = (1.0, 1.0, 1e-3, 37.5)


@dataclass
class Written:
    """Episodes as they were meant: a list an episode, in the types they were written in."""

    observations: list[list[np.ndarray]]  # columns [T]
    actions: list[list[np.ndarray]]  # columns [T]; one of integers if discrete
    rewards: list[np.ndarray]  # [T]
    terminated: list[bool]
    truncated: list[bool]
    discrete: bool
    ids: list[int]
    first_steps: list[int]
    seeds: list[int]
    choice: random.Random  # of a writer's liberties

    def flag(self, name: str, m: int) -> np.ndarray:
        """[T] in a type of the writer's choice."""
        flags = np.zeros(len(self.rewards[m]), self.choice.choice(FLAGS))
        flags[-1] = getattr(self, name)[m]
        return flags


def numbers(rng: np.random.Generator, count: int, dtype: str, episode: int) -> np.ndarray:
    """[count] of a type, around an offset that it can hold."""
    kind = np.dtype(dtype)
    offset, scale = int(rng.choice(OFFSETS)), float(rng.choice(SCALES))
    small = rng.integers(-5, 6, count)
    if kind.kind == "f":
        largest = float(np.finfo(kind).max)
        offset = offset if abs(offset) < largest / 100 else 0
        values = offset + scale * small + rng.normal(size=count) * (rng.random() < 0.5)
        if kind.itemsize == 8 and rng.random() < 0.1:
            values[rng.integers(count)] = -(10.0 ** rng.integers(9, 30))  # one huge penalty
        return values.astype(kind)
    info = np.iinfo(kind)
    values = [min(max(offset + int(x), int(info.min)), int(info.max)) for x in small]
    return np.array(values, kind)


@st.composite
def episodes(draw: st.DrawFn, types: str, neither: bool) -> Written:
    """Args:
    types: whether a type is the column's, the file's or the episode's.
    neither: whether the format can tell an episode that ends with no flag from the next.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    width, discrete = draw(st.integers(1, 3)), draw(st.booleans())
    count = len(lengths)
    chosen: dict[Any, str] = {}

    def laid_out(name: str, column: int, dtypes: tuple[str, ...], low: int | None = None) -> Any:
        """The column's values, an array an episode."""
        offset_rng = np.random.default_rng(rng.integers(2**32))
        parts = []
        for m, length in enumerate(lengths):
            key = {"column": (name, column), "file": name, "episode": (name, m)}[types]
            dtype = chosen.setdefault(key, str(rng.choice(dtypes)))
            if low is not None:
                parts.append(rng.integers(low, 5, length).astype(dtype))
            else:
                state = offset_rng.bit_generator.state
                parts.append(numbers(offset_rng, length, dtype, m))
                if rng.random() < 0.5:  # often around the same offset as the episode before
                    offset_rng.bit_generator.state = state
        return parts

    def columns(name: str, width: int, dtypes: tuple[str, ...], low: int | None = None) -> Any:
        found = [laid_out(name, i, dtypes, low) for i in range(width)]
        return [[column[m] for column in found] for m in range(count)]

    both = FLOATS + INTEGERS
    ends = [(True, False), (False, True), (True, True)] + [(False, False)] * neither
    flags = [draw(st.sampled_from(ends)) for _ in lengths]
    start = draw(st.sampled_from([0, 10, 2**53, 2**63 - 100, -(2**63), 1577134800018164901]))
    return Written(
        observations=columns("observations", width, both),
        actions=columns("actions", 1, INTEGERS, 0)
        if discrete
        else columns("actions", draw(st.integers(1, 2)), FLOATS),
        rewards=[part[0] for part in columns("rewards", 1, both)],
        terminated=[a for a, _ in flags],
        truncated=[b for _, b in flags],
        discrete=discrete,
        ids=[start + m for m in draw(st.permutations(range(count)))],
        first_steps=[draw(st.sampled_from([0, 1, 2**53, 2**60 + 1])) for _ in lengths],
        seeds=[draw(st.integers(0, 2**32)) for _ in lengths],
        choice=random.Random(draw(st.integers(0, 2**32))),
    )


# ---- writers: each returns what `data check` is to be asked for ------------------------------


def flat(written: Written) -> dict[str, np.ndarray]:
    """Arrays over all steps."""

    def table(parts: list[list[np.ndarray]]) -> np.ndarray:
        return np.concatenate([np.stack(part, axis=1) for part in parts])

    count = range(len(written.rewards))
    actions = table(written.actions)
    return {
        "observations": table(written.observations),
        "actions": actions[:, 0] if written.discrete else actions,
        "rewards": np.concatenate(written.rewards),
        "terminated": np.concatenate([written.flag("terminated", m) for m in count]),
        "truncated": np.concatenate([written.flag("truncated", m) for m in count]),
    }


def npz(written: Written, folder: Path) -> str:
    arrays = flat(written)
    names = written.choice.choice([("terminations", "truncations"), ("terminals", "timeouts")])
    arrays[names[0]], arrays[names[1]] = arrays.pop("terminated"), arrays.pop("truncated")
    save = written.choice.choice([np.savez, np.savez_compressed])
    save(folder / "a.npz", **arrays, episode_seeds=np.array(written.seeds, "u8"))
    return str(folder / "a.npz")


def hdf5(written: Written, folder: Path) -> str:
    arrays = flat(written)
    with h5py.File(folder / "mylog.hdf5", "w") as file:
        for theirs in ("observations", "actions", "rewards"):
            file[theirs] = arrays[theirs]
        file["terminals"], file["timeouts"] = arrays["terminated"], arrays["truncated"]
        file["infos/qpos"] = np.zeros(3)
    return str(folder / "mylog.hdf5")


def table(written: Written) -> dict[str, list[Any]]:
    """Columns of Python numbers."""
    found: dict[str, list[Any]] = {"episode": [], "step": []}
    for m, rewards in enumerate(written.rewards):
        found["episode"] += [written.ids[m]] * len(rewards)
        found["step"] += [written.first_steps[m] + t for t in range(len(rewards))]
        single = {"action": written.actions[m][0]} if written.discrete else {}
        columns = {
            **{f"obs_{i}": column for i, column in enumerate(written.observations[m])},
            **(single or {f"act_{i}": column for i, column in enumerate(written.actions[m])}),
            "reward": rewards,
            "terminated": written.flag("terminated", m).astype(bool),
            "truncated": written.flag("truncated", m).astype(bool),
        }
        for name, column in columns.items():
            found.setdefault(name, []).extend(column.tolist())
    if written.choice.random() < 0.3:
        del found["step"]
    return found


def csv_(written: Written, folder: Path) -> str:
    columns = table(written)
    flags = written.choice.choice([{}, {True: "true", False: "false"}, {True: 1, False: 0}])
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        quoting = written.choice.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        writer = csv.writer(file, quoting=quoting)
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow([flags.get(x, x) if isinstance(x, bool) else x for x in row])
    return str(folder / "a.csv")


def parquet(written: Written, folder: Path) -> str:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as file

    dtypes = {"reward": written.rewards[0].dtype, "action": written.actions[0][0].dtype}
    dtypes |= {f"obs_{i}": column.dtype for i, column in enumerate(written.observations[0])}
    dtypes |= {f"act_{i}": column.dtype for i, column in enumerate(written.actions[0])}
    arrays = {}
    for name, values in table(written).items():
        dtype = np.dtype(dtypes.get(name, np.array(values).dtype))
        arrays[name] = pyarrow.array(np.array(values, dtype).astype(dtype.newbyteorder("=")))
    file.write_table(pyarrow.table(arrays), folder / "a.parquet")
    return str(folder / "a.parquet")


def listed(written: Written, names: tuple[str, str]) -> list[dict[str, Any]]:
    """One dict an episode; arrays or lists, flags one an episode or one a step."""
    parts = []
    for m, rewards in enumerate(written.rewards):
        seen = np.stack(written.observations[m], axis=1)
        if written.choice.random() < 0.3:
            seen = np.concatenate([seen, seen[-1:]])  # after the last action
        actions = np.stack(written.actions[m], axis=1)
        whole = written.choice.random() < 0.5
        part = {
            "observations": seen,
            "actions": actions[:, 0] if written.discrete else actions,
            "rewards": rewards if whole else rewards.tolist(),
            names[0]: written.flag("terminated", m),
            names[1]: written.flag("truncated", m),
        }
        if written.choice.random() < 0.5:
            part |= {name: bool(part[name][-1]) for name in names}
        parts.append(part)
    return parts


def pickled(written: Written, folder: Path) -> str:
    parts = listed(written, ("terminals", "timeouts"))
    protocol = written.choice.randint(2, pickle.HIGHEST_PROTOCOL)
    (folder / "a.pkl").write_bytes(pickle.dumps(parts, protocol))
    return str(folder / "a.pkl")


def handed_over(written: Written, folder: Path) -> str:
    name = f"h{uuid.uuid4().hex}"
    return from_episodes(listed(written, ("terminated", "truncated")), name).name


def minari(written: Written, folder: Path) -> str:
    """Minari's own layout."""
    name = f"fuzz/h{uuid.uuid4().hex}-v0"
    data = Path(os.environ["MINARI_DATASETS_PATH"]) / name / "data"
    data.mkdir(parents=True)
    box = {"type": "Box", "dtype": "float64", "low": [], "high": []}
    box |= {"low": [-9.0], "high": [9.0], "shape": [1]}
    metadata = {
        "total_episodes": len(written.rewards),
        "total_steps": sum(map(len, written.rewards)),
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": json.dumps(box),
        "action_space": json.dumps(
            {"type": "Discrete", "dtype": "int64", "start": 0, "n": 5} if written.discrete else box
        ),
        "dataset_id": name,
        "minari_version": "0.5.4",
    }
    (data / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for m, rewards in enumerate(written.rewards):
            group = file.create_group(f"episode_{m}")
            seen = np.stack(written.observations[m], axis=1)
            actions = np.stack(written.actions[m], axis=1)
            group["observations"] = np.concatenate([seen, seen[-1:]])
            group["actions"] = actions[:, 0] if written.discrete else actions
            group["rewards"] = rewards
            group["terminations"] = written.flag("terminated", m).astype(bool)
            group["truncations"] = written.flag("truncated", m).astype(bool)
            group.attrs.update(id=m, seed=written.seeds[m], total_steps=len(rewards))
    return name


# ---- the comparison ---------------------------------------------------------------------------


def float32(array: np.ndarray) -> np.ndarray:
    """The nearest float32 numbers, from what holds every type that was written."""
    return array.astype(np.longdouble).astype(np.float32)


def compare(written: Written, store: EpisodeStore, rules: set[str], keeps: set[str]) -> None:
    """The store against what was meant."""
    lengths = [len(rewards) for rewards in written.rewards]
    assert store.lengths.tolist() == lengths
    ends = np.cumsum(lengths) - 1
    both = zip(written.terminated, written.truncated, strict=True)
    unmarked = [m for m, flags in enumerate(both) if not any(flags)]
    assert store.terminated[ends].tolist() == written.terminated
    truncated = [flag or m in unmarked for m, flag in enumerate(written.truncated)]
    assert store.truncated[ends].tolist() == truncated
    assert (store.terminated | store.truncated).sum() == len(lengths)
    assert store.incomplete == tuple(unmarked)
    if "seeds" in keeps:
        assert store.seeds == tuple(written.seeds)
    told = bool(rules & {"rounded", "constant"})
    for i in range(len(written.observations[0])):
        column = [part[i] for part in written.observations]
        expected = np.concatenate([float32(part) for part in column])
        np.testing.assert_array_equal(store.observations[:, i].astype(np.float32), expected)
        assert told or not is_lost(column), (column, rules)
    for i in range(len(written.actions[0])):
        column = [part[i] for part in written.actions]
        kept = store.actions if written.discrete else store.actions[:, i]
        expected = np.concatenate([part if written.discrete else float32(part) for part in column])
        np.testing.assert_array_equal(kept, expected)
        assert "rounded" in rules or not is_lost(column)
    np.testing.assert_array_equal(
        store.rewards, np.concatenate(list(map(float32, written.rewards)))
    )
    assert "rounded" in rules or not is_lost(written.rewards)
    for m, rewards in enumerate(written.rewards):
        exact = [float(reward) for reward in float32(rewards)]
        start = int(store.offsets[m])
        for t in range(len(exact)):
            size = math.fsum(map(abs, exact[t:]))
            total = float(store.returns_to_go[start + t])
            assert abs(total - math.fsum(exact[t:])) <= 1e-7 * size


def is_lost(column: list[np.ndarray]) -> bool:
    """Whether numbers that differ, by more than float64 computes amiss, have become one."""
    exact = np.concatenate([part.astype(np.longdouble) for part in column])
    kept = float32(exact)
    return len(np.unique(kept)) == 1 and np.ptp(exact) > 1e-6 * np.abs(exact).max()


WRITERS: dict[str, tuple[Callable[[Written, Path], str], str, bool]] = {
    "npz": (npz, "file", False),
    "hdf5": (hdf5, "file", False),
    "csv": (csv_, "column", True),
    "parquet": (parquet, "column", True),
    "pickle": (pickled, "episode", True),
    "minari": (minari, "episode", True),
    "python": (handed_over, "episode", True),
}


def trial(name: str, written: Written, folder: Path) -> None:
    write, _, _ = WRITERS[name]
    source = write(written, folder)
    store = open_store([source])
    rules = {finding.rule for finding in examine([source]).findings}
    compare(written, store, rules, {"seeds"} if name in ("npz", "minari") else set())


@pytest.mark.parametrize("examples", [30, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", WRITERS)
def test_what_is_stored_is_what_was_written(name: str, examples: int, tmp_path: Path) -> None:
    _, types, neither = WRITERS[name]
    quick = settings(
        max_examples=examples,
        deadline=None,
        derandomize=examples < 100,
        suppress_health_check=list(HealthCheck),
    )
    quick(given(written=episodes(types, neither))(lambda written: trial(name, written, tmp_path)))()
