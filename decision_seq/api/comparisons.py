"""Comparing and reporting from Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from decision_seq.api.runs import Place, Settings, assignments
from decision_seq.api.shown import Shown
from decision_seq.eval.report.parts import Section, Table
from decision_seq.eval.report.sections import sections

if TYPE_CHECKING:
    from decision_seq.eval.report.data import Data


class Report(Shown):
    """What runs came to: scores, figures, and the files they were written to.

    Args:
        runs: run folders and files of runs.
        files: what was written.
        failed: by name, why other runs of the comparison failed.
    """

    def __init__(
        self, runs: Sequence[Path], files: Sequence[Path], failed: Mapping[str, str] | None = None
    ) -> None:
        self.runs, self.files, self.failed = tuple(runs), tuple(files), dict(failed or {})

    def __repr__(self) -> str:
        return f"Report({', '.join(map(str, self.files))})"

    @cached_property
    def data(self) -> Data:
        """Every number of it."""
        from decision_seq.eval.report.archive import load_runs
        from decision_seq.eval.report.data import Data

        return Data(load_runs(self.runs), self.failed)

    @cached_property
    def _scores(self) -> Section | None:
        return next((s for s in sections(self.data) if s.title == "Scores"), None)

    def title(self) -> str:
        """Which agents it compares."""
        return self.data.title

    def table(self) -> Table:
        """The scores, every seed."""
        table = self._scores.table if self._scores else None
        return table or Table(("scores",), [])

    def notes(self) -> Sequence[str]:
        """Who is better and how sure, and what failed."""
        failed = [f"{name} failed: {reason}" for name, reason in self.failed.items()]
        return [*self.data.summary, *failed]

    def figures(self) -> Sequence[str]:
        """A panel a dataset."""
        return [figure.svg for figure in self._scores.figures] if self._scores else ()


def compare(
    config: Place,
    out: Place,
    set: Settings = (),
    runner: str = "local",
    jobs: int | None = None,
    gpus_per_cell: float | None = None,
    say: Callable[[str], None] = print,
) -> Report:
    """Train and evaluate a matrix of agents x datasets x seeds and write a report: `compare`.

    Finished runs are skipped, so the same call continues an interrupted comparison. Runs that
    failed are in the report's `failed`, and do not stop the others.

    Args:
        config: YAML file, or the name of a shipped config, such as compare-hopper.
        out: folder for the runs and the report (report.html, .md, .csv, .json).
        set: keys to override, as of `train`.
        runner: local (processes of this machine) or ray (the cluster of RAY_ADDRESS, or one here).
        jobs: runs at once; by default as many as cores, free memory and GPUs allow.
        gpus_per_cell: share of a GPU that a run takes, e.g. 0.25.
        say: where lines about its progress go.

    Raises:
        UserError: the config is not as it must be.
    """
    from decision_seq.eval.compare.matrix import load_matrix, run_matrix
    from decision_seq.eval.report.page import write_report

    place = Path(out)
    matrix = load_matrix(Path(config), place, assignments(set))
    runs, failed = run_matrix(matrix, say, runner, jobs, gpus_per_cell)
    files = write_report(runs, place / "report.html", failed) if runs else []
    return Report(runs, files, failed)


def report(
    runs: Place | Sequence[Place], out: Place = "report.html", against: str | None = None
) -> Report:
    """Write a report from the rows of run folders: `report`.

    Args:
        runs: run folders, folders that hold some, or files of runs (.jsonl); one or several.
        out: file to write; .html with .md, .csv and .json beside it, or one of these alone, or all
            that a report needs of the runs in one file, .jsonl.
        against: agent that every other is compared with as well; by default the leader of each
            task alone.

    Raises:
        UserError: there is no run, it was never evaluated, or none is of `against`.
    """
    from decision_seq.eval.report.page import write_report
    from decision_seq.eval.report.runs import find_runs

    places = [runs] if isinstance(runs, str | os.PathLike) else runs
    found = find_runs([Path(place) for place in places])
    return Report(found, write_report(found, Path(out), baseline=against))
