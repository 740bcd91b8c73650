"""Panels of lines and pictures as inline SVG, readable on light and dark backgrounds."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # matplotlib is imported where something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # dates and foreign addresses
INK = "#808890"  # has contrast on white and on near-black
COLOURS = ("#3b82f6", "#e8730c", "#16a34a", "#a855f7", "#dc2626", "#0891b2", "#ca8a04", "#db2777")
LINES = ("-", "--", "-.", ":")  # the next one where colours begin again

LEGEND: Any = {"frameon": False, "labelcolor": INK, "fontsize": 9}


def panel(title: str, of: str = "", height: float = 3.4) -> tuple[Figure, Axes]:
    """A figure of one panel, as wide as a phone's screen; below its title, what it is `of`."""
    figure, ((ax, _),) = panels([title])
    ax.set_title("")  # which would be as wide as the axes, not as the figure
    lines = [line for text in (title, of) for line in textwrap.wrap(text, 62)]
    figure.suptitle("\n".join(lines), color=INK, fontsize=10, parse_math=False)
    figure.set_size_inches(4.9, height + 0.17 * (len(lines) - 2))
    return figure, ax


def panels(
    titles: Sequence[str], columns: int | None = None
) -> tuple[Figure, list[tuple[Axes, str]]]:
    """A figure with a panel a title, all in one row or `columns` a row. "" leaves a gap."""
    from matplotlib.figure import Figure

    columns = columns or len(titles)
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(4.2 * columns + 0.8, 3.6 * rows), layout="constrained")
    grid: Any = figure.subplots(rows, columns, squeeze=False).ravel()
    axes = []
    for ax, title in zip(grid, [*titles, *[""] * (rows * columns - len(titles))], strict=True):
        if not title:
            ax.set_axis_off()
            continue
        ax.set_title(title, color=INK, fontsize=10, parse_math=False)
        ax.tick_params(which="both", colors=INK, labelsize=9)
        for spine in ax.spines.values():
            spine.set_color(INK)
        ax.spines[["top", "right"]].set_visible(False)
        axes.append((ax, title))
    return figure, axes


def to_svg(figure: Figure, axes: Sequence[Axes]) -> str:
    """The figure as SVG, its labels and legends in the one ink."""
    import matplotlib

    alone = len(axes) == 1  # then the legend goes below, where it hides nothing
    for ax in axes:
        ax.xaxis.label.set_color(INK)
        ax.yaxis.label.set_color(INK)
        handles, labels = ax.get_legend_handles_labels()
        if handles:
            columns = 2 if max(map(len, labels)) <= 24 else 1
            lines = math.ceil(len(labels) / columns)
            if alone:  # the axes keep their height beside the legend of many agents
                figure.set_figheight(figure.get_figheight() + 0.2 * max(0, lines - 3))
            below: Any = {"loc": "outside lower center", "ncols": columns, "handles": handles}
            legend = (
                figure.legend(labels=labels, **below, **LEGEND) if alone else ax.legend(**LEGEND)
            )
            for entry in legend.get_texts():
                entry.set_parse_math(False)  # a name is no formula
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "decision-seq", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", transparent=True, metadata=NO_METADATA)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
