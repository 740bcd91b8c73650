"""Figures of `decision-seq inspect`: influence by lag, token maps, memory length by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from decision_seq.eval.drawing import COLOURS, INK, panels, to_svg

if TYPE_CHECKING:
    from decision_seq.eval.inspect.influence import Influence, LayerView

HEADS = 4  # maps drawn a layer; the .npz file has all


def draw(influence: Influence, layers: list[LayerView], of: str) -> dict[str, str]:
    """Figures by name, as SVG; only those that the agent's mixers allow. `of` is the checkpoint in
    words."""
    figures = {"influence": influence_by_lag(influence, of)}
    if any(view.token_map is not None for view in layers):
        figures["maps"] = token_maps(layers, of)
    if any(view.memory is not None for view in layers):
        figures["memory"] = memory_lengths(layers, of)
    return figures


def influence_by_lag(influence: Influence, of: str) -> str:
    """Influence against the lag in steps, a curve a kind of token."""
    figure, ((ax, _),) = panels([f"influence of the past on the action\n{of}"])
    tokens = np.array(influence.tokens)
    for colour, kind in zip(COLOURS, sorted(set(influence.tokens)), strict=False):
        own = tokens == kind
        label = kind.replace("_", "-")
        ax.plot(influence.steps[own], influence.by_lag[own], ".-", color=colour, label=label)
    ax.set_yscale("log", nonpositive="mask")
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("steps back")
    ax.set_ylabel("norm of the derivative")
    return to_svg(figure, [ax])


def token_maps(layers: list[LayerView], of: str) -> str:
    """A row a layer, a panel a head. Nothing is drawn where a map is exactly zero."""
    rows = [_heads(view) for view in layers if view.token_map is not None]
    columns = max(map(len, rows))
    cells = [cell for row in rows for cell in [*row, *[("", None)] * (columns - len(row))]]
    figure, axes = panels([title and f"{title}\n{of}" for title, _ in cells], columns)
    drawn = [matrix for _, matrix in cells if matrix is not None]
    for (ax, _), matrix in zip(axes, drawn, strict=True):
        signed = matrix.min() < 0
        top = float(np.abs(matrix).max()) or 1.0
        image = ax.imshow(
            np.where(matrix == 0, np.nan, matrix),
            cmap="coolwarm" if signed else "viridis",
            vmin=-top if signed else 0,
            vmax=top,
            interpolation="none",
        )
        bar = figure.colorbar(image, ax=ax, shrink=0.8)
        bar.ax.tick_params(colors=INK, labelsize=8)
        bar.outline.set_visible(False)
        ax.set_xlabel("token looked at")
        ax.set_ylabel("token that looks")
    return to_svg(figure, [ax for ax, _ in axes])


def memory_lengths(layers: list[LayerView], of: str) -> str:
    """Share of channels whose state remembers for at most so many tokens, a curve a layer."""
    figure, ((ax, _),) = panels([f"memory of the state\n{of}"])
    shares = np.linspace(0, 1, 201)
    memories = [(view.layer, view.memory) for view in layers if view.memory is not None]
    for i, (layer, memory) in enumerate(memories):
        lengths = np.quantile(memory, shares)
        ax.plot(lengths, shares, color=COLOURS[i % len(COLOURS)], label=f"layer {layer + 1}")
    ax.set_xscale("log")
    ax.set_xlabel("tokens until the state has decayed to 1/e")
    ax.set_ylabel("share of channels, over all tokens")
    return to_svg(figure, [ax])


def _heads(view: LayerView) -> list[tuple[str, np.ndarray | None]]:
    """Title and map [L, L] of the heads that are drawn."""
    assert view.token_map is not None
    name, heads = f"layer {view.layer + 1}, {view.mixer}", len(view.token_map)
    drawn = view.token_map[:HEADS]
    return [(f"{name}, {i + 1} of {heads}" if heads > 1 else name, m) for i, m in enumerate(drawn)]
