"""Episodes whose steps have several parts, one array each, put together as they are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes, from_flat
from decision_seq.data.frames import array_on_disk, release
from decision_seq.data.sources.episode_list import end_to_end
from decision_seq.data.sources.keys import NO_REWARDS, WITHOUT
from decision_seq.errors import UserError
from decision_seq.spaces.kinds.image import ImageLeaf, channels
from decision_seq.spaces.kinds.vector import VectorLeaf
from decision_seq.spaces.table import Table, to_json

# parts [T, ...] by path, actions [T, A], rewards [T] or None, whether it terminated
Part = tuple[Mapping[str, np.ndarray], np.ndarray, np.ndarray | None, bool]


def table_of_arrays(parts: Mapping[str, np.ndarray]) -> Table:
    """Of parts [T, ...] by path: uint8 pictures are images, all else vectors."""
    leaves: list[Any] = []
    for path, array in sorted(parts.items()):
        shape, dtype = array.shape[1:], str(array.dtype)
        picture = channels(shape, dtype, bounded=False) is not None
        leaves.append((ImageLeaf if picture else VectorLeaf)(path, shape, dtype))
    return Table(tuple(leaves), {path: i for i, path in enumerate(sorted(parts))})


def put_together(
    source: str, episodes: Iterator[Part], steps: int, info: dict[str, Any]
) -> Episodes:
    """Lay episodes end to end; with images among their parts on disk, an episode in memory at once.

    Args:
        source: what messages call them.
        episodes: see `Part`.
        steps: of all together.
        info: what is known about the environment.

    Raises:
        UserError: there are none, or they differ in their parts.
    """
    table: Table | None = None
    seen: list[np.ndarray] = []
    whole, row = np.empty(0), 0
    columns: list[tuple[np.ndarray, np.ndarray | None, bool]] = []
    for number, (parts, *others) in enumerate(episodes):
        table = table or table_of_arrays(parts)
        try:
            kept = (table.observe if table.images else table.vector)(parts)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{source}: episode {number}: its observations are not those of episode 0 ({error})"
            ) from None
        if table.images:
            if row == 0:
                whole = array_on_disk((steps, *kept.shape[1:]), kept.dtype)
            whole[row : row + len(kept)] = kept
            release(whole)
        seen.append(kept[:0] if table.images else kept)
        row += len(kept)
        columns.append((*others,))  # type: ignore[arg-type]
    if table is None or row == 0:
        raise UserError(f"{source}: has no episodes; an empty dataset trains nothing")
    ends = np.cumsum([len(actions) for actions, _, _ in columns]) - 1
    terminated, truncated = np.zeros((2, row), bool)
    terminated[ends] = [ended for _, _, ended in columns]
    truncated[ends] = ~terminated[ends]
    given = [rewards for _, rewards, _ in columns if rewards is not None]
    rewarded = len(given) == len(columns)
    if len(table.leaves) > 1 or table.images:
        info = info | {"observation_space": to_json(table)}
    flat = from_flat(
        source,
        whole[:row] if table.images else end_to_end(seen),
        end_to_end([actions for actions, _, _ in columns]),
        end_to_end(given) if rewarded else np.zeros(row, np.float32),
        terminated,
        truncated,
        info if rewarded else info | WITHOUT,
    )
    return flat if rewarded else replace(flat, findings=(*flat.findings, NO_REWARDS))


def cut(offsets: np.ndarray) -> Iterator[slice]:
    """Rows of each episode."""
    return (slice(a, b) for a, b in pairwise(offsets.tolist()))
