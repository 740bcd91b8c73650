"""LeRobot datasets, version 2.0 to 3.0 of their layout: a folder with meta/info.json, Parquet files
under data/ whose columns `features` describes, and videos of cameras under videos/.

    my-robot                                    all numbers `observation...` side by side
    my-robot?cameras=all&height=96&width=128    and what the cameras saw, in pixels of that size
    my-robot?cameras=observation.images.top     one of them, as large as it is

Cameras that are not asked for are named and have to be left out. Rewards are often missing.
Version 2 has a file an episode; of version 3 one may go on in the next, but rows and frames stand
in order. An episode that is not done was cut off.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.config import build
from decision_seq.data.episodes import Episodes
from decision_seq.data.findings import Finding
from decision_seq.data.sources.parts import Part, put_together
from decision_seq.data.sources.robot_videos import Film, pictures, videos
from decision_seq.envs.identity import arguments_in
from decision_seq.errors import UserError
from decision_seq.files import hash_files

INFO = Path("meta") / "info.json"
PICTURES = ("video", "image")


@dataclass(frozen=True)
class Choice:
    """Which cameras, and how large."""

    cameras: str = ""  # names with commas, or all
    height: int | None = None  # pixels; with `width`
    width: int | None = None

    def __post_init__(self) -> None:
        if (self.height is None) != (self.width is None) or (self.height or 1) < 1:
            raise UserError("height and width go together, both of 1 or more")

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width), or None for what it is."""
        return (self.height, self.width) if self.height and self.width else None


@dataclass(frozen=True)
class Robot:
    """A folder, and what to take of it."""

    folder: Path
    choice: Choice

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.resolve().name

    def rows(self) -> list[Path]:
        """The Parquet files, in order."""
        return sorted((self.folder / "data").rglob("*.parquet"))

    def fingerprint(self) -> str:
        """Of the rows, and of the videos that are read."""
        films = [f for c in self.chosen(self.features()) for f in videos(self.folder, c)]
        labels = [repr(self.choice)] if self.choice.cameras else []
        return hash_files([self.folder / INFO, *self.rows(), *films], labels)

    def features(self) -> dict[str, str]:
        """Types by name. Raises UserError where info.json is missing or damaged."""
        return {name: str(feature["dtype"]) for name, feature in self._info()["features"].items()}

    def _info(self) -> dict[str, Any]:
        try:
            info = json.loads((self.folder / INFO).read_text(encoding="utf-8"))
            if not all("dtype" in feature for feature in dict(info["features"]).values()):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.folder / INFO}: is missing or damaged; fetch the dataset again"
            ) from None
        return info

    def chosen(self, kinds: dict[str, str]) -> list[str]:
        """Cameras to read. Raises UserError for one that there is not."""
        there = [name for name in kinds if kinds[name] in PICTURES]
        asked = self.choice.cameras
        names = there if asked == "all" else [name for name in asked.split(",") if name]
        if unknown := [name for name in names if name not in there]:
            raise UserError(
                f"{self.folder}: has no camera {unknown[0]!r} (there are: "
                f"{', '.join(there) or 'none'})"
            )
        return names

    def read(self) -> Episodes:
        """All episodes, a file at a time. Raises UserError where the folder lacks something, or a
        package is missing."""
        kinds = self.features()
        chosen = self.chosen(kinds)
        numbers = [name for name in kinds if name.startswith("observation")]
        numbers = [n for n in numbers if kinds[n].startswith(("float", "int", "bool"))]
        left = [name for name in kinds if kinds[name] in PICTURES and name not in chosen]
        if not (numbers or chosen) or "action" not in kinds:
            only = f"; read its cameras ({', '.join(left)}) by `{self.name}?cameras=all`"
            raise UserError(
                f"{self.folder}: has no numbers `observation...` and `action`{only if left else ''}"
            )
        steps = int(self._info().get("total_frames", 0)) or 1
        kept = put_together(str(self.folder), _episodes(self, numbers, chosen, kinds), steps, {})
        if not left:
            return kept
        finding = Finding(
            "warning", "videos", len(left),
            f"its cameras ({', '.join(left)}) are not read",
            f"name the source `{self.name}?cameras=all&height=96&width=128` to read them, or train "
            f"on the numbers alone with data.leave_out: [{', '.join(left)}]",
        )  # fmt: skip
        info = kept.info | {"left_out": left}
        return dataclasses.replace(kept, info=info, findings=(*kept.findings, finding))


def find(source: str) -> Robot | None:
    """The dataset that `folder` or `folder?cameras=...` names, or None if it names none."""
    path, _, query = source.partition("?")
    if not os.path.isfile(Path(path) / INFO):
        return None
    return Robot(Path(path), build(Choice, arguments_in(query, source), source))


def _episodes(
    robot: Robot, numbers: list[str], cameras: list[str], kinds: dict[str, str]
) -> Iterator[Part]:
    """Episodes in the order of their rows."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(
            f"{robot.folder}: reading Parquet needs pyarrow; pip install 'decision-seq[parquet]'"
        ) from None
    size = robot.choice.size
    optional = [name for name in ("next.reward", "next.done") if name in kinds]
    columns = [*numbers, "action", "episode_index", *optional]
    inside = [name for name in cameras if kinds[name] == "image"]
    films = {n: Film(robot.folder, n, size) for n in cameras if kinds[n] == "video"}
    held: dict[str, np.ndarray] = {}  # the rows of an episode that may go on in the next file

    def part(rows: dict[str, np.ndarray]) -> Part:
        place = f"{robot.folder}: episode {rows['episode_index'].reshape(-1)[0]}"
        steps = len(rows["episode_index"])
        seen = {name: rows[name] for name in (*numbers, *inside)}
        seen |= {name: film.take(steps, place) for name, film in films.items()}
        seen = {name.removeprefix("observation.") or name: one for name, one in seen.items()}
        rewards = rows["next.reward"].reshape(-1) if "next.reward" in rows else None
        done = "next.done" in rows and bool(rows["next.done"].reshape(-1)[-1])
        return seen, rows["action"], rewards, done

    for path in robot.rows():
        try:
            table = parquet.read_table(path, columns=[*columns, *inside])
            new = {name: _numbers(table[name]) for name in columns}
        except (ArrowException, OSError, ValueError, KeyError) as error:
            said = " ".join(str(error).split())
            raise UserError(f"{path}: cannot be read as Parquet ({said})") from None
        new |= {name: pictures(table[name], str(path), size) for name in inside}
        rows = {n: np.concatenate([held[n], a]) for n, a in new.items()} if held else new
        number = rows["episode_index"].reshape(-1)
        firsts = [0, *(np.flatnonzero(np.diff(number)) + 1), len(number)]
        for start, stop in pairwise(firsts[:-1]):
            yield part({n: a[start:stop] for n, a in rows.items()})
        held = {name: array[firsts[-2] :] for name, array in rows.items()}
    if held and len(held["action"]):
        yield part(held)
    for film in films.values():
        film.close()


def _numbers(column: Any) -> np.ndarray:
    """A column [N] or, of lists, [N, W]."""
    array = column.combine_chunks()
    shape = []
    while hasattr(array.type, "value_type"):
        shape.append(array)
        array = array.flatten()
    values = array.to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1) if shape else values
