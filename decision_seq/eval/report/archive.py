"""Runs in one file of JSON lines, small enough to keep in a repository: all that a report needs of
them, without weights.

A line is a run. Its rows are grouped by evaluation, with what differs from episode to episode in
columns and what all rows share said once. Numbers are kept to 8 digits; the OOD score of every step
is left out, its mean and largest value stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from decision_seq.config import build, to_plain
from decision_seq.errors import UserError
from decision_seq.eval.report.runs import Run, Settings, load_run, named_runs, split_rows
from decision_seq.eval.rows import Row, completed
from decision_seq.files import read_jsonl

OWN = ("env_seed", "target", "episode_return", "length", "normalized_score", "normalized_scores",
       "milliseconds_per_step", "peak_memory_mib", "ood_mean", "ood_max")  # fmt: skip
LEFT_OUT = ("ood", "run")
METRICS = ("step", "loss", "steps_per_second", "peak_memory_mib")  # and validation losses


def load_runs(places: Sequence[Path]) -> list[Run]:
    """The runs in folders and in files of runs, each under a name of its own."""
    runs = []
    for place in places:
        runs += read_archive(place) if place.suffix == ".jsonl" else [load_run(place)]
    if not runs:
        raise UserError("there is no run to report on; give folders made by `train` or `compare`")
    return named_runs(runs)


def to_archive(runs: Iterable[Run]) -> str:
    """The file's text."""
    return "".join(json.dumps(_short(_pack(run)), allow_nan=False) + "\n" for run in runs)


def read_archive(path: Path) -> list[Run]:
    """The runs in the file. Raises UserError if it is no such file."""
    lines = read_jsonl(path, "run", appended=False)
    if not lines:
        raise UserError(f"{path}: holds no run, or does not exist")
    try:
        return [_unpack(path, line) for line in lines]
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UserError(
            f"{path}: holds something else than runs ({type(error).__name__}: {error}); give a "
            "file that `decision-seq report RUNS --out FILE.jsonl` wrote"
        ) from None


def _pack(run: Run) -> dict[str, Any]:
    rows = [{k: v for k, v in row.items() if k not in LEFT_OUT} for row in run.rows + run.others]
    common = {k: v for k, v in rows[0].items() if all(row.get(k, ...) == v for row in rows)}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        rest = {k: v for k, v in row.items() if k not in common and k not in OWN}
        groups.setdefault(json.dumps(rest), []).append(row)
    metrics = [
        {k: v for k, v in row.items() if k in METRICS or k.startswith("validation_loss")}
        for row in run.metrics
    ]
    suffix = f" ({run.dataset['hash'][:6]})"  # by which a report keeps two of one name apart
    return {
        "run": run.folder.name,
        "config": to_plain(run.config),
        "dataset": run.dataset | {"name": run.dataset["name"].removesuffix(suffix)},
        "inspection": run.inspection,
        "trial": run.trial,
        "common": common,
        "evaluations": [
            {"of": json.loads(of), "episodes": _columns(own, set(OWN) - common.keys())}
            for of, own in groups.items()
        ],
        "metrics": _columns(metrics, {key for row in metrics for key in row}),
    }


def _unpack(path: Path, line: dict[str, Any]) -> Run:
    config = build(Settings, line["config"], str(path), "config")
    everything = [
        completed(line["common"] | {"run": line["run"]} | group["of"] | row)
        for group in line["evaluations"]
        for row in _rows(group["episodes"])
    ]
    rows, others = split_rows(everything, None)
    folder = path.parent / line["run"]
    run = Run(folder, config, line["dataset"], rows, config.name, line["inspection"], others)
    run.trial, run.archive = line.get("trial"), path
    run.metrics = [
        {k: v for k, v in row.items() if v is not None} for row in _rows(line["metrics"])
    ]
    return run


def _columns(rows: Sequence[Row], names: Iterable[str]) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in sorted(names)}


def _rows(columns: dict[str, list[Any]]) -> list[Row]:
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _short(value: Any) -> Any:
    """The same with 8 digits a number."""
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_short(one) for one in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value
