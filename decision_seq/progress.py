"""The one progress bar of all long work."""

from __future__ import annotations

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
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} steps/s" if task.speed else "", style="cyan")


def progress_bar(shown: bool = True) -> Progress:
    """Done and total, rate, time left, and a `note` field for the loss. On stderr, if `shown`."""
    console = Console(stderr=True)
    # there rich draws by a widget, and without it warns at every turn
    seen = not console.is_jupyter or find_spec("ipywidgets") is not None
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not (shown and seen),
    )
