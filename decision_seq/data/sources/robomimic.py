"""robomimic's HDF5 files (arXiv:2108.03298): data/demo_0/{actions, rewards, dones, obs/...}.

Everything under `obs` is a part of the observation, pictures too; `states`, `next_obs` and masks
are ignored. Demonstrations end by themselves or are cut off, which `dones` do not tell: they count
as truncated. `env_args` names a robosuite environment, which is not one of gymnasium's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes
from decision_seq.data.sources.parts import Part, put_together
from decision_seq.errors import UserError


def recognised(file: Any) -> bool:
    """Whether an open HDF5 file is robomimic's."""
    return hasattr(file.get("data"), "keys") and any(k.startswith("demo") for k in file["data"])


def read(path: Path, file: Any) -> Episodes:
    """Read an open file, a demonstration at a time. Raises UserError where it lacks something."""
    data = file["data"]
    demos = sorted(data, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    for name in demos:
        if "actions" not in data[name] or "obs" not in data[name] or not len(data[name]["obs"]):
            raise UserError(
                f"{path}: {name} lacks `actions` or `obs` (found {', '.join(data[name])}); let "
                "robomimic's dataset_states_to_obs.py add observations"
            )

    def demonstrations() -> Iterator[Part]:
        for name in demos:
            demo = data[name]
            parts: dict[str, np.ndarray] = {}
            demo["obs"].visititems(
                lambda key, item, parts=parts: parts.update(
                    {key.replace("/", "."): item[()]} if hasattr(item, "shape") else {}
                )
            )
            rewards = demo["rewards"][()] if "rewards" in demo else None
            yield parts, demo["actions"][()], rewards, False

    steps = sum(len(data[name]["actions"]) for name in demos)
    return put_together(str(path), demonstrations(), steps, {})
