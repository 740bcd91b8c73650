"""Batches whose loss or gradient is not finite: skipped up to a number, then a stop that says why.

Judging is done with tensors on the training device, so a GPU is not waited for: the optimiser is
given a flag and leaves the weights alone where it is set. Once more batches are bad than are
allowed, every later step is a no-op too, so that the weights are still those of the bad batch when
the loop looks at the flag: after every step on a CPU, with each log row or checkpoint on a GPU.

OUT/nonfinite/step-00000123/ then holds what is needed to see it again: agent.safetensors (the
weights), batch.npz (the batch as the agent got it), fault.json (step, loss, norm, windows).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decision_seq.agents import SequenceAgent, load_agent, save_agent
from decision_seq.data.streams import Sampler
from decision_seq.data.windows import Batch
from decision_seq.errors import UserError
from decision_seq.files import atomic_folder
from decision_seq.run_config import RunConfig
from decision_seq.training.optim import autocast

SHOWN = 5  # windows named in the sentence; the file has all


class FiniteGuard:
    """Counts bad batches on `device` and tells the optimiser to leave them out.

    Args:
        allowed: bad batches that are skipped before training stops.
        device: of the training.
    """

    def __init__(self, allowed: int, device: torch.device) -> None:
        self.allowed = allowed
        self.skipped = torch.zeros((), device=device)  # bad batches so far, the fatal one included
        self.fatal_step = torch.full((), -1.0, dtype=torch.float64, device=device)

    def judge(
        self, step: int | torch.Tensor, loss: torch.Tensor, norm: torch.Tensor
    ) -> torch.Tensor:
        """1.0 where batch number `step` must not change the weights, else 0.0; [] float32. All may
        be [S], as the counts then are, for seeds that are trained at once."""
        halted = self.skipped > self.allowed
        bad = ~torch.isfinite(loss.detach() + norm.detach())
        self.skipped += bad & ~halted
        now = (self.skipped > self.allowed) & ~halted
        self.fatal_step += (step - self.fatal_step) * now
        return (bad | halted).float()

    def scalars(self) -> dict[str, float]:
        """For the log: the number of skipped batches, once there are any."""
        skipped = float(self.skipped)
        return {"skipped_batches": skipped} if skipped else {}

    def tripped(self) -> int | None:
        """Number of the batch that exceeded what is allowed, or None. Waits for the device."""
        step = int(self.fatal_step)
        return None if step < 0 else step


def stop_for_fault(
    step: int,
    agent: SequenceAgent,
    sampler: Sampler,
    config: RunConfig,
    out: Path,
    skipped: int,
) -> None:
    """Raise UserError for batch number `step`, after saving what shows it again.

    Args:
        step: gradient step, counted from 0.
        agent: with the weights that met the batch.
        sampler: what drew it.
        config: the run.
        out: its folder.
        skipped: bad batches before it.
    """
    size = config.train.batch_size
    batch, places = sampler.batch(step, size), sampler.places(step, size)
    loss, norm = loss_and_norm(agent, batch, config.train.precision)
    fault = {
        "step": step,
        "loss": str(loss),
        "gradient_norm": str(norm),
        "precision": config.train.precision,
        "why": _why(agent, batch, config.train.precision),
        "skipped_before": skipped,
        "windows": [{"episode": m, "step": t} for m, t in places],
    }
    folder = out / "nonfinite" / f"step-{step:08d}"
    if not folder.exists():  # a second try of the same run meets the same batch
        with atomic_folder(folder) as temporary:
            save_agent(agent, temporary / "agent.safetensors")
            arrays = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
            np.savez(temporary / "batch.npz", **{n: t.cpu().numpy() for n, t in arrays.items()})
            (temporary / "fault.json").write_text(json.dumps(fault), encoding="utf-8")
    shown = ", ".join(f"{m}:{t}" for m, t in places[:SHOWN])
    more = ", ..." if len(places) > SHOWN else ""
    before = f" after {skipped} skipped batches" if skipped else ""
    raise UserError(
        f"{out}: the loss is {loss} and the gradient norm {norm} at step {step}{before}: "
        f"{fault['why']}; windows (episode:step) {shown}{more}; weights and batch are saved in "
        f"{folder}; check the data with `decision-seq data check`; --resume goes on if "
        f"train.skip_nonfinite (now {config.train.skip_nonfinite}) lets such batches pass; a lower "
        f"train.learning_rate (now {config.train.learning_rate}) is another run: choose another "
        "--out"
    )


def reproduce(folder: str | Path) -> tuple[float, float]:
    """Loss and gradient norm of a saved fault, computed again (without dropout)."""
    folder = Path(folder)
    agent = load_agent(folder / "agent.safetensors")
    with np.load(folder / "batch.npz", allow_pickle=False) as file:
        fields = {name: torch.from_numpy(file[name]) for name in file.files}
    fields.setdefault("episode_returns", fields["returns_to_go"][:, 0])  # of before these were kept
    batch = Batch(**fields)
    fault = json.loads((folder / "fault.json").read_text(encoding="utf-8"))
    return loss_and_norm(agent, batch, fault["precision"])


def loss_and_norm(agent: SequenceAgent, batch: Batch, precision: str) -> tuple[float, float]:
    """Of one batch, without dropout; weights and gradients are left as they were."""
    agent.eval()
    with autocast(agent.device, precision):
        loss = agent.loss(batch)
    parameters = [p for p in agent.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    norms = [torch.linalg.vector_norm(g) for g in gradients if g is not None]
    return float(loss.detach()), float(torch.linalg.vector_norm(torch.stack(norms)))


def _why(agent: SequenceAgent, batch: Batch, precision: str) -> str:
    """The first of: weights, inputs, single windows, bfloat16's rounding, the sum."""
    for name, tensor in agent.state_dict().items():
        if not torch.isfinite(tensor).all():
            return f"the weights hold NaN or infinity already, first {name}"
    fields: dict[str, Any] = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    for name, tensor in fields.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return f"the batch's {name} hold NaN or infinity"
    if precision == "bfloat16":
        loss, norm = loss_and_norm(agent, batch, "float32")
        if np.isfinite([loss, norm]).all():
            return (
                f"bfloat16 overflows, in float32 the loss of the same batch is {loss:.4g}: use "
                "train.precision float32"
            )
    bad = []
    for i in range(len(batch.mask)):
        single = Batch(**{name: tensor[i : i + 1] for name, tensor in fields.items()})
        if not np.isfinite(loss_and_norm(agent, single, precision)).all():
            bad.append(i)
    if bad:
        return (
            f"{len(bad)} of {len(batch.mask)} windows give it by themselves, first number {bad[0]}"
        )
    return "no single window gives it; values are too large to sum, or dropout took part"
