"""`decision-seq compare` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from decision_seq.cli.arguments import Assignments, Config, OptionalFloat, OptionalInt, OptionalStr
from decision_seq.errors import UserError


def compare(
    config: Config,
    out: Path,
    assignments: Assignments = (),
    runner: str = "local",
    jobs: OptionalInt = None,
    gpus_per_cell: OptionalFloat = None,
) -> None:
    """Train and evaluate a matrix of agents x datasets x seeds and write a report.

    Finished runs are skipped, so the same command continues an interrupted comparison.

    Args:
        config: YAML file, or the name of one that is shipped (`list configs`), such as
            compare-hopper.
        out: folder for the runs and the report (report.html, .md, .csv, .json).
        runner: local (processes of this machine) or ray (the cluster of RAY_ADDRESS, or one here).
        jobs: runs at once; by default as many as cores, free memory and GPUs allow.
        gpus_per_cell: share of a GPU that a run takes, e.g. 0.25; by default one GPU, or its share
            of one where --jobs is larger than their number.
    """
    from decision_seq.api import comparisons

    done = comparisons.compare(config, out, assignments, runner, jobs, gpus_per_cell)
    if done.files:
        print(f"report: {done.files[0]}")
    if done.failed:
        count = len(done.failed) + len(done.runs)
        raise UserError(f"{len(done.failed)} of {count} runs failed: {', '.join(done.failed)}")


Runs = Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]", help_behavior_hint="")]


def report(runs: Runs, out: Path = Path("report.html"), against: OptionalStr = None) -> None:
    """Write a report from the rows of run folders: a self-contained page, Markdown, CSV and JSON.

    Args:
        runs: run folders, folders that hold some, or files of runs (.jsonl).
        out: file to write; .html with .md, .csv and .json beside it, or one of these alone, or all
            that a report needs of the runs in one file, .jsonl.
        against: an agent's name: every other is compared with it, beside the leader of each task.
    """
    from decision_seq.api import comparisons

    print(f"report: {', '.join(map(str, comparisons.report(runs, out, against).files))}")
