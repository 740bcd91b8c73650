"""The runs of a report: their folders, their rows, and the names that keep them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
from decision_seq.run_folder import agent_hash, has_checkpoint, read_index, read_trial
from decision_seq.settings import EvalConfig, TrainConfig

POINTS = 300  # of a learning curve; longer ones are averaged over neighbours


@dataclass(frozen=True)
class Settings:
    """The part of a run's config that a report is about: all but its agent, which needs torch."""

    env: str | None  # none of logs without a simulator
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
    trial: dict[str, Any] | None = None  # what a sweep tried with it
    archive: Path | None = None  # the file of runs that it is read from, if it is

    @property
    def origin(self) -> str:
        """What the comparison or the file that it is from is called; of a run by itself its own."""
        if self.archive:
            return self.archive.stem
        folder = self.folder.resolve()
        return folder.parents[1].name if folder.parent.name == "runs" else folder.name

    @cached_property
    def newest(self) -> dict[str, int]:
        """Steps of the checkpoints that the folder holds now: last and validation."""
        if not has_checkpoint(self.folder):
            return {}
        return {which: entry["step"] for which, entry in read_index(self.folder).items()}

    @cached_property
    def _hashes(self) -> dict[int, str | None]:
        return {step: agent_hash(self.folder, step) for step in self.newest.values()}

    def checkpoint(self, row: Mapping[str, Any]) -> str:
        """What a row or an inspection is of, in words: `last, step 300`; and why that is not what
        the folder holds under that name now, where it is not."""
        older = self.older(row)
        name = f"{row['checkpoint']}, step {row['step']}"
        return f"{name} (older: {older})" if older else name

    def older(self, row: Mapping[str, Any]) -> str:
        """What the folder holds instead of the weights that the row is of; "" if it holds these, or
        no checkpoint at all."""
        kind, step = row["checkpoint"], row["step"]
        newest = self.newest.get("last" if kind == "best" else kind)
        if newest is None:
            return ""
        if kind == "best":
            seen = {r["step"] for r in self.others if r["checkpoint"] == "selection"}
            return "" if newest in seen else f"the run's last checkpoint is of step {newest} now"
        if step != newest:
            return f"the run's checkpoint is of step {newest} now"
        known = row.get("agent_hash")
        if known is not None and self._hashes[step] not in (None, known):
            return "the run was trained again since"
        return ""

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
    def reported_step(self) -> int:
        """Of the checkpoint that is reported."""
        return int(self.rows[0]["step"] if self.rows else self.newest.get("last", 0))

    @property
    def _trained(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl up to the checkpoint that is reported."""
        return [row for row in self.metrics if row["step"] <= self.reported_step]

    @property
    def training_seconds(self) -> float | None:
        """Time spent on gradient steps, without pauses for checkpoints and rollouts."""
        rows = [row for row in self._trained if row.get("steps_per_second")]
        steps = np.diff([0, *(row["step"] for row in rows)])
        spent = [n / row["steps_per_second"] for n, row in zip(steps, rows, strict=True)]
        return float(sum(spent)) if rows else None

    @property
    def validation(self) -> dict[str, float]:
        """The last validation losses before the reported checkpoint, by name."""
        rows = [row for row in self._trained if "validation_loss" in row]
        last = rows[-1] if rows else {}
        return {name: loss for name, loss in last.items() if name.startswith("validation_loss")}

    @property
    def training_memory_mib(self) -> float | None:
        """The most memory training held."""
        return max((r["peak_memory_mib"] for r in self._trained if "peak_memory_mib" in r),
                   default=None)  # fmt: skip


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Run folders among `folders` and up to two levels below, and files of runs as they are. Raises
    UserError if one has none."""
    runs: list[Path] = []
    for folder in folders:
        if folder.suffix == ".jsonl":
            runs.append(folder)
            continue
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
    evaluated, though it has an environment."""
    dataset = read_summary(folder / "dataset.json")
    everything = read_rows(folder)
    config = load_settings(folder / "config.yaml")
    unrolled = not any(row["checkpoint"] == "last" for row in everything)
    if unrolled and config.env is not None:
        raise UserError(f"{folder}: has no evaluation; run `decision-seq evaluate {folder}` first")
    inspection = read_inspection(folder / "inspect.json")
    run = Run(folder, config, dataset, [], config.name, inspection)
    run.trial = read_trial(folder)
    run.rows, run.others = split_rows(everything, run.newest.get("last"))
    return run


def split_rows(everything: Sequence[Row], newest: int | None) -> tuple[list[Row], list[Row]]:
    """Rows of the last checkpoint, that of step `newest` if there are any, and all others."""
    steps = [row["step"] for row in everything if row["checkpoint"] == "last"]
    final = newest if newest in steps else max(steps, default=None)
    is_final = [row["checkpoint"] == "last" and row["step"] == final for row in everything]
    rows = [row for row, of_it in zip(everything, is_final, strict=True) if of_it]
    return rows, [row for row, of_it in zip(everything, is_final, strict=True) if not of_it]


def named_runs(runs: Sequence[Run]) -> list[Run]:
    """Every run under a name of its own. Where several runs are of one agent, data and training
    seed (other settings differ), all runs of that agent carry the name of the comparison or file
    that they are from, or these carry their folder's name where that does not tell them apart, or
    its path. Datasets of the same name carry their hash."""
    names = Counter(name for name, _ in {(r.dataset["name"], r.dataset["hash"]) for r in runs})
    for agent in agents(runs):
        own = [run for run in runs if run.agent == agent]
        seeds = Counter(_seed(run) for run in own)
        twins = [run for run in own if seeds[_seed(run)] > 1]
        if _apart(twins, [run.origin for run in twins]):
            for run in own if twins else []:
                run.agent += f" ({run.origin})"
        else:
            apart = _apart(twins, [run.folder.name for run in twins])
            for run in twins:
                where = run.archive or run.folder
                run.agent += f" ({run.folder.name if apart else f'{run.folder.name} of {where}'})"
    for run in runs:
        if names[run.dataset["name"]] > 1:
            run.dataset["name"] += f" ({run.dataset['hash'][:6]})"
    return list(runs)


def _seed(run: Run) -> tuple[str, int]:
    return run.dataset["hash"], run.config.seed


def _apart(runs: Sequence[Run], names: Sequence[str]) -> bool:
    """Whether no two runs of one seed have the same of these names."""
    return len({(*_seed(r), name) for r, name in zip(runs, names, strict=True)}) == len(runs)


def checkpoints(rows: Iterable[tuple[Run, Mapping[str, Any]]]) -> str:
    """What rows are of, each with its run: `last, step 100; last, step 300`."""
    found = {(row["checkpoint"], row["step"], run.checkpoint(row)) for run, row in rows}
    return "; ".join(dict.fromkeys(words for _, _, words in sorted(found)))


def reported(runs: Iterable[Run], dataset: str) -> str:
    """What the rows of the runs on one dataset are of."""
    own = [run for run in runs if run.dataset["name"] == dataset]
    return checkpoints((run, row) for run in own for row in run.rows)


def inspected(runs: Iterable[Run], dataset: str) -> str:
    """What the inspections of the runs on one dataset are of."""
    own = [run for run in runs if run.dataset["name"] == dataset]
    return checkpoints((run, run.inspection) for run in own if run.inspection)


def outdated(runs: Iterable[Run]) -> list[str]:
    """A sentence for each run whose rows are not of the checkpoint that it holds now."""
    sentences = []
    for run in runs:
        if not run.rows:
            continue
        row = run.rows[0]
        if older := run.older(row):
            sentences.append(
                f"The rows of {run.agent} on {run.dataset['name']} (training seed "
                f"{run.config.seed}) are older than the checkpoint beside them: they are of step "
                f"{row['step']}, and {older}. Evaluate {run.folder} again."
            )
    return sentences


def agents(runs: Iterable[Run]) -> list[str]:
    """Names of the agents; their order is that of their colours."""
    return sorted({run.agent for run in runs})


def datasets(runs: Iterable[Run]) -> list[str]:
    """Names of the datasets."""
    return sorted({run.dataset["name"] for run in runs})
