"""What d3rlpy's ReplayBuffer.dump writes (JMLR 23, 2022): HDF5 arrays observations_0, actions_0,
rewards_0, terminated_0 of episode 0, and so on; `num_episodes` and `columns` say how many.

An episode that did not terminate ran into a time limit or was cut off.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes
from decision_seq.data.sources.parts import Part, put_together
from decision_seq.errors import UserError

PARTS = ("observations", "actions", "rewards", "terminated")


def recognised(file: Any) -> bool:
    """Whether an open HDF5 file is such a dump."""
    return "num_episodes" in file and "columns" in file


def read(path: Path, file: Any) -> Episodes:
    """Read an open file, an episode at a time. Raises UserError where an array is missing."""
    count = int(file["num_episodes"][()])
    for number in range(count):
        for part in PARTS:
            if f"{part}_{number}" not in file and not (
                part == "observations" and f"{part}_{number}_0" in file
            ):
                raise UserError(f"{path}: `{part}_{number}` is missing; the dump may be cut off")

    def episodes() -> Iterator[Part]:
        for number in range(count):
            actions, rewards, ended = (file[f"{part}_{number}"][()] for part in PARTS[1:])
            if actions.ndim == 2 and actions.shape[1] == 1 and actions.dtype.kind in "iu":
                actions = actions[:, 0]
            yield _seen(file, number), actions, rewards.reshape(-1), bool(ended)

    steps = sum(len(file[f"rewards_{number}"]) for number in range(count))
    return put_together(str(path), episodes(), steps, {})


def _seen(file: Any, number: int) -> dict[str, np.ndarray]:
    name = f"observations_{number}"
    if name in file:
        return {"observation": file[name][()]}
    return {key.rpartition("_")[2]: file[key][()] for key in file if key.startswith(f"{name}_")}
