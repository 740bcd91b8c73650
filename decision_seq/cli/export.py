"""`decision-seq export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from decision_seq.cli.arguments import Context, OptionalFloat, OptionalStr, Run


def export(
    run: Run,
    to: Literal["onnx", "torch", "c"],
    out: Path,
    context: Context = None,
    target_return: OptionalFloat = None,
    checkpoint: Literal["last", "validation"] = "last",
    env: OptionalStr = None,
) -> None:
    """Write a trained agent's policy as a folder that needs none of this package.

    What is left out is taken from the run's config. The folder also holds policy.json, which says
    what goes in and comes out, and check.npz, 200 steps of real episodes. They are replayed through
    what was written: a difference above 1e-4 is refused.

    Args:
        run: run folder.
        to: onnx, for onnxruntime on any machine and in browsers; torch, a program for PyTorch
            alone; c, sources and weights for a C compiler alone.
        out: folder to make.
        context: window recomputes the last K steps; stream carries state at constant cost.
        target_return: return to ask for where the caller names none, in the environment's units.
        checkpoint: the last, or the one with the lowest validation loss.
        env: another environment, version or arguments, whose actions are clipped to its bounds.
    """
    from decision_seq.export.bundle import export_policy, trained
    from decision_seq.shipped import run_at

    run = run_at(run)
    agent, config, origin = trained(run, checkpoint, env)
    made = export_policy(agent, config, to, out, context, target_return, origin, run)
    if made.difference is not None:
        print(f"{out}: 200 steps replayed; largest difference {made.difference:.2g}")
    for note in made.notes:
        print(f"{out}: {note}")
