"""The live table of a comparison: what runs, how far it is, how long it will take."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:  # which needs torch
    from decision_seq.eval.compare.jobs import Job

TAIL = 8192  # bytes at the end of metrics.jsonl that hold the last rows
COLUMNS = ("step", "steps/s", "loss", "validation loss", "time left")


class LiveTable:
    """A table on stderr that is drawn again whenever asked; nothing where that is no terminal.

    Args:
        jobs: names in order.
    """

    def __init__(self, jobs: list[str]) -> None:
        self.states = dict.fromkeys(jobs, "waiting")
        console = Console(stderr=True)
        self.shown = console.is_terminal
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> LiveTable:
        if self.shown:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:
            self._live.stop()

    def draw(self, running: dict[str, Job]) -> None:
        """Draw the table; `running` has the jobs by name."""
        if self.shown:
            self._live.update(self.table(running), refresh=True)

    def table(self, running: dict[str, Job]) -> Table:
        """Jobs that run or have failed, and how many are in each state."""
        counts = Counter(self.states.values())
        summary = ", ".join(f"{number} {state}" for state, number in counts.items())
        table = Table(title=f"{len(self.states)} jobs: {summary}", title_justify="left")
        table.add_column("job")
        table.add_column("state")
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for name, state in self.states.items():
            if name in running:
                table.add_row(name, *_columns(running[name]))
            elif state == "failed":
                table.add_row(name, state, style="red")
        return table


def progress(run: Path) -> dict[str, Any]:
    """The last row of training scalars in the run folder with the last validation losses, {} before
    there is one."""
    tail = b""
    with contextlib.suppress(OSError), (run / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        tail = file.read()
    training: dict[str, Any] = {}
    losses: dict[str, Any] = {}
    for line in reversed(tail.splitlines()):
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and "steps_per_second" in row:
                training = training or row
            elif isinstance(row, dict) and not losses:
                losses = {k: v for k, v in row.items() if k.startswith("validation_loss")}
    return training and losses | training


def _columns(job: Job) -> tuple[str, ...]:
    """State and the columns of a running job."""
    row, steps = progress(job.run), job.config.train.steps
    if not row:
        return ("starting", f"0/{steps}", *[""] * (len(COLUMNS) - 1))
    step, rate = row["step"], row["steps_per_second"]
    losses = [f"{row[key]:.4f}" for key in row if key.startswith("validation_loss")]
    whole, sources = "".join(losses[:1]), ", ".join(losses[1:])  # of each source, in their order
    left = int((steps - step) / max(rate, 1e-9))
    return (
        "training" if step < steps else "evaluating",
        f"{step}/{steps}",
        f"{rate:.1f}",
        f"{row['loss']:.4f}" if "loss" in row else "",  # all its batches were skipped
        f"{whole} ({sources})" if sources else whole,
        f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}" if step < steps else "",
    )
