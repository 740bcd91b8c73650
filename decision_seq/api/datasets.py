"""Datasets: what `collect` makes and `data ...` is about, and how they are looked at."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from decision_seq.api.shown import Shown
from decision_seq.digits import decimals

if TYPE_CHECKING:
    from decision_seq.data.findings import Finding
    from decision_seq.data.store import EpisodeStore
    from decision_seq.eval.report.parts import Table

__all__ = ["Dataset", "check", "collect", "export", "import_", "info", "list_"]
Source = str | os.PathLike[str]


class Dataset(Shown):
    """Episodes under the names of their sources; they are opened when they are looked at.

    Args:
        sources: files, folders, imported names or Minari ids: together one dataset.
        counted: what is known of it without opening it: episodes, steps, return_mean, return_std.
    """

    def __init__(self, sources: Sequence[Source], counted: Mapping[str, Any] | None = None) -> None:
        self.sources = tuple(os.fspath(source) for source in sources)
        self._counted = counted

    @property
    def name(self) -> str:
        """What training calls it."""
        return " + ".join(self.sources)

    @cached_property
    def store(self) -> EpisodeStore:
        """Its arrays. Raises UserError where a source is missing or malformed."""
        from decision_seq.data.store import open_store

        return open_store(self.sources)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Sizes, returns, lengths, the environment, by name."""
        from decision_seq.data.tools.info import summarize

        return summarize(self.store)

    def __str__(self) -> str:
        told = self._counted or self.summary
        mean, spread = told["return_mean"], told["return_std"]
        digits = decimals([mean, spread])
        return (
            f"{self.name}: {told['episodes']} episodes, {told['steps']} steps, "
            f"return {mean:.{digits}f} ± {spread:.{digits}f}"
        )

    __repr__ = __str__

    def title(self) -> str:
        """Its name."""
        return self.name

    def table(self) -> Table:
        """The summary, a line a number."""
        from decision_seq.data.tools.distribution import action_lines
        from decision_seq.eval.report.parts import Table

        rows = [
            [key, f"{value:.3f}" if isinstance(value, float) else str(value)]
            for key, value in self.summary.items()
            if value is not None  # nothing is known of it
        ]
        actions = [[line[:22].rstrip(), line[23:]] for line in action_lines(self.store)]
        return Table(("", ""), rows + actions, 2)

    def notes(self) -> Sequence[str]:
        """What had to be guessed, and constant columns."""
        from decision_seq.data.tools.info import remarks

        return remarks(self.store)

    def figures(self) -> Sequence[str]:
        """Histograms of returns and lengths."""
        from decision_seq.data.tools.distribution import to_svg

        return [to_svg(self.store)]


def collect(
    env: str,
    tier: str,
    steps: int = 100_000,
    policy: Source | None = None,
    out: str | None = None,
    seed: int = 0,
    trust_policy: bool = False,
    simulator: Literal["auto", "warp"] = "auto",
) -> Dataset:
    """Roll a behaviour policy out and store the episodes as a Minari dataset: `collect`.

    Args:
        env: environment name or gymnasium id, with arguments like
            Hopper-v5?terminate_when_unhealthy=false.
        tier: which policy (`decision-seq list tiers`), or random; with `policy`, what to call the
            data.
        steps: fewest environment steps; the last episode is completed.
        policy: Stable-Baselines3 or sb3-contrib .zip to roll out instead.
        out: Minari dataset id; by default decision-seq/ENV/TIER-v0.
        seed: of environment and policy.
        trust_policy: let Stable-Baselines3 load a `policy` of a kind that is not read here; it runs
            code that the file may hold.
        simulator: warp simulates a MuJoCo robot by MuJoCo Warp, on a GPU if there is one.

    Raises:
        UserError: there is no such environment or tier, or the dataset exists.
    """
    from decision_seq.behaviours.tiers import behaviour_for
    from decision_seq.data.tools.collect import check_id, collect
    from decision_seq.progress import progress_bar

    place = re.sub(r"[^\w-]+", "-", env.lower())  # of an id, whose arguments hold other characters
    dataset_id = out or f"decision-seq/{place}/{tier}-v0"
    check_id(dataset_id)
    file = None if policy is None else Path(policy)
    behaviour, provenance = behaviour_for(env, tier, file, trust_policy)
    with progress_bar() as bar:
        task = bar.add_task("collecting", total=steps, note="")

        def on_step(done: int) -> None:
            bar.update(task, completed=done)

        try:
            counted = collect(
                env, behaviour, steps, dataset_id, seed, provenance, on_step, simulator
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{dataset_id} is not written") from None
    return Dataset([dataset_id], counted)


def info(*source: Source) -> Dataset:
    """The dataset made of these files, folders, imported names or Minari ids: `data info`."""
    return Dataset(source)


def check(*source: Source, env: str | None = None) -> list[Finding]:
    """What may be wrong with a dataset, a sentence each: `data check`.

    Args:
        source: as of `info`.
        env: environment it is from, where it does not say so itself.
    """
    from decision_seq.data.tools.check import examine

    return list(examine(info(*source).sources, env).findings)


def import_(*source: Source, name: str, env: str | None = None) -> Dataset:
    """Keep a dataset under a name, which then works wherever a source does: `data import`.

    Args:
        source: as of `info`.
        name: what to call it.
        env: environment it is from, where it does not say.
    """
    from decision_seq.data.tools.library import import_dataset

    import_dataset(info(*source).sources, name, env)
    return Dataset([name])


def list_() -> list[str]:
    """A line for each imported dataset and each in Minari's local storage: `data list`."""
    from decision_seq.data.tools.library import listing

    return listing()


def export(*source: Source, to: Literal["npz", "minari"], out: str) -> Dataset:
    """Write a dataset in a format that others read: `data export`.

    Args:
        source: as of `info`.
        to: npz (one file) or minari (a dataset in Minari's local storage).
        out: file, or Minari id such as mine/logs-v0.
    """
    from decision_seq.data.tools.export import EXPORTERS

    dataset = info(*source)
    EXPORTERS[to](dataset.store, out)
    return Dataset([out], dataset.summary)
