"""HDF5 files: whose layout one has is asked of each in turn, D4RL's last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from decision_seq.data.episodes import Episodes
from decision_seq.data.sources import d3rlpy_dump, d4rl, robomimic
from decision_seq.errors import UserError

LAYOUTS: tuple[tuple[Callable[[Any], bool], Callable[[Path, Any], Episodes]], ...] = (
    (robomimic.recognised, robomimic.read),
    (d3rlpy_dump.recognised, d3rlpy_dump.read),
)


def read(path: Path) -> Episodes:
    """Read one file. Raises UserError for a broken file or one of no known layout."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            for recognised, reader in LAYOUTS:
                if recognised(file):
                    return reader(path, file)
    except UserError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read as HDF5 ({' '.join(str(error).split())}); the file may be "
            "cut off"
        ) from None
    return d4rl.read(path)
