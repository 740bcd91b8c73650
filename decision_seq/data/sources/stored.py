"""Datasets in our own layout: what `data import` made and a name stands for, or a folder of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes
from decision_seq.data.finals import FINALS, fits
from decision_seq.data.findings import from_plain
from decision_seq.errors import UserError
from decision_seq.files import cache_dir, in_home

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
COLUMNS = ("observations", "actions", "rewards", "terminated", "truncated", "offsets")


def library() -> Path:
    """Where imported datasets live: DECISION_SEQ_DATA, else a folder of the cache."""
    explicit = os.environ.get("DECISION_SEQ_DATA")
    return in_home(explicit, "DECISION_SEQ_DATA") if explicit else cache_dir() / "library"


def find(name: str) -> Path | None:
    """The folder of an imported dataset, or None."""
    if NAME.fullmatch(name) is None:
        return None
    folder = library() / name
    return folder if is_stored(folder) else None


def names() -> list[str]:
    """The imported datasets."""
    root = library()
    return sorted(p.name for p in root.iterdir() if find(p.name)) if root.is_dir() else []


def is_stored(folder: Path) -> bool:
    """Whether a folder is a dataset in our layout."""
    return (folder / "meta.json").is_file() and (folder / "offsets.npy").is_file()


def read_meta(folder: Path) -> dict[str, Any]:
    """hash, info, episodes_per_source... of a stored dataset. Raises UserError if damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        str(meta["hash"]), dict(meta["info"]), list(meta["episodes_per_source"])
        return meta
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder / 'meta.json'}: is damaged; delete the folder and import or run again"
        ) from None


def load_arrays(folder: Path, names: tuple[str, ...], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays of a stored dataset, memory-mapped copy-on-write, and its final observations where
    meta.json has a checksum of them. Raises UserError if damaged."""
    try:
        # mode "c": nothing is written back, and torch accepts the arrays without a warning
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in names}
        steps = len(arrays["rewards"])
        if any(len(a) != steps for name, a in arrays.items() if name != "offsets"):
            raise ValueError
        if arrays["offsets"][-1] != steps:
            raise ValueError
        if "finals_hash" in meta:
            arrays[FINALS] = np.load(folder / f"{FINALS}.npy", mmap_mode="c")
            if not fits(arrays[FINALS], arrays["observations"], len(arrays["offsets"]) - 1):
                raise ValueError
        return arrays
    except (OSError, ValueError, KeyError, EOFError, IndexError, TypeError):
        raise UserError(
            f"{folder}: this stored copy of a dataset is damaged; delete this folder and run or "
            "import again"
        ) from None


def read(folder: Path) -> Episodes:
    """The episodes of a stored dataset."""
    meta = read_meta(folder)
    arrays = load_arrays(folder, COLUMNS, meta)
    kept = recorded(folder, meta, len(arrays["offsets"]) - 1)
    return Episodes(**arrays, info=meta["info"], **kept)


def recorded(folder: Path, meta: Mapping[str, Any], episodes: int) -> dict[str, Any]:
    """`incomplete`, `seeds` and `findings` of so many episodes, empty in datasets from before they
    were kept.

    Raises UserError if damaged."""
    try:
        incomplete = tuple(
            map(int, meta.get("incomplete", meta.get("unended", ())))
        )  # its old name
        seeds = tuple(map(int, meta.get("seeds", ())))
        if len(seeds) not in (0, episodes) or min(seeds, default=0) < 0:
            raise ValueError
        if not all(0 <= m < episodes for m in incomplete):
            raise ValueError
        findings = tuple(map(from_plain, meta.get("findings", ())))
        return {"incomplete": incomplete, "seeds": seeds, "findings": findings}
    except (ValueError, TypeError, OverflowError, KeyError):
        raise UserError(
            f"{folder / 'meta.json'}: is damaged; delete the folder and import or run again"
        ) from None
