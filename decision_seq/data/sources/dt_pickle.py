"""The Decision Transformer code's trajectories (arXiv:2106.01345): a pickled list of dicts.

Each dict has observations, actions, rewards and terminals (`dones` in some files), a row a step;
next_observations and whatever else is there are ignored. A dict of flat arrays is read
as well (see keys.py). An episode that does not end in a terminal
state ran into the time limit. Nothing in the pickle is run.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes
from decision_seq.data.sources.compressed import DAMAGED, content
from decision_seq.data.sources.d4rl import dataset_info
from decision_seq.data.sources.episode_list import gather
from decision_seq.data.sources.keys import from_keys, names_in
from decision_seq.errors import UserError
from decision_seq.pickles import RefusedClass, load_plain

ARRAYS = ("observations", "actions", "rewards")


def read(path: Path) -> Episodes:
    """Read one file. Raises UserError for one that is damaged, malicious, or no trajectory list."""
    try:
        pickled = content(path)
        trajectories = load_plain(pickled)
    except DAMAGED as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except RefusedClass as error:
        raise UserError(
            f"{path}: asks for {error.asked}, so it was refused and nothing in it was run; a "
            "trajectory file holds lists, dicts, numbers and numpy arrays only"
        ) from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: cannot be read as a pickle ({error}); the file may be cut off"
        ) from None
    if isinstance(trajectories, Mapping) and names_in(set(trajectories)):
        _check_size(path, [trajectories], len(pickled))
        arrays = {str(key): np.asarray(value) for key, value in trajectories.items()}
        return from_keys(str(path), arrays, dataset_info(path))
    if not isinstance(trajectories, list | tuple):
        raise UserError(
            f"{path}: holds {type(trajectories).__name__}; expected a list of trajectories, each a "
            f"dict of {', '.join(ARRAYS)} and terminals"
        )
    _check_size(path, trajectories, len(pickled))
    return gather(str(path), _episodes(path, trajectories), dataset_info(path))


def _episodes(path: Path, trajectories: Sequence[Any]) -> Iterator[Any]:
    for number, trajectory in enumerate(trajectories):
        if not isinstance(trajectory, Mapping):
            yield trajectory
            continue
        ends = [key for key in ("terminals", "dones") if key in trajectory]
        if not ends:
            raise UserError(
                f"{path}: episode {number}: `terminals` is missing (found "
                f"{', '.join(map(str, trajectory))[:200]})"
            )
        yield {
            **{key: trajectory[key] for key in ARRAYS if key in trajectory},
            "terminated": trajectory[ends[0]],
            **({"truncated": trajectory["timeouts"]} if "timeouts" in trajectory else {}),
        }


def _check_size(path: Path, trajectories: Sequence[Any], size: int) -> None:
    """A pickle can name one array many times over; a number on disk takes a byte at least."""
    values = [t.get(key) for t in trajectories if isinstance(t, Mapping) for key in ARRAYS]
    if sum(_count(value) for value in values) > size:
        raise UserError(
            f"{path}: repeats its arrays until they are larger than the file; it was not made by "
            "writing trajectories"
        )


def _count(value: Any) -> int:
    """Numbers in an array, or in a list of numbers or of arrays."""
    if isinstance(value, list | tuple):
        return sum(getattr(item, "size", 1) for item in value)
    return int(getattr(value, "size", 1))
