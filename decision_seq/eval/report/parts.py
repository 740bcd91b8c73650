"""What sections of a report are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Figure:
    """A drawing, and what it shows for those who do not see it."""

    draw: Callable[[], str]  # as SVG
    alt: str

    @cached_property
    def svg(self) -> str:
        """The drawing: a page and a file of it are the same."""
        return self.draw()


@dataclass(frozen=True)
class Table:
    """Cells in words; the first `text` columns are left-aligned."""

    columns: tuple[str, ...]
    rows: list[list[str]]
    text: int = 1
    marked: frozenset[int] = frozenset()  # rows that stand out

    def folded(self) -> tuple[str, Table]:
        """What all rows have in common, in words, and the table without those columns: a phone has
        no room for a column that says the same in every row. The last of the text columns, what a
        row is about, stays, and so does a single row."""
        same = [
            i
            for i in range(self.text - 1)
            if len(self.rows) > 1 and len({row[i] for row in self.rows}) == 1
        ]
        words = "; ".join(f"{self.columns[i]}: {self.rows[0][i]}" for i in same)
        keep = [i for i in range(len(self.columns)) if i not in same]
        rows = [[row[i] for i in keep] for row in self.rows]
        columns = tuple(self.columns[i] for i in keep)
        return words, Table(columns, rows, self.text - len(same), self.marked)


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    text: str = ""
    figures: tuple[Figure, ...] = ()
    caption: str = ""  # of all figures together
    table: Table | None = None
    note: str = ""
