"""JSON lines, one step a line, or one episode a line.

    {"episode": 0, "step": 0, "observation": [0.1, 0.2], "action": [0.5], "reward": 1.0,
     "terminated": false, "truncated": false}
    {"observations": [[0.1, 0.2], ...], "actions": [[0.5], ...], "rewards": [1.0, ...],
     "terminated": false}

Lines of one episode stand together. `reward`, `step` and `truncated` may be missing: an episode
that ends without being terminated was truncated. Keys may have the other names of `NAMES`, or, of
whole episodes, those of keys.py. Other keys are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes
from decision_seq.data.sources.compressed import DAMAGED, opened
from decision_seq.data.sources.episode_list import gather
from decision_seq.data.sources.keys import NO_REWARDS, WITHOUT, names_in
from decision_seq.errors import UserError

STEP = ("episode", "observation", "action")
NAMES = {  # of a step's keys: ours, theirs
    "observation": ("observation", "obs", "state"),
    "action": ("action", "act"),
    "reward": ("reward", "rewards"),
    "terminated": ("terminated", "terminal", "done"),
    "truncated": ("truncated", "timeout"),
    "episode": ("episode", "episode_id", "episode_index"),
    "step": ("step", "step_index", "timestep"),
}


def read(path: Path) -> Episodes:
    """Read one file, an episode at a time. Raises UserError with the line where one is wrong."""
    rewarded = True

    def episodes() -> Iterator[dict[str, Any]]:
        nonlocal rewarded
        seen = set()
        for number, rows in groupby(_lines(path), key=lambda line: _episode(path, *line)):
            if number is None:
                each = [row for _, row in rows]
            else:
                if number in seen:
                    raise UserError(
                        f"{path}: episode {number} comes back after another one; sort the lines by "
                        "episode and step"
                    )
                seen.add(number)
                each = [_gathered(path, list(rows))]
            for episode in each:
                if "rewards" not in episode:
                    rewarded = False
                    episode = {**episode, "rewards": np.zeros(len(episode["actions"]))}
                yield {"terminated": False, **episode}

    flat = gather(str(path), episodes(), {})
    if rewarded:
        return flat
    return replace(flat, info=flat.info | WITHOUT, findings=(*flat.findings, NO_REWARDS))


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with opened(path, encoding="utf-8-sig") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    row = json.loads(text)
                    if not isinstance(row, Mapping):
                        raise UserError(f"{path}: line {number} is no JSON object")
                    yield number, _named(row)
    except (*DAMAGED, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except ValueError as error:
        raise UserError(f"{path}: line {number} is not JSON ({error}); it may be cut off") from None


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row by our names."""
    if any(key in row for key in NAMES["episode"]):
        found = {ours: [n for n in theirs if n in row] for ours, theirs in NAMES.items()}
        return {ours: row[names[0]] for ours, names in found.items() if names}
    one = {ours: row[theirs] for ours, theirs in names_in(set(row)).items()}
    ends = {"terminations": "terminated", "dones": "terminated", "truncations": "truncated"}
    return dict(row) | {ends.get(key, key): value for key, value in one.items()}


def _episode(path: Path, number: int, row: Mapping[str, Any]) -> Any:
    """The number of the episode that a step is of; None of a whole episode."""
    if "observations" in row and "actions" in row:
        return None
    for key in STEP:
        if key not in row:
            raise UserError(
                f"{path}: line {number}: `{key}` is missing (found {', '.join(row)[:200]}); a step "
                "has episode, observation, action and, usually, reward, terminated, truncated"
            )
    return row["episode"]


def _gathered(path: Path, lines: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    """The steps of one episode as lists."""
    rows = [row for _, row in lines]
    steps = [row.get("step") for row in rows]
    for (number, _), before, step in zip(lines[1:], steps, steps[1:], strict=False):
        if before is not None and step is not None and step != before + 1:
            raise UserError(
                f"{path}: line {number}: `step` is {step} after {before}; the steps of an episode "
                "must rise by one"
            )
    episode: dict[str, Any] = {
        "observations": [row["observation"] for row in rows],
        "actions": [row["action"] for row in rows],
        "terminated": [row.get("terminated", False) for row in rows],
    }
    if all("truncated" in row for row in rows):
        episode["truncated"] = [row["truncated"] for row in rows]
    if all("reward" in row for row in rows):
        episode["rewards"] = [row["reward"] for row in rows]
    return episode
