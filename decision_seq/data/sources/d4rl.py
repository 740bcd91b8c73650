"""D4RL's HDF5 files (arXiv:2004.07219): flat observations, actions, rewards, terminals, timeouts.

Read with h5py; the d4rl package is not needed. v0 files have no `timeouts`: there an episode also
ends at the environment's limit of 1,000 steps, as in the Decision Transformer's conversion.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes, from_flat
from decision_seq.errors import UserError

V0_EPISODE_STEPS = 1000
ENVIRONMENTS = {"hopper": "Hopper", "halfcheetah": "HalfCheetah", "walker2d": "Walker2d"}


def read(path: Path) -> Episodes:
    """Read one file. Raises UserError for a broken file or a missing key."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            keys = ("observations", "actions", "rewards", "terminals")
            if missing := [key for key in keys if key not in file]:
                raise UserError(
                    f"{path}: key `{missing[0]}` is missing (found {', '.join(file)}); "
                    f"a D4RL file has {', '.join(keys)} and, from v1 on, timeouts"
                )
            observations, actions, rewards, terminals = (_array(path, file, k) for k in keys)
            timeouts = _array(path, file, "timeouts") if "timeouts" in file else None
    except UserError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read as HDF5 ({' '.join(str(error).split())}); the file may be "
            "cut off"
        ) from None
    if timeouts is None:
        timeouts = _time_limit(terminals.reshape(-1) != 0)
    return from_flat(str(path), observations, actions, rewards, terminals, timeouts, _info(path))


def _array(path: Path, file: Any, key: str) -> np.ndarray:
    if not hasattr(file[key], "shape"):
        raise UserError(f"{path}: `{key}` is a group, not an array; is this a Minari file?")
    return file[key][()]


def _time_limit(terminated: np.ndarray) -> np.ndarray:
    """[N] bool: true at the step that completes 1,000 steps since the last end."""
    truncated = np.zeros(len(terminated), bool)
    start = 0
    for end in [*np.flatnonzero(terminated), len(terminated) - 1]:
        truncated[start + V0_EPISODE_STEPS - 1 : end + 1 : V0_EPISODE_STEPS] = True
        start = end + 1
    return truncated & ~terminated


def _info(path: Path) -> dict[str, Any]:
    match = re.match(r"([a-z0-9]+)[_-]", path.name.lower())
    environment = ENVIRONMENTS.get(match[1]) if match else None
    return {"env_id": f"{environment}-v2"} if environment else {}
