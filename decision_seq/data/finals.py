"""What was seen after the last step of each episode, where a source has it."""

from __future__ import annotations

import numpy as np

from decision_seq.data.columns import to_float32
from decision_seq.data.frames import newest_frames
from decision_seq.errors import UserError
from decision_seq.spaces.table import Table

FINALS = "final_observations"


def formed(
    after: np.ndarray, raw: np.ndarray, kept: np.ndarray, ends: np.ndarray, table: Table | None
) -> np.ndarray | None:
    """Final observations [M, ...] in the form in which observations are kept.

    Args:
        after: [M, ...] what was seen after each episode, or [N, ...] after each step, as `raw`.
        raw: [N, ...] observations as the source has them.
        kept: [N, ...] the same as they are kept.
        ends: [M] the row behind each episode.
        table: that made `kept` of `raw`, if one was guessed.

    Returns:
        None where they are not of the same kind, or some are not finite, or all only fill a place:
        zeros, the episode's last observation once more, or the first of the next one (as in rows
        that somebody shifted).
    """
    if after.shape[:1] == raw.shape[:1]:
        after = after[ends - 1]
    if after.dtype != raw.dtype or after.shape != (len(ends), *raw.shape[1:]):
        return None
    if all(_fills(one, end, raw) for one, end in zip(after, ends.tolist(), strict=True)):
        return None
    try:
        after = after if table is None else table.observe(after)
    except (UserError, ValueError):
        return None
    if after.ndim > kept.ndim:
        after = newest_frames(after)
    if kept.dtype == np.float32:
        after = to_float32(after)
    parts = [after[name] for name in after.dtype.names] if after.dtype.names else [after]
    finite = all(np.isfinite(part).all() for part in parts if part.dtype.kind == "f")
    return after if finite and fits(after, kept, len(ends)) else None


def fits(finals: np.ndarray, observations: np.ndarray, episodes: int) -> bool:
    """Whether these are final observations of so many episodes, in the form of `observations`."""
    shape = (episodes, *observations.shape[1:])
    return finals.dtype == observations.dtype and finals.shape == shape


def _fills(one: np.ndarray, end: int, raw: np.ndarray) -> bool:
    data = one.tobytes()
    return data in (bytes(len(data)), raw[end - 1].tobytes(), raw[end % len(raw)].tobytes())
