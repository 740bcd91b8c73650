"""`decision-seq train`."""

from __future__ import annotations

import sys
from pathlib import Path

from tyro.conf import FlagCreatePairsOff

from decision_seq.cli.arguments import Assignments, Config, Device, Seeds


def train(
    config: Config,
    out: Path,
    assignments: Assignments = (),
    resume: FlagCreatePairsOff[bool] = False,
    device: Device = "auto",
    seeds: Seeds = (),
) -> None:
    """Train an agent. Ctrl-C saves and stops; --resume goes on from there.

    Args:
        config: YAML file, or the name of one that is shipped (`list configs`), such as
            hopper-decision-mamba.
        out: run folder to make.
        resume: continue the run in `out`, if there is one.
        seeds: train all of these as one, for a GPU; into run folders OUT/seed0, OUT/seed1, ..., or
            OUT itself with the seed in place of {seed}.
    """
    from decision_seq.api import runs
    from decision_seq.training.distributed import is_rank_zero

    done = runs.train(config, out, assignments, resume, device, seeds)
    if is_rank_zero() and done.finished:
        where = "" if done.runs[0].config.env else " --env ENVIRONMENT (the run names none)"
        print(f"{out}: trained; next: decision-seq evaluate {done.folder}{where}")
    elif is_rank_zero():
        print(f"{out}: stopped and saved; the same command with --resume goes on")
    if not done.finished:
        sys.exit(130)
