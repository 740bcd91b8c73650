"""How returns, lengths and actions of a dataset are distributed: as text and as a figure."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decision_seq.data.store import EpisodeStore
from decision_seq.errors import UserError
from decision_seq.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 10
INK = "#808890"  # that of eval/drawing.py: readable on any page
WIDTH = 40  # characters of the longest bar
SHOWN_ACTIONS = 20  # a line each; beyond that one line for all


def histogram(values: np.ndarray) -> list[str]:
    """Lines `low .. high  bar count` of `values` [M]."""
    counts, edges = np.histogram(values.astype(np.float64), bins=BINS)
    if edges[0] == edges[-1] or np.ptp(values) == 0:
        return [f"{values[0]:>11.5g} all {len(values)}"]
    bars = np.ceil(WIDTH * counts / counts.max()).astype(int)
    return [
        f"{low:>11.5g} .. {high:<11.5g} {'█' * bar:{WIDTH}} {count}"
        for low, high, bar, count in zip(edges[:-1], edges[1:], bars, counts, strict=True)
    ]


def action_lines(store: EpisodeStore) -> list[str]:
    """The range of each continuous action, or how often each discrete one was taken."""
    if store.discrete:
        counts = np.bincount(store.actions)[:SHOWN_ACTIONS]
        first = store.info.get("action_start", 0)  # as the environment counts them
        numbered = enumerate(counts, first)
        shares = [f"{n}: {100 * count / store.steps:.1f} %" for n, count in numbered]
        return [f"{'actions taken':22} {', '.join(shares)}"]
    low, high = store.actions.min(axis=0), store.actions.max(axis=0)
    if len(low) > SHOWN_ACTIONS:
        return [f"{'action range':22} {low.min():.4g} .. {high.max():.4g}"]
    return [f"{f'action {i} range':22} {low[i]:.4g} .. {high[i]:.4g}" for i in range(len(low))]


def write_figure(path: Path, store: EpisodeStore) -> None:
    """Histograms of returns and lengths as PNG (or SVG, PDF, by the name)."""
    form = path.suffix.removeprefix(".").lower()
    if form not in ("png", "svg", "pdf"):
        raise UserError(f"{path}: figures are written as .png, .svg or .pdf")
    with atomic_file(path) as temporary:
        _figure(store).savefig(temporary, format=form, dpi=150)


def to_svg(store: EpisodeStore) -> str:
    """The same as SVG, for a page."""
    import matplotlib

    text = io.StringIO()
    parts = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: Any = {"svg.fonttype": "none"} | dict.fromkeys(parts, INK)
    with matplotlib.rc_context(style):
        _figure(store).savefig(text, format="svg", transparent=True)
    return text.getvalue()[text.getvalue().index("<svg") :]


def _figure(store: EpisodeStore) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6), layout="constrained")
    for axes, (name, values) in zip(
        figure.subplots(1, 2),
        (("return", store.episode_returns), ("length", store.lengths)),
        strict=True,
    ):
        axes.hist(values, bins=4 * BINS, color="#3b82f6")
        axes.set_xlabel(f"{name} of an episode")
        axes.set_ylabel("episodes")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{store.name}: {store.episodes} episodes, {store.steps} steps", fontsize=9)
    return figure
