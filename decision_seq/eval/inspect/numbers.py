"""The numbers of inspect.json: read and printed, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from decision_seq.digits import decimals
from decision_seq.errors import UserError

LAGS = (0, 1, 2, 5, 10, 20, 30)  # of the table, in tokens


def read_inspection(path: Path) -> dict[str, Any] | None:
    """What `decision-seq inspect` wrote to inspect.json; None if there is no such file.

    Raises UserError if it is damaged.
    """
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
        influence = numbers["influence"]
        [(int(r["lag"]), float(r["mean"])) for r in influence["by_lag"]]
        [(int(r["steps"]), float(r["mean"])) for r in influence["by_step"]]
        half = influence["half_life"]
        if half is not None:
            int(half["tokens"]), int(half["steps"])
        int(numbers["step"]), str(numbers["checkpoint"]), int(numbers["context_length"])
        return numbers
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is damaged; run `decision-seq inspect` again") from None


def print_tables(numbers: dict[str, Any]) -> None:
    """Print influence at a few lags, and what each layer looks back at."""
    rows = numbers["influence"]["by_lag"]
    title = (
        f"{numbers['agent']}, {numbers['checkpoint']} (step {numbers['step']}), "
        f"{numbers['influence']['windows']} windows of {numbers['context_length']} steps"
    )
    table = Table(title=title)
    for column in ("lag (tokens)", "lag (steps)", "token", "influence on action", "of lag 0"):
        table.add_column(column, justify="left" if column == "token" else "right")
    for row in (rows[lag] for lag in LAGS if lag < len(rows)):
        table.add_row(
            str(row["lag"]),
            str(row["steps"]),
            row["token"],
            f"{row['mean']:.3g} ± {row['std']:.2g}",
            f"{row['mean'] / rows[0]['mean']:.2g}" if rows[0]["mean"] else "-",
        )
    console = Console()
    console.print(table)
    half = numbers["influence"]["half_life"]
    console.print(
        "The past has no influence."
        if half is None
        else f"Half of the past's influence lies within {half['tokens']} tokens "
        f"({half['steps']} steps)."
    )
    for view in numbers["layers"]:
        console.print(_layer_line(view))


def _layer_line(view: dict[str, Any]) -> str:
    parts = []
    if "mean_lag" in view:
        heads = ", ".join(f"{lag:.1f}" for lag in view["mean_lag"])
        parts.append(f"looks {heads} tokens back on average")
    if "memory_tokens" in view:
        spans = ", ".join(
            f"{share} {n:.{decimals([n], 0)}f}" for share, n in view["memory_tokens"].items()
        )
        parts.append(f"its state remembers for (tokens, quantiles) {spans}")
    said = "; ".join(parts) or "has no token map"
    return f"layer {view['layer'] + 1}, {view['mixer']}: {said}"
