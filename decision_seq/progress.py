"""The one progress bar of all long work."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} steps/s" if task.speed else "", style="cyan")


class _Begun(Progress):
    """Without what is not known to begin yet: an error may come before it does."""

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        return super().make_tasks_table([task for task in tasks if task.total is not None])


def progress_bar(shown: bool = True) -> Progress:
    """Done and total, rate, time left, and a `note` field for the loss. On stderr, if `shown`; each
    task from when its total is known."""
    console = Console(stderr=True)
    # there rich draws by a widget, and without it warns at every turn
    seen = not console.is_jupyter or find_spec("ipywidgets") is not None
    return _Begun(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not (shown and seen),
    )
