"""Where episodes come from: one file per format, a registry, and how a name finds its format."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from decision_seq.data.episodes import Episodes
from decision_seq.data.sources import d4rl, minari_dataset, npz
from decision_seq.errors import UserError

FILE_READERS: dict[str, Callable[[Path], Episodes]] = {
    ".npz": npz.read,
    ".hdf5": d4rl.read,
    ".h5": d4rl.read,
}


@dataclass(frozen=True)
class Source:
    """A dataset that was found: `read()` it, or ask only for the `fingerprint()` of its bytes."""

    name: str
    read: Callable[[], Episodes]
    fingerprint: Callable[[], str]


def resolve(source: str) -> Source:
    """Find the reader for a file path or a Minari dataset id.

    Raises UserError if neither exists.
    """
    path = Path(source)
    reader = FILE_READERS.get(path.suffix.lower())
    if reader is not None:
        if not os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
            raise UserError(f"{source}: no such file; give a path to an existing {path.suffix}")
        return Source(path.stem, lambda: reader(path), lambda: _hash([path]))
    if minari_dataset.is_id(source):
        files = minari_dataset.files(source)
        return Source(source, lambda: minari_dataset.read(source), lambda: _hash(files))
    raise UserError(
        f"{source}: is not a dataset; give a {', '.join(FILE_READERS)} file or a Minari id "
        f"such as mujoco/hopper/medium-v0 ({minari_dataset.local_summary()})"
    )


def _hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()
