"""Checkpoints of a run: each a folder that appears whole or not at all, and an index over them.

checkpoints/index.json           {"last": {"step": 300, ...}, "validation": {...}}
checkpoints/step-00000300/       agent.safetensors (acts by itself), state.pt (to resume)
checkpoints/step-00000200/       agent.safetensors alone, where `train.keep_interval` keeps it
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from decision_seq.agents import SequenceAgent, save_agent
from decision_seq.errors import UserError
from decision_seq.files import atomic_folder, write_text

Which = Literal["last", "validation"]  # the latter has the lowest validation loss


def save_checkpoint(
    run: Path,
    step: int,
    agent: SequenceAgent,
    state: dict[str, Any],
    validation_loss: float | None,
    keep_interval: int = 0,
) -> None:
    """Write a checkpoint; keep the last one, the one with the lowest validation loss, and the
    weights of every `keep_interval` steps (0: of none). One written on interruption comes without
    a validation loss and is no candidate, so that an interruption changes no result."""
    folder = _folder(run, step)
    if folder.exists():  # left by a run that stopped between writing it and indexing it
        shutil.rmtree(folder)
    with atomic_folder(folder) as temporary:
        save_agent(agent, temporary / "agent.safetensors")
        data = io.BytesIO()  # torch's own writing says RuntimeError where the disk is full
        torch.save(state, data)
        (temporary / "state.pt").write_bytes(data.getbuffer())
    entry = {"step": step, "validation_loss": validation_loss}
    index = read_index(run) if has_checkpoint(run) else {}
    best = index.get("validation", entry)
    best_loss = best["validation_loss"]
    # where nothing is held out there is no better one than the last
    if best_loss is None or (validation_loss is not None and not best_loss <= validation_loss):
        best = entry
    index = {"last": entry, "validation": best}
    write_text(run / "checkpoints" / "index.json", json.dumps(index))
    kept = {_folder(run, e["step"]) for e in index.values()}
    for old in (run / "checkpoints").glob("step-*"):
        if old in kept:
            continue
        if keep_interval and _step(old) % keep_interval == 0:
            (old / "state.pt").unlink(missing_ok=True)
        else:
            shutil.rmtree(old, ignore_errors=True)


def has_checkpoint(run: Path) -> bool:
    """Whether the run folder holds at least one complete checkpoint."""
    return (run / "checkpoints" / "index.json").is_file()


def read_index(run: Path) -> dict[str, Any]:
    """`{"last": {"step", "validation_loss"}, "validation": ...}`. Raises UserError if there is
    none."""
    path = run / "checkpoints" / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if "best" in index:  # its name before rollouts could choose
            index["validation"] = index.pop("best")
        if all(type(index[which]["step"]) is int for which in ("last", "validation")):
            return index
        raise ValueError
    except FileNotFoundError:
        raise UserError(f"{run}: holds no trained run; train one with --out {run}") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is damaged; train the run again") from None


def agent_path(run: Path, which: Which = "last") -> Path:
    """The agent file of one of the two checkpoints."""
    return agent_at(run, read_index(run)[which]["step"])


def agent_at(run: Path, step: int) -> Path:
    """The agent file of the checkpoint at `step`."""
    return _folder(run, step) / "agent.safetensors"


def saved_steps(run: Path) -> list[int]:
    """Steps of all checkpoints whose weights are there, ascending. Raises UserError if there is no
    run."""
    last = read_index(run)["last"]["step"]
    files = (run / "checkpoints").glob("step-*/agent.safetensors")
    return sorted(step for step in (_step(file.parent) for file in files) if step <= last)


def load_state(run: Path) -> dict[str, Any]:
    """Training state of the last checkpoint. No code in the file can run."""
    path = _folder(run, read_index(run)["last"]["step"]) / "state.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        raise UserError(
            f"{path}: cannot be read, it may be cut off; train the run again in another folder"
        ) from None


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
