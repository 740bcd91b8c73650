"""`compare`: a matrix of agents x datasets x seeds, each cell a command a person could type."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decision_seq.config import build, load_yaml, merge, parse_overrides
from decision_seq.envs.registry import env_id
from decision_seq.errors import UserError
from decision_seq.eval.results import asked, read_rows, target_name
from decision_seq.files import write_text
from decision_seq.run_config import RunConfig, check_same_run, run_config, write_run_config


@dataclass(frozen=True)
class CompareConfig:
    """The matrix. Every cell is the `base` run with its agent, dataset and seed laid over it."""

    base: str  # run config, relative to this file
    agents: dict[str, dict[str, Any]]  # label -> what to lay over the base's `agent`
    datasets: dict[str, tuple[str, ...]]  # label -> data.sources
    seeds: tuple[int, ...]
    overrides: dict[str, Any]  # laid over every cell, e.g. {train: {steps: 2000}}


@dataclass(frozen=True)
class Cell:
    """One run of the matrix."""

    name: str
    config: RunConfig


def load_matrix(path: Path, assignments: list[str]) -> list[Cell]:
    """Every cell of the matrix in `path`; `assignments` are `--set`s laid over all of them."""
    data = {"overrides": {}} | load_yaml(path)
    matrix = build(CompareConfig, data, str(path))
    base_path = path.parent / matrix.base
    base = load_yaml(base_path)
    everywhere = merge(matrix.overrides, parse_overrides(assignments))
    _check_labels(path, matrix)
    cells = []
    for agent, agent_fields in matrix.agents.items():
        for dataset, sources in matrix.datasets.items():
            for seed in matrix.seeds:
                own = {
                    "name": agent,
                    "seed": seed,
                    "agent": agent_fields,
                    "data": {"sources": list(sources)},
                }
                config = run_config(base, merge(everywhere, own), f"{path} ({base_path.name})")
                cells.append(Cell(f"{agent}_{dataset}_seed{seed}", config))
    if not cells:
        raise UserError(f"{path}: agents, datasets and seeds must each name at least one")
    return cells


def run_matrix(
    cells: list[Cell], out: Path, say: Callable[[str], None]
) -> tuple[list[Path], dict[str, str]]:
    """Train and evaluate every cell that is not finished yet.

    A failing cell does not stop the others. Returns the run folders of finished cells, and by name
    the reason for each that failed.
    """
    for cell in cells:  # results of another config must not pass for this one's
        if (out / "runs" / cell.name / "config.yaml").exists():
            check_same_run(out / "runs" / cell.name, cell.config)
    runs, failed = [], {}
    ledger = {c.name: "waiting" for c in cells}
    for number, cell in enumerate(cells, 1):
        run = out / "runs" / cell.name
        if not _finished(run, cell.config):
            say(f"[{number}/{len(cells)}] {cell.name}")
            config = out / "cells" / f"{cell.name}.yaml"
            write_run_config(cell.config, config)
            train = ["train", str(config), "--out", str(run), "--resume"]
            if reason := run_command(train, say) or run_command(["evaluate", str(run)], say):
                failed[cell.name] = reason
                say(f"{cell.name} failed: {reason}")
        if cell.name not in failed:
            runs.append(run)
        ledger[cell.name] = f"failed: {failed[cell.name]}" if cell.name in failed else "finished"
        write_text(out / "ledger.json", json.dumps(ledger, indent=1))
    return runs, failed


def run_command(arguments: list[str], say: Callable[[str], None]) -> str | None:
    """Run one command of ours in a process of its own. Returns why it failed, or None."""
    say(f"$ decision-seq {shlex.join(arguments)}")
    command = [sys.executable, "-m", "decision_seq", *arguments]
    # Ctrl-C reaches the child as well, which needs a moment to save; we stop once it has
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    if code == 130:
        raise KeyboardInterrupt
    return f"exit code {code}" if code else None


def _finished(run: Path, config: RunConfig) -> bool:
    rows = [r for r in read_rows(run) if r["step"] == config.train.steps]
    rows = [r for r in rows if r["context"] == config.eval.context and r["checkpoint"] == "last"]
    rows = [r for r in rows if r["env"] == env_id(config.env)]
    if not config.agent.follows_target:
        wanted = [target_name(None)]
    elif config.eval.targets == "auto":
        wanted = [target_name(None, config.eval.target_quantile)]
    else:
        wanted = [target_name(target) for target in config.eval.targets]
    seeds = range(config.eval.seed, config.eval.seed + config.eval.episodes)
    done = {(asked(r), r["env_seed"]) for r in rows}
    return all((target, seed) in done for target in wanted for seed in seeds)


def _check_labels(path: Path, matrix: CompareConfig) -> None:
    """Labels become folder names; the same cell twice would be one run counted twice."""
    for label in [*matrix.agents, *matrix.datasets]:
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", label):
            raise UserError(f"{path}: label {label!r} must be letters, digits, '-', '_' and '.'")
    if len(set(matrix.seeds)) < len(matrix.seeds):
        raise UserError(f"{path}: seeds {list(matrix.seeds)} names one twice; remove it")
