"""What results have in common: lines, a table and figures, for a terminal and for a notebook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from decision_seq.eval.drawing import INK

if TYPE_CHECKING:
    import rich.table

    from decision_seq.eval.report.parts import Table


class Shown(ABC):
    """A result that is worth looking at: printed by rich as a table, and in a notebook as a table
    with figures below. Each kind says what is in it."""

    @abstractmethod
    def title(self) -> str:
        """What it is."""

    @abstractmethod
    def table(self) -> Table:
        """Its numbers in words."""

    def notes(self) -> Sequence[str]:
        """Sentences below the table."""
        return ()

    def figures(self) -> Sequence[str]:
        """Drawings as SVG."""
        return ()

    def __rich__(self) -> rich.table.Table:
        """The table as rich prints it."""
        from rich.table import Table as RichTable

        table = self.table()
        shown = RichTable(title=self.title())
        for i, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if i < table.text else "right")
        for row in table.rows:
            shown.add_row(*row)
        return shown

    def _repr_html_(self) -> str:
        table = self.table()
        head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in table.rows
        )
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes())
        figures = "".join(svg.replace(INK, "currentColor") for svg in self.figures())
        return (
            f"<div><p><b>{escape(self.title())}</b></p><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{rows}</tbody></table>{notes}{figures}</div>"
        )
