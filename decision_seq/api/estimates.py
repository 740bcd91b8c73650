"""What an agent would return, without an environment: `evaluate --off-policy`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from decision_seq.api.shown import Shown
from decision_seq.eval.report.parts import Table

if TYPE_CHECKING:
    from decision_seq.values.off_policy import Estimate

FILE = "off_policy.json"
ENSEMBLE = 5


class OffPolicy(Shown):
    """Estimates of a run, one a target.

    Args:
        folder: run folder.
        estimates: see `values.off_policy`.
    """

    def __init__(self, folder: Path, estimates: Sequence[Estimate]) -> None:
        self.folder, self.estimates = folder, tuple(estimates)

    def title(self) -> str:
        """What was estimated."""
        return f"{self.folder.name}: by fitted Q evaluation, on data alone"

    def table(self) -> Table:
        """Mean and spread over an ensemble, a line a target."""
        rows = [
            [
                "-" if e.target is None else f"{e.target:g}",
                f"{e.mean:.4g} ± {e.spread:.2g}",
                f"{e.data:.4g}",
                f"{e.td_error:.2g}",
            ]
            for e in self.estimates
        ]
        return Table(("target", "discounted return", "of the data", "TD error"), rows, 0)

    def notes(self) -> Sequence[str]:
        """What the numbers are, and how they err."""
        from decision_seq.values.off_policy import BIAS

        first = self.estimates[0]
        return [
            f"Mean ± standard deviation of {len(first.values)} fits, each to its own draw of the "
            f"episodes; rewards count less by {first.discount:g} a step.",
            f"{BIAS[0].upper()}{BIAS[1:]}.",
        ]


def off_policy(
    run: str | os.PathLike[str],
    targets: Sequence[float] | None = None,
    steps: int = 10_000,
    checkpoint: Literal["last", "validation"] = "last",
    seed: int = 0,
) -> OffPolicy:
    """Estimate what a trained agent would return from its data alone, into off_policy.json of the
    run folder: `evaluate --off-policy`.

    Args:
        run: run folder.
        targets: returns to ask for, in the environment's units; by default the config's.
        steps: gradient steps of fitted Q evaluation.
        checkpoint: the last, or the one with the lowest validation loss.
        seed: of the fits.

    Raises:
        UserError: there is no such run, its config was edited after training, its data are gone, or
            it is not evaluated off-policy.
    """
    import dataclasses

    from decision_seq.data.store import open_store
    from decision_seq.errors import UserError
    from decision_seq.files import write_text
    from decision_seq.run_config import load_run_config, trained_agent
    from decision_seq.run_folder import read_index
    from decision_seq.shipped import run_at
    from decision_seq.values.off_policy import BIAS, estimate

    folder = run_at(run, to_write=True)
    config = load_run_config(folder / "config.yaml")
    agent = trained_agent(folder, config, read_index(folder)[checkpoint]["step"])
    asked: Sequence[float | None] = [None]
    if agent.config.follows_target:
        named = config.eval.targets if targets is None else targets
        if not named or isinstance(named, str):
            raise UserError(f"{folder}: name the returns to ask for with --targets")
        asked = [float(target) for target in named]
    store = open_store(config.data.sources)
    how = dataclasses.replace(config.values, steps=steps, ensemble=ENSEMBLE)
    found = [estimate(agent, store, target, how, seed) for target in asked]
    rows = [dataclasses.asdict(one) | {"mean": one.mean, "spread": one.spread} for one in found]
    told = {"data": store.hash, "checkpoint": checkpoint, "steps": steps, "seed": seed}
    text = json.dumps({**told, "bias": BIAS, "estimates": rows}, indent=1)
    write_text(folder / FILE, text + "\n")
    return OffPolicy(folder, found)
