"""`.npz` files: observations, actions, rewards, terminations, truncations, one row a step.

Optional: `meta`, a JSON text (env_id, ref_min, ref_max are used). Other keys are ignored.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes, from_flat
from decision_seq.errors import UserError

KEYS = ("observations", "actions", "rewards", "terminations", "truncations")


def read(path: Path) -> Episodes:
    """Read one file. Raises UserError for a broken file or a missing key. Pickles are refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := [key for key in KEYS if key not in file.files]:
                raise UserError(
                    f"{path}: key `{missing[0]}` is missing (found {', '.join(file.files)}); "
                    f"a dataset needs {', '.join(KEYS)}"
                )
            observations, actions, rewards, terminated, truncated = (file[key] for key in KEYS)
            meta = str(file["meta"]) if "meta" in file.files else "{}"
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        AttributeError,
        KeyError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(
            f"{path}: cannot be read as .npz ({' '.join(str(error).split())}); the file may be "
            "cut off or not be a numpy archive"
        ) from None
    return from_flat(
        str(path), observations, actions, rewards, terminated, truncated, _info(path, meta)
    )


def _info(path: Path, meta: str) -> dict[str, Any]:
    try:
        data = json.loads(meta)
        names = {"env_id": "env_id", "ref_min": "ref_min_score", "ref_max": "ref_max_score"}
        info = {ours: data[theirs] for theirs, ours in names.items() if theirs in data}
        if not isinstance(info.get("env_id", ""), str):
            raise TypeError
        return info | {
            key: float(info[key]) for key in ("ref_min_score", "ref_max_score") if key in info
        }
    except (ValueError, TypeError):
        raise UserError(
            f"{path}: `meta` is not a JSON object with a text `env_id` and numbers "
            "`ref_min`, `ref_max`; write it with json.dumps"
        ) from None
