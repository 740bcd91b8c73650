"""Sweeping from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from decision_seq.api.runs import Place, Settings, assignments
from decision_seq.api.shown import Shown
from decision_seq.config import in_words
from decision_seq.eval.report import figures as drawn
from decision_seq.eval.report.parts import Table

if TYPE_CHECKING:
    from decision_seq.eval.compare.sweep import Objective, Trial


class Sweep(Shown):
    """Trials of a search, the best one, and the report's files.

    Args:
        trials: by number; each has `parameters`, `value` (None if it failed) and `run`, its folder.
        best: that with the best value; None if all failed.
        objective: validation_loss (the lowest is best) or rollouts (the highest).
        files: the report's.
        failed: by the name of its run, why a trial failed just now.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        best: Trial | None,
        objective: Objective,
        files: Sequence[Path] = (),
        failed: Mapping[str, str] | None = None,
    ) -> None:
        self.trials, self.best, self.objective = tuple(trials), best, objective
        self.files, self.failed = tuple(files), dict(failed or {})

    def __repr__(self) -> str:
        return f"Sweep({len(self.trials)} trials, best: {self.best})"

    def title(self) -> str:
        """How many trials, and what judged them."""
        return f"{len(self.trials)} trials, judged by {self.objective.replace('_', ' ')}"

    def table(self) -> Table:
        """A line a trial, the best one first."""
        from decision_seq.eval.compare.sweep import ranked

        keys = list(self.trials[0].parameters)
        rows = [
            [t.run.name, *(in_words(t.parameters[key]) for key in keys),
             "failed" if t.value is None else f"{t.value:.5g}"]
            for t in ranked(self.trials, self.objective)
        ]  # fmt: skip
        return Table(("trial", *keys, self.objective), rows)

    def notes(self) -> Sequence[str]:
        """Why trials failed."""
        return [f"{name} failed: {reason}" for name, reason in self.failed.items()]

    def figures(self) -> Sequence[str]:
        """The objective by trial."""
        return [drawn.search([trial.value for trial in self.trials], self.objective)]


def sweep(
    config: Place,
    out: Place,
    set: Settings = (),
    runner: str = "local",
    jobs: int | None = None,
    gpus_per_cell: float | None = None,
    say: Callable[[str], None] = print,
) -> Sweep:
    """Search for settings by trials that Optuna proposes, and write a report: `sweep`.

    Which settings are tried depends on the config and its seed alone. The same call continues an
    interrupted search; with a larger `trials` it goes on from a finished one. A trial that fails
    does not stop the others.

    Args:
        config: YAML file, or the name of a shipped config, such as sweep-hopper.
        out: folder for the runs, Optuna's journal and the report (report.html, .md, .csv, .json).
        set: keys to override: of every trial, or of the search, {"trials": 50}.
        runner: local (processes of this machine) or ray (the cluster of RAY_ADDRESS, or one here).
        jobs: runs at once, at most the config's `batch`.
        gpus_per_cell: share of a GPU that a run takes, e.g. 0.25.
        say: where lines about its progress go.

    Raises:
        UserError: the config is not as it must be, the folder holds another search, or Optuna is
            missing (the extra `sweep`).
    """
    from decision_seq.eval.compare.sweep import load_sweep, ranked, run_sweep
    from decision_seq.eval.report.page import write_report

    place = Path(out)
    search = load_sweep(Path(config), place, assignments(set))
    trials, failed = run_sweep(search, say, runner, jobs, gpus_per_cell)
    runs = [trial.run for trial in trials if trial.value is not None]
    files = write_report(runs, place / "report.html", failed) if runs else []
    objective = search.config.objective
    best = next((t for t in ranked(trials, objective) if t.value is not None), None)
    return Sweep(trials, best, objective, files, failed)
