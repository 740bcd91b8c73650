"""Where a run folder keeps its trained agents.

checkpoints/index.json           {"last": {"step": 300, ...}, "validation": {...}}
checkpoints/step-00000300/       agent.safetensors (acts by itself), state.pt (to resume)
checkpoints/step-00000200/       agent.safetensors alone, where `train.keep_interval` keeps it

A folder made to be shared has one agent, at its top: agent.safetensors; policy.json says its step.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from decision_seq.errors import UserError
from decision_seq.files import safetensors_parts

Which = Literal["last", "validation"]  # the latter has the lowest validation loss
SHARED, SHARED_INDEX = "agent.safetensors", "policy.json"
TRIAL = "trial.json"  # what a sweep tried here: {"parameters": {key: value}, "objective": ...}


def has_checkpoint(run: Path) -> bool:
    """Whether the run folder holds at least one complete checkpoint."""
    return (run / "checkpoints" / "index.json").is_file()


def read_index(run: Path) -> dict[str, Any]:
    """`{"last": {"step", "validation_loss"}, "validation": ...}`. Raises UserError if there is
    none."""
    shared = (run / SHARED).is_file()
    path = run / SHARED_INDEX if shared else run / "checkpoints" / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if shared:
            index = {which: {"step": index["step"]} for which in ("last", "validation")}
        if "best" in index:  # its name before rollouts could choose
            index["validation"] = index.pop("best")
        if all(type(index[which]["step"]) is int for which in ("last", "validation")):
            return index
        raise ValueError
    except FileNotFoundError:
        raise UserError(f"{run}: holds no trained run; train one with --out {run}") from None
    except NotADirectoryError:
        raise UserError(f"{run}: is a file; give the folder of a run") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is damaged; train the run again") from None


def agent_path(run: Path, which: Which = "last") -> Path:
    """The agent file of one of the two checkpoints."""
    return agent_at(run, read_index(run)[which]["step"])


def agent_at(run: Path, step: int) -> Path:
    """The agent file of the checkpoint at `step`."""
    shared = run / SHARED
    return shared if shared.is_file() else checkpoint_folder(run, step) / "agent.safetensors"


def agent_hash(run: Path, step: int) -> str | None:
    """16 hexadecimal digits of the agent of the checkpoint at `step`: two trainings in one folder
    give different ones. None if there is no such file, or it is damaged."""
    try:
        header, tensors = safetensors_parts(agent_at(run, step).read_bytes())
    except (OSError, ValueError):
        return None
    # sorted: older files have it in any order
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(tensors)
    return digest.hexdigest()[:16]


def saved_steps(run: Path) -> list[int]:
    """Steps of all checkpoints whose weights are there, ascending. Raises UserError if there is no
    run."""
    last = read_index(run)["last"]["step"]
    if (run / SHARED).is_file():
        return [last]
    files = (run / "checkpoints").glob("step-*/agent.safetensors")
    return sorted(step for step in (step_of(file.parent) for file in files) if step <= last)


def read_trial(run: Path) -> dict[str, Any] | None:
    """What a sweep tried here; None if it was none. Raises UserError if the file is damaged."""
    try:
        trial = json.loads((run / TRIAL).read_text(encoding="utf-8"))
        dict(trial["parameters"]), str(trial["objective"])
        return trial
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{run / TRIAL}: is damaged; the same sweep writes it again") from None


def checkpoint_folder(run: Path, step: int) -> Path:
    """The checkpoint at `step`."""
    return run / "checkpoints" / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The inverse."""
    return int(folder.name.removeprefix("step-"))
