"""What a source delivers: whole episodes, one after the other, in flat arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from decision_seq.data.columns import numbers_in, rounded, to_float32
from decision_seq.data.finals import formed
from decision_seq.data.findings import Finding
from decision_seq.data.frames import joined, single_frames
from decision_seq.data.origin import together
from decision_seq.errors import UserError
from decision_seq.spaces.arrays import guessed_table
from decision_seq.spaces.kinds.image import MOST_CHANNELS
from decision_seq.spaces.table import from_json, to_json

MAX_DISCRETE_ACTIONS = 65_536  # beyond that it is no list of actions


@dataclass
class Episodes:
    """N steps of M whole episodes. Row t holds what was seen, done and received at step t.

    `info` says what the source knows about itself: `env_id` (with arguments), or `env_ids` where
    sources differ; `eval_env_id`, where it is meant to be evaluated in another one;
    `ref_min_score`, `ref_max_score`; `action_count` of discrete actions and `action_start`, what
    the environment calls the first; `rewards` ("clipped" to [-1, 1], or "none"); tables of spaces
    (`spaces.Table`, as JSON) that are more than one vector, one image or one choice as
    `observation_space` and `action_space`, and parts that are `left_out`; `images` ("jpeg", where
    that changed them).
    """

    observations: np.ndarray  # [N, S] float32 or uint8, images [N, H, W(, C)], or records [N]
    actions: np.ndarray  # [N, A] float32, or [N] int64 for discrete actions, counted from 0
    rewards: np.ndarray  # [N] float32
    terminated: np.ndarray  # [N] bool, the environment ended here
    truncated: np.ndarray  # [N] bool, a time limit or quota ended here
    offsets: np.ndarray  # [M + 1] int64, episode m is rows offsets[m]:offsets[m + 1]
    info: dict[str, Any] = field(default_factory=dict)
    incomplete: tuple[int, ...] = ()  # episodes without an end flag, which were marked truncated
    seeds: tuple[int, ...] = ()  # of the environment, an episode each, where the source has them
    findings: tuple[Finding, ...] = ()  # of reading: what had to be guessed or could not be kept
    # [M, ...] in the form of observations, what was seen after each episode's last step, where the
    # source has it for all
    final_observations: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        """[M] steps of each episode."""
        return np.diff(self.offsets)


def from_flat(
    source: str,
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    info: dict[str, Any],
    after: np.ndarray | None = None,
) -> Episodes:
    """Cut flat arrays into episodes where `terminated` or `truncated` is set, and check them.

    Steps after the last end were cut off by whoever stopped recording: they stay, as truncated.
    `after` is what was seen after each step [N, ...] or each episode's last one [M, ...], as
    `observations`; what cannot be that is left out.

    Raises:
        UserError: no steps, unequal lengths, wrong widths.
    """
    arrays = {
        "actions": actions,
        "rewards": rewards,
        "terminations": terminated,
        "truncations": truncated,
    }
    for name, array in {"observations": observations, **arrays}.items():
        if array.ndim == 0:
            raise UserError(f"{source}: `{name}` is a single value; it needs one row a step")
    steps = len(observations)
    if steps == 0:
        raise UserError(f"{source}: `observations` has no steps; an empty dataset trains nothing")
    for name, array in arrays.items():
        if len(array) != steps:
            raise UserError(
                f"{source}: `{name}` has {len(array)} rows but `observations` has {steps}; "
                "every array needs one row a step"
            )
    terminated = _flags(source, "terminations", terminated)
    truncated = _flags(source, "truncations", truncated)
    cut_off = not (terminated[-1] or truncated[-1])
    truncated[-1] |= cut_off
    ends = np.flatnonzero(terminated | truncated) + 1
    raw = observations
    observations, info, guessed = _formed(source, observations, info)
    kept, start = _actions(source, actions, info)
    given, info = info, info | ({"action_start": start} if start else {})
    episodes = Episodes(
        observations=_observations(source, observations),
        actions=kept,
        rewards=_column(source, "rewards", rewards),
        terminated=terminated,
        truncated=truncated,
        offsets=np.concatenate([[0], ends]).astype(np.int64),
        info=info,
        incomplete=(len(ends) - 1,) if cut_off else (),
    )
    if start and "action_start" not in given:
        episodes.findings += (_below_zero(start),)
    episodes.findings += guessed
    if after is not None:
        table = from_json(info["observation_space"], source) if guessed else None
        episodes.final_observations = formed(after, raw, episodes.observations, ends, table)
    if lost := rounded(_columns(observations, actions, rewards)):
        episodes.findings += (lost,)
    return episodes


def _below_zero(start: int) -> Finding:
    return Finding(
        "warning",
        "below-zero",
        1,
        f"discrete actions begin at {start}, which is taken for the environment's first",
        "if it marks steps without an action, leave these out",
    )


def concatenate(parts: list[Episodes], names: list[str]) -> Episodes:
    """Several sources as one dataset, `incomplete`, `seeds` and `findings` over all; with final
    observations where all have them.

    Raises UserError where widths or kinds differ, or nothing is named.
    """
    if not parts:
        raise UserError("no data are named; give at least one file, folder, name or Minari id")
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    for part, name in zip(parts[1:], names[1:], strict=True):
        for key in ("observations", "actions"):
            mine, theirs = getattr(first, key), getattr(part, key)
            if mine.shape[1:] != theirs.shape[1:] or mine.dtype != theirs.dtype:
                raise UserError(
                    f"{name}: `{key}` is {describe(theirs)} but {names[0]} has {describe(mine)}; "
                    "sources of one dataset must come from the same environment"
                )
    for key in ("observation_space", "action_space"):
        for part, name in zip(parts[1:], names[1:], strict=True):
            if part.info.get(key) != first.info.get(key):
                raise UserError(
                    f"{name}: its {key} is not that of {names[0]}; sources of one dataset must "
                    "come from the same environment"
                )
    environment, differing = together([part.info for part in parts], names)
    parts = _counted_alike(parts)
    first = parts[0]
    keys = ("observations", "actions", "rewards", "terminated", "truncated")
    arrays: dict[str, Any] = {key: joined([getattr(p, key) for p in parts]) for key in keys}
    lengths = np.concatenate([p.lengths for p in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    shared = {k: v for k, v in first.info.items() if all(p.info.get(k) == v for p in parts)}
    shared = {k: v for k, v in shared.items() if k not in ("env_id", "env_ids")} | environment
    incomplete: list[int] = []
    before = 0  # episodes of the parts before
    for part in parts:
        incomplete += [before + m for m in part.incomplete]
        before += len(part.lengths)
    known = all(part.seeds for part in parts)
    seeds = [seed for part in parts for seed in part.seeds] if known else []
    finals = [part.final_observations for part in parts if part.final_observations is not None]
    findings = [f.of_source(n) for p, n in zip(parts, names, strict=True) for f in p.findings]
    return Episodes(
        **arrays,
        offsets=offsets,
        info=shared,
        incomplete=(*incomplete,),
        seeds=(*seeds,),
        findings=(*differing, *findings),
        final_observations=joined(finals) if len(finals) == len(parts) else None,
    )


def _counted_alike(parts: list[Episodes]) -> list[Episodes]:
    """The same with discrete actions counted from one start, the lowest."""
    starts = [part.info.get("action_start", 0) for part in parts]
    if len(set(starts)) == 1:
        return parts
    low = {"action_start": min(starts)}
    return [
        replace(part, actions=part.actions + (start - min(starts)), info=part.info | low)
        for part, start in zip(parts, starts, strict=True)
    ]


def describe(array: np.ndarray) -> str:
    """`float32 of width 11`, `uint8 frames 84x84`, `int64 numbers`: for error messages."""
    if array.dtype.names:
        return f"records of {', '.join(array.dtype.names)}"
    if array.ndim == 1:
        return f"{array.dtype} numbers"
    if array.ndim == 2:
        return f"{array.dtype} of width {array.shape[1]}"
    return f"{array.dtype} frames {'x'.join(map(str, array.shape[1:]))}"


def _columns(
    observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray
) -> dict[str, np.ndarray]:
    """The columns of numbers [N], by what a person calls them; none of frames."""
    observations = numbers_in(observations)
    tables = {"observation": observations, "action": actions, "reward": rewards.reshape(-1, 1)}
    return {
        name if name == "reward" else f"{name} column {i}": table[:, i]
        for name, table in tables.items()
        if table.ndim == 2
        for i in range(table.shape[1])
    }


def _formed(
    source: str, array: np.ndarray, info: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any], tuple[Finding, ...]]:
    """Observations as they are kept, with the table of what they are where it must be told."""
    if "observation_space" in info or array.dtype.names or array.dtype.kind not in "fiub":
        return array, info, ()
    try:
        table = guessed_table(array)
        if table is None:
            return array, info, ()
        formed = table.observe(array)
    except (UserError, ValueError) as error:
        raise UserError(f"{source}: `observations` {error}") from None
    said = (
        "numbered things" if table.numbers and not table.scaled.all() else "what their shape says"
    )
    finding = Finding(
        "note", "guessed-space", 1,
        f"observations [steps{', ' if array.ndim > 1 else ''}"
        f"{', '.join(map(str, array.shape[1:]))}] of {array.dtype} are taken for {said}",
        "a Minari dataset says what its spaces are",
    )  # fmt: skip
    return formed, info | {"observation_space": to_json(table)}, (finding,)


def _observations(source: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.names or (array.ndim > 2 and array.dtype == np.float32):
        return array  # in a form that a table gave
    if array.ndim == 4 and array.shape[-1] <= MOST_CHANNELS and array.shape[-1] > 1:
        return array
    frames = array.ndim > 2 and array.dtype == np.uint8
    if not (frames or array.ndim == 2) or array.dtype.kind not in "fiub" or 0 in array.shape:
        raise UserError(
            f"{source}: `observations` is {array.dtype} of shape {array.shape}; "
            "expected numbers of shape [steps, width], or uint8 frames [steps, height, width]"
        )
    if frames:
        return single_frames(source, array)
    return array if array.dtype == np.uint8 else to_float32(array)


def _actions(source: str, array: np.ndarray, info: dict[str, Any]) -> tuple[np.ndarray, int]:
    """Actions [N, A], or [N] counted from 0, and what the environment calls the first of these."""
    if array.ndim == 2 and array.dtype.kind == "f" and array.shape[1] > 0:
        return to_float32(array), 0
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 1 and array.dtype.kind in "iu":
        low, high = int(array.min()), int(array.max())
        start = info.get("action_start", min(low, 0))
        if high - start >= MAX_DISCRETE_ACTIONS or abs(start) > MAX_DISCRETE_ACTIONS:
            raise UserError(
                f"{source}: `actions` holds {low} to {high}; discrete actions are up to "
                f"{MAX_DISCRETE_ACTIONS} numbers in a row, the first usually 0"
            )
        count = info.get("action_count")
        if count is not None and not 0 < count <= MAX_DISCRETE_ACTIONS:
            raise UserError(
                f"{source}: `action_count` is {count}; it must be from 1 to {MAX_DISCRETE_ACTIONS}"
            )
        last = high if count is None else start + count - 1
        if low < start or high > last:
            wrong = high if high > last else low
            raise UserError(
                f"{source}: `actions` holds {wrong}, but the environment it names has only "
                f"the actions {start} to {last}; name the one that the data came from"
            )
        return array.astype(np.int64) - start, start
    raise UserError(
        f"{source}: `actions` is {array.dtype} of shape {array.shape}; expected float "
        "[steps, width] for continuous actions or int [steps] for discrete ones"
    )


def _column(source: str, name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "fiub":
        raise UserError(
            f"{source}: `{name}` is {array.dtype} of shape {array.shape}; expected numbers [steps]"
        )
    return to_float32(array)


def _flags(source: str, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype == bool and array.ndim == 1:
        return array.copy()
    values = _column(source, name, array)
    if not np.isin(values, (0.0, 1.0)).all():
        raise UserError(f"{source}: `{name}` holds other values than 0 and 1 (false and true)")
    return values.astype(bool)


def numbers_of(episodes: Any) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array [N, ...]) of all floats of episodes or of a store, those of pictures too."""
    for name in ("observations", "actions", "rewards"):
        array = getattr(episodes, name)
        if array.dtype.names:
            parts = {f"{name} {field}": array[field] for field in array.dtype.names}
        else:
            parts = {name: array}
        yield from ((key, part) for key, part in parts.items() if part.dtype.kind == "f")


def check_finite(source: str, episodes: Episodes) -> None:
    """Raise UserError where a number, or an episode's return, is NaN, infinite or beyond float32:
    nothing can be learned from it."""
    for name, array in numbers_of(episodes):
        if np.isfinite(array).all():
            continue
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if bad.any():
            step = int(bad.argmax())
            episode = int(np.searchsorted(episodes.offsets, step, side="right")) - 1
            raise UserError(
                f"{source}: `{name}` is NaN or infinite in float32 at step {step} (episode "
                f"{episode}, step {step - int(episodes.offsets[episode])} in it), "
                f"{int(bad.sum())} steps in all; remove those episodes with `decision-seq data "
                "check SOURCE --drop-bad OUT.npz`"
            )
    sizes = np.abs(episodes.rewards, dtype=np.float64)
    beyond = np.add.reduceat(sizes, episodes.offsets[:-1]) > np.finfo(np.float32).max
    if beyond.any():
        raise UserError(
            f"{source}: the rewards of episode {int(beyond.argmax())} add up to more than float32 "
            "holds; divide all rewards by a constant"
        )
