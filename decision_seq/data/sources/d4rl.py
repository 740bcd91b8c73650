"""D4RL's HDF5 files (arXiv:2004.07219): flat observations, actions, rewards, terminals, timeouts.

Read with h5py; the d4rl package is not needed. An episode ends where `terminals` or `timeouts` is
set, as in d4rl's own reader of sequences. The families differ in this: locomotion v0, kitchen and
adroit v0 have no `timeouts`, so there an episode also ends at the environment's time limit, which
the dataset's name gives, and a finding says so (of a file whose name says nothing no limit is
known); maze2d never terminates and has timeouts only. Of next_observations those
behind episodes are kept. Other keys (infos/, metadata/) are ignored.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes, from_flat
from decision_seq.data.findings import Finding
from decision_seq.data.sources.episode_list import HAND_OVER
from decision_seq.envs.d4rl_environments import recorded
from decision_seq.envs.reference_scores import find_d4rl
from decision_seq.errors import UserError

AFTER = "next_observations"
LIMIT = 1000  # steps an episode in the environments below
LARGEST_RATIO = 1100  # of an array to its file: deflate packs 1,032 bytes into one at best
ENVIRONMENTS = {"hopper": "Hopper", "halfcheetah": "HalfCheetah", "walker2d": "Walker2d"}
ENVIRONMENTS |= {"ant": "Ant"}


def read(path: Path) -> Episodes:
    """Read one file. Raises UserError for a broken file or a missing key."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            keys = ("observations", "actions", "rewards", "terminals")
            if missing := [key for key in keys if key not in file]:
                raise UserError(
                    f"{path}: key `{missing[0]}` is missing (found {', '.join(file)[:200]}); a "
                    f"D4RL file has {', '.join(keys)} and, from v1 on, timeouts: give a Minari "
                    f"dataset by its id, and of other layouts {HAND_OVER}"
                )
            observations, actions, rewards, terminals = (_array(path, file, k) for k in keys)
            timeouts = _array(path, file, "timeouts") if "timeouts" in file else None
            after = _array(path, file, AFTER) if AFTER in file else None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read as HDF5 ({' '.join(str(error).split())}); the file may be "
            "cut off"
        ) from None
    info = dataset_info(path)
    if timeouts is not None:
        return from_flat(
            str(path), observations, actions, rewards, terminals, timeouts, info, after
        )
    dataset = find_d4rl(path.stem)
    limit = dataset.steps if dataset else LIMIT if "env_id" in info else None
    timeouts = _time_limit(terminals.reshape(-1) != 0, limit)
    flat = from_flat(str(path), observations, actions, rewards, terminals, timeouts, info, after)
    return replace(flat, findings=(*flat.findings, *_assumed(limit, int(timeouts.sum()))))


def _assumed(limit: int | None, cuts: int) -> list[Finding]:
    """What to say of a file that does not tell where episodes ran out of time."""
    if limit is None:
        message = "episodes end at `terminals` alone, since no time limit is known of this name"
        fix = "if there was one, episodes run into one another: write `timeouts`"
    else:
        message = f"a time limit of {limit} steps is assumed from its name and ends {cuts} episodes"
        fix = "if there was another or none, write `timeouts` (all 0 if none)"
    message = f"the file has no `timeouts`: {message}"
    return [] if limit and not cuts else [Finding("warning", "assumed-limit", cuts, message, fix)]


def _array(path: Path, file: Any, key: str) -> np.ndarray:
    if not hasattr(file[key], "shape"):
        raise UserError(f"{path}: `{key}` is a group, not an array; is this a Minari file?")
    if file[key].nbytes > LARGEST_RATIO * path.stat().st_size:
        raise UserError(
            f"{path}: `{key}` claims to be larger than the file can hold; it is damaged"
        )
    return file[key][()]


def _time_limit(terminated: np.ndarray, limit: int | None) -> np.ndarray:
    """[N] bool: true at the step that completes `limit` steps since the last end."""
    truncated = np.zeros(len(terminated), bool)
    if limit is None:
        return truncated
    start = 0
    for end in [*np.flatnonzero(terminated), len(terminated) - 1]:
        truncated[start + limit - 1 : end + 1 : limit] = True
        start = end + 1
    return truncated & ~terminated


def dataset_info(path: Path) -> dict[str, Any]:
    """Environment and reference returns of the D4RL dataset that a file's name stands for."""
    match = re.match(r"([a-z0-9]+)[_-]", path.name.lower())
    environment = ENVIRONMENTS.get(match[1]) if match else None
    info: dict[str, Any] = {"env_id": f"{environment}-v2"} if environment else {}
    if dataset := find_d4rl(path.stem):
        low, high = dataset.reference
        info |= {"dataset": dataset.name, "ref_min_score": low, "ref_max_score": high}
        if known := recorded(dataset.name):
            info["env_id"] = known
    return info
