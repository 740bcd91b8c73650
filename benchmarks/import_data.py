"""How long importing a large dataset takes, beside only reading the file's arrays.

    python benchmarks/import_data.py [--steps 1000000] [--runs 5]

Writes HDF5 files in D4RL's layout with Hopper's widths (observations, actions, rewards, terminals,
timeouts, next_observations and what lies under infos/), plain and gzip-compressed, then times in
turn: reading the five arrays that a dataset needs, reading all of them as d4rl's own reader does,
importing under a name, and opening that name again. The ratios are medians over the runs, by wall
time and, as other work on a machine lengthens one more than the other, by processor time; files
are in the page cache. A CSV log of as many rows is timed once.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from decision_seq.data import import_dataset, open_store

NEEDED = ("observations", "actions", "rewards", "terminals", "timeouts")


def arrays(steps: int) -> dict[str, np.ndarray]:
    """Noise that changes slowly, as a walker's state does, so that it compresses like it."""
    rng = np.random.default_rng(0)
    drift = rng.standard_normal((steps + 1, 11), dtype=np.float32).cumsum(axis=0) * 0.01
    ends = np.zeros(steps, bool)
    ends[999::1000] = True
    return {
        "observations": drift[:-1],
        "actions": np.tanh(rng.standard_normal((steps, 3), dtype=np.float32)),
        "rewards": rng.standard_normal(steps, dtype=np.float32),
        "terminals": rng.random(steps) < 1e-3,
        "timeouts": ends,
        "next_observations": drift[1:],
        "infos/qpos": drift[:-1, :6].astype(np.float64),
        "infos/qvel": drift[:-1, 5:].astype(np.float64),
        "infos/action_log_probs": rng.standard_normal(steps, dtype=np.float32),
    }


def write_hdf5(path: Path, content: dict[str, np.ndarray], compression: str | None) -> None:
    """One file, and what the system still has to write of it out of the way."""
    with h5py.File(path, "w") as file:
        for name, array in content.items():
            file.create_dataset(name, data=array, compression=compression)
    os.sync()


def read(path: Path, names: tuple[str, ...]) -> None:
    """What any program must do: the arrays into memory."""
    with h5py.File(path, "r") as file:
        for name in names:
            file[name][()]


def timed(call: Callable[[], Any]) -> np.ndarray:
    """(wall, processor) seconds of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return np.array([time.perf_counter() - wall, time.process_time() - processor])


def measure(path: Path, names: tuple[str, ...], runs: int) -> dict[str, np.ndarray]:
    """[runs, 2] seconds of each part, interleaved so that a busy machine slows all of them."""
    times: dict[str, list[np.ndarray]] = {"five": [], "import": [], "all": [], "open": []}
    for run in range(runs):
        name = f"{path.stem}-{run}"
        times["five"].append(timed(lambda: read(path, NEEDED)))
        times["import"].append(timed(partial(import_dataset, [str(path)], name)))
        times["all"].append(timed(lambda: read(path, names)))
        times["open"].append(timed(partial(open_store, [name])))
    return {part: np.stack(values) for part, values in times.items()}


def main() -> None:
    """Print a row a file and clock."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    read_columns = f"{'read 5':>9} {'read all':>9} {'import':>9} {'open again':>11}"
    print(f"{options.steps} steps, {options.runs} runs; seconds, and times the reading")
    print(f"{'file':10} {'clock':10} {read_columns} {'import/5':>9} {'import/all':>11}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DECISION_SEQ_DATA"] = str(Path(folder) / "library")
        content = arrays(options.steps)
        for compression in (None, "gzip"):
            path = Path(folder) / f"{compression or 'plain'}.hdf5"
            write_hdf5(path, content, compression)
            times = measure(path, tuple(content), options.runs)
            for clock, name in enumerate(("wall", "processor")):
                one = {part: values[:, clock] for part, values in times.items()}
                middle = {part: float(np.median(values)) for part, values in one.items()}
                print(
                    f"{path.stem:10} {name:10} {middle['five']:9.3f} {middle['all']:9.3f} "
                    f"{middle['import']:9.3f} {middle['open']:11.4f} "
                    f"{np.median(one['import'] / one['five']):9.2f} "
                    f"{np.median(one['import'] / one['all']):11.2f}"
                )
        path = Path(folder) / "log.csv"
        write_csv(path, content, options.steps)
        wall, processor = timed(lambda: import_dataset([str(path)], "log"))
        print(
            f"CSV of {path.stat().st_size / 1e6:.0f} MB: wall {wall:.1f}, processor {processor:.1f}"
        )


def write_csv(path: Path, content: dict[str, np.ndarray], steps: int) -> None:
    """The same steps as a log."""
    ends = np.cumsum(content["terminals"] | content["timeouts"])
    episode = ends - (content["terminals"] | content["timeouts"])
    names = [*(f"observation_{i}" for i in range(11)), *(f"action_{i}" for i in range(3))]
    columns = [content["observations"], content["actions"], content["rewards"][:, None]]
    flags = [content["terminals"][:, None], content["timeouts"][:, None]]
    with path.open("w") as file:
        file.write(",".join(["episode", *names, "reward", "terminated", "truncated"]) + "\n")
        for start in range(0, steps, 100_000):
            part = slice(start, start + 100_000)
            block = np.hstack([episode[part, None], *(c[part] for c in [*columns, *flags])])
            np.savetxt(file, block, fmt="%.9g", delimiter=",")


if __name__ == "__main__":
    main()
