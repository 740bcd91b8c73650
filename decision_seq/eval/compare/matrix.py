"""`compare`: a matrix of agents x options x datasets x seeds, each cell commands that people could
type."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decision_seq.config import build, load_yaml, merge, parse_overrides
from decision_seq.errors import UserError
from decision_seq.eval.compare.evaluations import Evaluation, finished
from decision_seq.eval.compare.jobs import POLL, Ended, Work
from decision_seq.eval.compare.ledger import Ledger
from decision_seq.eval.compare.live_table import Board
from decision_seq.eval.compare.runners import RUNNERS, Runner
from decision_seq.files import exclusive
from decision_seq.run_config import RunConfig, check_same_run, run_config, write_run_config

SET_BY_MATRIX = ("seed", "name")  # of every cell; an option would make two cells one


@dataclass(frozen=True)
class CompareConfig:
    """The matrix. Every cell is the `base` run with its agent, dataset, option and seed laid over
    it."""

    base: str  # run config, relative to this file
    agents: dict[str, dict[str, Any]]  # label -> what to lay over the base's `agent`
    datasets: dict[str, tuple[str, ...]]  # label -> data.sources
    seeds: tuple[int, ...]
    # label -> what to lay over a cell, e.g. {long: {agent: {context_length: 60}}}
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    # how each trained run is evaluated, e.g. [{context: window}, {context: stream}]
    evaluations: tuple[Evaluation, ...] = (Evaluation(),)
    # laid over every cell, e.g. {train: {steps: 2000}}
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One run of the matrix."""

    name: str
    config: RunConfig
    evaluations: tuple[Evaluation, ...]


def load_matrix(path: Path, assignments: list[str]) -> list[Cell]:
    """Every cell of the matrix in `path`; `assignments` are `--set`s laid over all of them, or over
    the matrix itself where they begin with one of its keys (`datasets.medium=[a.npz]`)."""
    given = parse_overrides(assignments)
    keys = given.keys() & CompareConfig.__dataclass_fields__.keys()
    data = merge(load_yaml(path), {key: given.pop(key) for key in keys})
    matrix = build(CompareConfig, data, str(path))
    base_path = path.parent / matrix.base
    base = load_yaml(base_path)
    everywhere = merge(matrix.overrides, given)
    _check_labels(path, matrix)
    cells = []
    for agent, agent_fields in matrix.agents.items():
        for option, option_fields in (matrix.options or {"": {}}).items():
            for dataset, sources in matrix.datasets.items():
                for seed in matrix.seeds:
                    own = {
                        "name": f"{agent} {option}".strip(),
                        "seed": seed,
                        "agent": agent_fields,
                        "data": {"sources": list(sources)},
                    }
                    fields = merge(merge(everywhere, own), option_fields)
                    config = run_config(base, fields, f"{path} ({base_path.name})")
                    parts = [agent, option, dataset, f"seed{seed}"]
                    name = "_".join(filter(None, parts))
                    cells.append(Cell(name, config, matrix.evaluations))
    if not cells or not matrix.evaluations:
        raise UserError(
            f"{path}: agents, datasets, seeds and evaluations must each name at least one"
        )
    names = [cell.name for cell in cells]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: two cells would be called {name}; choose other labels")
    return cells


def run_matrix(
    cells: list[Cell],
    out: Path,
    say: Callable[[str], None],
    runner: str = "local",
    jobs: int | None = None,
    gpus_per_cell: float | None = None,
) -> tuple[list[Path], dict[str, str]]:
    """Train and evaluate every cell that is not finished yet.

    A failing cell does not stop the others. Returns the run folders of finished cells, and by name
    the reason for each that failed.

    Args:
        cells: of `load_matrix`.
        out: folder of the comparison.
        say: where lines for people go.
        runner: a key of RUNNERS.
        jobs: cells at once; worked out if None.
        gpus_per_cell: share of a GPU for each; worked out if None.
    """
    if runner not in RUNNERS:
        raise UserError(f"--runner {runner}: does not exist; choose {' or '.join(RUNNERS)}")
    for cell in cells:  # results of another config must not pass for this one's
        if (out / "runs" / cell.name / "config.yaml").exists():
            check_same_run(out / "runs" / cell.name, cell.config)
    with exclusive(out / ".compare.lock", wait=False):
        ledger = Ledger(out)
        todo = []
        for cell in cells:
            if not finished(out / "runs" / cell.name, cell.config, cell.evaluations):
                todo.append(cell)
            elif ledger.last(cell.name) != "finished":  # killed before it could be written down
                ledger.add(cell.name, "finished")
        failed = {}
        if todo:
            workers = RUNNERS[runner](len(todo), jobs, gpus_per_cell)
            failed = _run(todo, [c.name for c in cells], out, ledger, workers, runner, say)
    return [out / "runs" / c.name for c in cells if c.name not in failed], failed


def _run(
    todo: list[Cell],
    names: list[str],
    out: Path,
    ledger: Ledger,
    runner: Runner,
    label: str,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Keep `runner` busy until every cell has ended. Returns why cells failed, by name."""
    share, failed = runner.share, {}
    say(
        f"{len(todo)} of {len(names)} cells to run, {share.jobs} at once ({label}), with threads: "
        f"{share.threads}" + (f", GPUs: {share.gpus:g}" if share.gpus else "")
    )
    if share.remark:
        say(share.remark)
    waiting, running, began = todo[::-1], {}, {}
    with Board(names) as board:
        board.states |= {name: "finished" for name in names if name not in {c.name for c in todo}}

        def begin(cell: Cell) -> None:
            work = _work(cell, out)
            write_run_config(cell.config, out / "cells" / f"{cell.name}.yaml")
            commands = [shlex.join(("decision-seq", *command)) for command in work.commands]
            attempt = ledger.count(cell.name, "started") + 1
            ledger.add(
                cell.name, "started", attempt=attempt, commands=commands, runner=label,
                jobs=share.jobs, threads=share.threads, gpus=share.gpus,
            )  # fmt: skip
            say("\n".join([f"{cell.name}:", *(f"$ {command}" for command in commands)]))
            runner.start(work)
            running[cell.name], began[cell.name] = (work.run, cell.config), time.monotonic()
            board.states[cell.name] = "running"

        def end(ended: Ended) -> None:
            del running[ended.name]
            state, seconds = "finished", round(time.monotonic() - began[ended.name], 1)
            if ended.reason is None:
                ledger.add(ended.name, "finished", seconds=seconds)
                say(f"{ended.name}: finished in {seconds:.0f} s")
            else:
                state, failed[ended.name] = "failed", ended.reason
                log = str(_log(out, ended.name))
                ledger.add(ended.name, "failed", seconds=seconds, reason=ended.reason, log=log)
                say(f"{ended.name}: failed ({ended.reason}); all it said is in {log}")
            board.states[ended.name] = state

        try:
            while waiting or running:
                while waiting and len(running) < share.jobs:
                    begin(waiting.pop())
                for ended in runner.ended():
                    end(ended)
                board.draw(running)
                time.sleep(POLL)
        except KeyboardInterrupt:
            say("stopping; running cells save first, and the same command goes on")
            for name in running:
                ledger.add(name, "stopped")
            raise
        finally:
            runner.stop()
    return failed


def _work(cell: Cell, out: Path) -> Work:
    """The cell as commands."""
    run, config = out / "runs" / cell.name, out / "cells" / f"{cell.name}.yaml"
    train = ("train", str(config), "--out", str(run), "--resume")
    commands = (train, *(evaluation.command(run) for evaluation in cell.evaluations))
    lock = out / "cells" / f"{cell.name}.lock"
    log = _log(out, cell.name)
    return Work(cell.name, run, cell.config, commands, lock, log, cell.evaluations)


def _log(out: Path, name: str) -> Path:
    return out / "cells" / f"{name}.log"


def _check_labels(path: Path, matrix: CompareConfig) -> None:
    """Labels become folder names; the same cell twice would be one run counted twice."""
    for label in [*matrix.agents, *matrix.datasets, *matrix.options]:
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", label):
            raise UserError(f"{path}: label {label!r} must be letters, digits, '-', '_' and '.'")
    if len(set(matrix.seeds)) < len(matrix.seeds):
        raise UserError(f"{path}: seeds {list(matrix.seeds)} names one twice; remove it")
    for label, fields in matrix.options.items():
        if taken := fields.keys() & set(SET_BY_MATRIX):
            raise UserError(f"{path}: options.{label} sets {min(taken)}, which is the matrix's own")
