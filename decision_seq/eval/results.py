"""Episode rows: the data that every reported score is made from, kept in the run folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from decision_seq.eval.rollout import Episode
from decision_seq.files import read_jsonl, write_text

Row = dict[str, Any]


def add_rows(run: Path, episodes: list[Episode], **protocol: Any) -> list[Row]:
    """Add one row an episode to `episodes.jsonl`; the same episode of the same protocol (step,
    context, target, seed) is replaced. `protocol` says how the rows came about."""
    new = [{"run": run.name} | asdict(e) | protocol for e in episodes]
    kept = {_key(row): row for row in read_rows(run)} | {_key(row): row for row in new}
    write_text(run / "episodes.jsonl", "".join(json.dumps(row) + "\n" for row in kept.values()))
    return new


def read_rows(run: Path) -> list[Row]:
    """All episode rows of a run."""
    return read_jsonl(run / "episodes.jsonl")


def _key(row: Row) -> tuple[Any, ...]:
    keys = ("checkpoint", "step", "context", "target", "env_seed")
    return tuple(row.get(key) for key in keys)
