"""LeRobot's folders, versions 2.0 to 3.0: meta/info.json and Parquet files under data/.

Every feature `observation...` that holds numbers is a part of the observation, `action` the action;
`next.reward` and `next.done` may be missing. Cameras are videos beside these files, which are not
decoded: they are named among what is left out. Episodes are whole in no file of version 3 but
rows stand in order; an episode that is not done was cut off.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes
from decision_seq.data.findings import Finding
from decision_seq.data.sources.parts import Part, put_together
from decision_seq.errors import UserError

INFO = Path("meta") / "info.json"
PICTURES = ("video", "image")


def recognised(folder: Path) -> bool:
    """Whether a folder is a LeRobot dataset."""
    return (folder / INFO).is_file()


def files(folder: Path) -> list[Path]:
    """What its rows depend on."""
    return [folder / INFO, *sorted((folder / "data").rglob("*.parquet"))]


def read(folder: Path) -> Episodes:
    """Read a folder, a file at a time. Raises UserError where it lacks something, or pyarrow is not
    installed."""
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        features: dict[str, Any] = dict(info["features"])
        kinds = {name: str(feature["dtype"]) for name, feature in features.items()}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder / INFO}: is missing or damaged; fetch the dataset again"
        ) from None
    seen = [n for n in kinds if n.startswith("observation") and kinds[n] not in PICTURES]
    seen = [name for name in seen if kinds[name].startswith(("float", "int", "bool"))]
    cameras = [name for name in kinds if kinds[name] in PICTURES]
    if not seen or "action" not in kinds:
        only = f"; its cameras ({', '.join(cameras)}) are videos, which are not decoded"
        raise UserError(f"{folder}: has no numbers `observation...` and `action`{only}")
    steps = int(info.get("total_frames", 0)) or 1
    kept = put_together(str(folder), _episodes(folder, seen, kinds), steps, {})
    if not cameras:
        return kept
    finding = Finding(
        "warning", "videos", len(cameras),
        f"its cameras ({', '.join(cameras)}) are videos, which are not decoded",
        f"train on the numbers alone with data.leave_out: [{', '.join(cameras)}]",
    )  # fmt: skip
    left = {"left_out": cameras}
    return dataclasses.replace(kept, info=kept.info | left, findings=(*kept.findings, finding))


def _episodes(folder: Path, seen: list[str], kinds: dict[str, str]) -> Iterator[Part]:
    """Episodes in the order of their rows."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(
            f"{folder}: reading Parquet needs pyarrow; pip install 'decision-seq[parquet]'"
        ) from None
    optional = [name for name in ("next.reward", "next.done") if name in kinds]
    columns = [*seen, "action", "episode_index", *optional]
    held: dict[str, np.ndarray] = {}  # the rows of an episode that may go on in the next file
    for path in files(folder)[1:]:
        try:
            table = parquet.read_table(path, columns=columns)
            new = {name: _numbers(table[name]) for name in columns}
        except (ArrowException, OSError, ValueError, KeyError) as error:
            said = " ".join(str(error).split())
            raise UserError(f"{path}: cannot be read as Parquet ({said})") from None
        rows = {n: np.concatenate([held[n], a]) for n, a in new.items()} if held else new
        number = rows["episode_index"].reshape(-1)
        firsts = [0, *(np.flatnonzero(np.diff(number)) + 1), len(number)]
        for start, stop in pairwise(firsts[:-1]):
            yield _part({n: a[start:stop] for n, a in rows.items()}, seen)
        held = {name: array[firsts[-2] :] for name, array in rows.items()}
    if held and len(held["action"]):
        yield _part(held, seen)


def _part(rows: dict[str, np.ndarray], seen: list[str]) -> Part:
    parts = {name.removeprefix("observation.") or name: rows[name] for name in seen}
    rewards = rows["next.reward"].reshape(-1) if "next.reward" in rows else None
    done = "next.done" in rows and bool(rows["next.done"].reshape(-1)[-1])
    return parts, rows["action"], rewards, done


def _numbers(column: Any) -> np.ndarray:
    """A column [N] or, of lists, [N, W]."""
    array = column.combine_chunks()
    shape = []
    while hasattr(array.type, "value_type"):
        shape.append(array)
        array = array.flatten()
    values = array.to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1) if shape else values
