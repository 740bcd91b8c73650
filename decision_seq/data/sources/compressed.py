"""Files that may be packed by gzip, as `log.csv.gz` is."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any, TextIO

DAMAGED = (OSError, EOFError, zlib.error)  # what reading one that is cut off raises


def unpacked(path: Path) -> Path:
    """What the file is called without its `.gz`."""
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def opened(path: Path, **options: Any) -> TextIO:
    """A text file for reading; `options` as of `open`. Raises one of `DAMAGED`, here or later."""
    if unpacked(path) == path:
        return path.open("r", **options)
    return gzip.open(path, "rt", **options)


def content(path: Path) -> bytes:
    """All of a file. Raises one of `DAMAGED`."""
    packed = path.read_bytes()
    return packed if unpacked(path) == path else gzip.decompress(packed)
