"""Checkpoints of a run: each a folder that appears whole or not at all, and an index over them."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from decision_seq.agents import SequenceAgent, save_agent
from decision_seq.errors import UserError
from decision_seq.files import atomic_folder, write_text
from decision_seq.run_config import RunConfig, check_same_run
from decision_seq.run_folder import (
    agent_at,
    checkpoint_folder,
    has_checkpoint,
    read_index,
    step_of,
)


def check_run_folder(config: RunConfig, out: Path, resume: bool) -> None:
    """Raise UserError if `out` holds another run, or one that nobody asked to resume."""
    if not has_checkpoint(out):
        return  # nothing there, or a run that stopped before anything was worth keeping
    if not resume:
        raise UserError(
            f"{out}: already holds a run; continue it with --resume, or choose another --out"
        )
    check_same_run(out, config)


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
    folder = checkpoint_folder(run, step)
    if folder.exists():  # left by a run that stopped between writing it and indexing it
        shutil.rmtree(folder)
    with atomic_folder(folder) as temporary:
        save_agent(agent, temporary / "agent.safetensors")
        data = io.BytesIO()  # torch's own writing says RuntimeError where the disk is full
        torch.save(_alone(state), data)
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
    kept = {checkpoint_folder(run, e["step"]) for e in index.values()}
    for old in (run / "checkpoints").glob("step-*"):
        if old in kept:
            continue
        if keep_interval and step_of(old) % keep_interval == 0:
            (old / "state.pt").unlink(missing_ok=True)
        else:
            shutil.rmtree(old, ignore_errors=True)


def mend_weights(run: Path, agent: SequenceAgent) -> None:
    """Write the last checkpoint's weights again if they cannot be read; `agent` has them, from the
    training state beside them."""
    path = agent_at(run, read_index(run)["last"]["step"])
    try:
        with safe_open(path, "pt"):
            return
    except (OSError, SafetensorError):
        save_agent(agent, path)


def _alone(value: Any) -> Any:
    """Views, as stacked seeds have, would be written with all that they are views of."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
    if isinstance(value, dict):
        return {key: _alone(part) for key, part in value.items()}
    return [_alone(part) for part in value] if isinstance(value, list) else value


def load_state(run: Path) -> dict[str, Any]:
    """Training state of the last checkpoint. No code in the file can run."""
    path = checkpoint_folder(run, read_index(run)["last"]["step"]) / "state.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        raise UserError(
            f"{path}: cannot be read, it may be cut off; train the run again in another folder"
        ) from None
