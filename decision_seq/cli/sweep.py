"""`decision-seq sweep`."""

from __future__ import annotations

from pathlib import Path

from decision_seq.cli.arguments import Assignments, Config, OptionalFloat, OptionalInt
from decision_seq.errors import UserError


def sweep(
    config: Config,
    out: Path,
    assignments: Assignments = (),
    runner: str = "local",
    jobs: OptionalInt = None,
    gpus_per_cell: OptionalFloat = None,
) -> None:
    """Search for settings: train trials that Optuna proposes, judge them, and write a report.

    The same command continues an interrupted search, and with more trials a finished one.

    Args:
        config: YAML file, or the name of one that is shipped (`list configs`), such as
            sweep-hopper.
        out: folder for the runs, Optuna's journal and the report (report.html, .md, .csv, .json).
        runner: local (processes of this machine) or ray (the cluster of RAY_ADDRESS, or one here).
        jobs: runs at once, at most the config's `batch`.
        gpus_per_cell: share of a GPU that a run takes, e.g. 0.25.
    """
    from decision_seq.api import sweeps
    from decision_seq.cli.output import print_result

    done = sweeps.sweep(config, out, assignments, runner, jobs, gpus_per_cell)
    print_result(done)
    if done.files:
        print(f"report: {done.files[0]}")
    if done.best is None:
        raise UserError(f"all {len(done.trials)} trials failed: {', '.join(done.failed)}")
