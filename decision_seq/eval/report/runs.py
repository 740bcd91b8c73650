"""The runs of a report: their folders, their rows, and the names that keep them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.config import build, load_yaml
from decision_seq.data.tools.info import read_summary
from decision_seq.errors import UserError
from decision_seq.eval.inspect.numbers import read_inspection
from decision_seq.eval.rows import Row, read_rows
from decision_seq.files import read_jsonl
from decision_seq.settings import EvalConfig, TrainConfig

POINTS = 300  # of a learning curve; longer ones are averaged over neighbours


@dataclass(frozen=True)
class Settings:
    """The part of a run's config that a report is about: all but its agent, which needs torch."""

    env: str
    name: str  # of the agent
    seed: int = 0
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


@dataclass
class Run:
    """A run folder as the report sees it."""

    folder: Path
    config: Settings
    dataset: dict[str, Any]
    rows: list[Row]  # of the last checkpoint's final evaluation: what scores are made from
    agent: str  # what the report calls it
    inspection: dict[str, Any] | None  # what `decision-seq inspect` left in the folder
    others: list[Row] = field(default_factory=list)  # of all other evaluations

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl."""
        return read_jsonl(self.folder / "metrics.jsonl")

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of one scalar, at most `POINTS` of them."""
        pairs = [(row["step"], row[name]) for row in self.metrics if name in row]
        if not pairs:
            return [], []
        parts = np.array_split(np.array(pairs, np.float64), min(POINTS, len(pairs)))
        steps, values = np.array([part.mean(axis=0) for part in parts]).T
        return steps.tolist(), values.tolist()

    @property
    def training_seconds(self) -> float | None:
        """Time spent on gradient steps, without pauses for checkpoints and rollouts."""
        rows = [row for row in self.metrics if row.get("steps_per_second")]
        steps = np.diff([0, *(row["step"] for row in rows)])
        spent = [n / row["steps_per_second"] for n, row in zip(steps, rows, strict=True)]
        return float(sum(spent)) if rows else None

    @property
    def training_memory_mib(self) -> float | None:
        """The most memory training held."""
        return max((r["peak_memory_mib"] for r in self.metrics if "peak_memory_mib" in r),
                   default=None)  # fmt: skip


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Run folders among `folders` and up to two levels below. Raises UserError if one has none."""
    runs: list[Path] = []
    for folder in folders:
        patterns = ("config.yaml", "*/config.yaml", "*/*/config.yaml")
        found = sorted(p.parent for pattern in patterns for p in folder.glob(pattern))
        if not found:
            raise UserError(f"{folder}: holds no run; give a folder made by `train` or `compare`")
        runs += found
    return list({run.resolve(): run for run in runs}.values())


def load_settings(path: Path) -> Settings:
    """Read the config of a run folder. Raises UserError if it is damaged."""
    known = {part.name for part in fields(Settings)}
    return build(Settings, {k: v for k, v in load_yaml(path).items() if k in known}, str(path))


def load_run(folder: Path) -> Run:
    """Read what the report needs. Raises UserError if the run's last checkpoint was never
    evaluated."""
    dataset = read_summary(folder / "dataset.json")
    everything = read_rows(folder)
    steps = [row["step"] for row in everything if row["checkpoint"] == "last"]
    if not steps:
        raise UserError(f"{folder}: has no evaluation; run `decision-seq evaluate {folder}` first")
    final = [row["checkpoint"] == "last" and row["step"] == max(steps) for row in everything]
    rows = [row for row, is_final in zip(everything, final, strict=True) if is_final]
    others = [row for row, is_final in zip(everything, final, strict=True) if not is_final]
    config = load_settings(folder / "config.yaml")
    inspection = read_inspection(folder / "inspect.json")
    return Run(folder, config, dataset, rows, config.name, inspection, others)


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Every run under a name of its own: runs of the same agent, data and training seed (other
    settings differ) carry their folder's name, and datasets of the same name their hash."""
    runs = [load_run(folder) for folder in folders]
    if not runs:
        raise UserError("there is no run to report on; give folders made by `train` or `compare`")
    names = Counter(name for name, _ in {(r.dataset["name"], r.dataset["hash"]) for r in runs})
    twins = Counter((r.agent, r.dataset["hash"], r.config.seed) for r in runs)
    for run in runs:
        if twins[run.agent, run.dataset["hash"], run.config.seed] > 1:
            run.agent += f" ({run.folder.name})"
        if names[run.dataset["name"]] > 1:
            run.dataset["name"] += f" ({run.dataset['hash'][:6]})"
    return runs


def agents(runs: Iterable[Run]) -> list[str]:
    """Names of the agents; their order is that of their colours."""
    return sorted({run.agent for run in runs})


def datasets(runs: Iterable[Run]) -> list[str]:
    """Names of the datasets."""
    return sorted({run.dataset["name"] for run in runs})
