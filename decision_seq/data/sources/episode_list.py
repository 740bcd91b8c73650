"""Episodes one by one: from a Python iterator, or from the trajectory lists of others' pickles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes, describe, from_flat
from decision_seq.errors import UserError

HAND_OVER = "hand the episodes over with decision_seq.data.from_episodes (docs/own-data.md)"
KEYS = ("observations", "actions", "rewards", "terminated")


def gather(source: str, episodes: Iterable[Mapping[str, Any]], info: dict[str, Any]) -> Episodes:
    """Lay episodes end to end.

    Args:
        source: what messages call them.
        episodes: each with observations [T, S] (or [T + 1, S]: what follows the last action is
            the final observation, kept if all have one), actions [T, A] or [T], rewards [T],
            `terminated` and, if there were time limits, `truncated`: one flag an episode, or [T]
            flags of which only the last may be set. An episode with neither was cut off by whoever
            recorded it: it is truncated, and incomplete if `truncated` was given.
        info: what is known about the environment.

    Raises:
        UserError: an episode lacks a key, has no steps, ends before its last step, or is of
            another shape than the first.
    """
    keys = ("observations", "actions", "rewards", "terminated", "truncated", "after")
    columns: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    incomplete = []
    for number, episode in enumerate(episodes):
        place = f"{source}: episode {number}"
        arrays = _one(place, episode)
        if not (arrays["terminated"][-1] or arrays["truncated"][-1]):
            arrays["truncated"][-1] = True
            incomplete += [number] if "truncated" in episode else []
        for key, array in arrays.items():
            first = columns[key][0] if columns[key] else array
            check_alike(place, key, array, first)
            columns[key].append(array)
    if not columns["rewards"]:
        raise UserError(f"{source}: has no episodes; an empty dataset trains nothing")
    joined = {key: end_to_end(arrays) for key, arrays in columns.items()}
    return replace(from_flat(source, **joined, info=info), incomplete=(*incomplete,))


def end_to_end(arrays: list[np.ndarray]) -> np.ndarray:
    """The rows of all, in a type that holds their numbers exactly: NumPy makes float64 of signed
    and unsigned integers of 64 bits, and of integers beside floats, and rounds what is large."""
    dtypes = {array.dtype for array in arrays}
    common = np.result_type(*dtypes)
    if common == np.float64 and any(dtype in (np.int64, np.uint64) for dtype in dtypes):
        common = np.dtype(np.longdouble)
        if (
            all(dtype.kind in "iu" for dtype in dtypes)
            and max(a.max(initial=0) for a in arrays) < 2**63
        ):
            common = np.dtype(np.int64)
    return np.concatenate(arrays, dtype=common, casting="unsafe")


def check_alike(place: str, key: str, array: np.ndarray, first: np.ndarray) -> None:
    """Raise UserError where an episode's array cannot stand beside the first episode's: another
    width, numbers of actions beside vectors, frames beside vectors. Integers and floats are both
    numbers, so that laid end to end they are what they were."""
    whole = [one.dtype.kind in "iu" for one in (array, first)]  # discrete actions, if actions
    frames = [one.dtype if one.ndim > 2 else None for one in (array, first)]
    if (
        array.shape[1:] != first.shape[1:]
        or (key == "actions" and whole[0] != whole[1])
        or frames[0] != frames[1]
    ):
        raise UserError(
            f"{place}: `{key}` is {describe(array)} but episode 0 has {describe(first)}; episodes "
            "of one dataset must come from the same environment"
        )


def _one(place: str, episode: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if not isinstance(episode, Mapping):
        raise UserError(f"{place}: is {type(episode).__name__}; expected a dict of arrays")
    if missing := [key for key in KEYS if key not in episode]:
        raise UserError(
            f"{place}: `{missing[0]}` is missing (found {', '.join(map(str, episode))[:200]}); an "
            f"episode has {', '.join(KEYS)} and, where there are time limits, truncated"
        )
    arrays = {key: _numbers(place, key, episode[key]) for key in KEYS[:3]}
    for key, array in arrays.items():
        if array.ndim == 0:
            raise UserError(f"{place}: `{key}` is a single value; it needs one row a step")
    steps = len(arrays["rewards"])
    if steps == 0:
        raise UserError(f"{place}: has no steps; leave it out")
    after = arrays["observations"][steps : steps + 1]
    if len(arrays["observations"]) == steps + 1:
        arrays["observations"] = arrays["observations"][:-1]
    for key in ("observations", "actions"):
        if len(arrays[key]) != steps:
            raise UserError(
                f"{place}: `{key}` has {len(arrays[key])} rows but `rewards` has {steps}; every "
                "array needs one row a step"
            )
    arrays["rewards"] = arrays["rewards"].reshape(steps, -1)
    if arrays["rewards"].shape[1] != 1:
        raise UserError(f"{place}: `rewards` has several columns; expected one number a step")
    terminated = _end(place, "terminated", episode["terminated"], steps)
    truncated = _end(place, "truncated", episode.get("truncated", False), steps)
    return arrays | {"terminated": terminated, "truncated": truncated, "after": after}


def _end(place: str, key: str, value: Any, steps: int) -> np.ndarray:
    """[T] bool of a flag for the episode or of flags for its steps."""
    flags = _numbers(place, key, value)
    if not np.isin(flags, (0, 1)).all():
        raise UserError(f"{place}: `{key}` holds other values than 0 and 1 (false and true)")
    if flags.ndim == 0:
        return np.arange(steps) == (steps - 1 if flags else steps)
    flags = flags.reshape(-1).astype(bool)
    if len(flags) != steps:
        raise UserError(f"{place}: `{key}` has {len(flags)} rows but `rewards` has {steps}")
    if flags[:-1].any():
        raise UserError(
            f"{place}: `{key}` is set at step {int(flags.argmax())} of {steps}, but the episode "
            "goes on; cut it there"
        )
    return flags


def _numbers(place: str, key: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "fiub":
        raise UserError(f"{place}: `{key}` is not an array of numbers with rows of one length")
    return array
