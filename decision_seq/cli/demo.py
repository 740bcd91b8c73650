"""`decision-seq demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from decision_seq.cli.arguments import OptionalPath, Run


def demo(
    run: Run,
    out: Path,
    checkpoint: Literal["last", "validation"] = "last",
    packages: OptionalPath = None,
) -> None:
    """Make a page in which a browser simulates Hopper, Walker2d or HalfCheetah under a trained
    policy, with a slider for the return that is asked for.

    The folder is static and fetches nothing from elsewhere: any web server shows it. npm fetches
    MuJoCo's and ONNX Runtime's WebAssembly once, at pinned versions.

    Args:
        run: run folder.
        out: folder to make.
        checkpoint: the last, or the one with the lowest validation loss.
        packages: folder of the archives of both npm packages, for machines without npm or network.
    """
    from decision_seq.export.bundle import trained
    from decision_seq.export.demo import make_demo
    from decision_seq.shipped import run_at

    run = run_at(run)
    agent, config, origin = trained(run, checkpoint)
    size = make_demo(agent, config, out, origin, run, packages)
    print(f"{out}: made, {size:.1f} MB; python -m http.server --directory {out} shows it")
