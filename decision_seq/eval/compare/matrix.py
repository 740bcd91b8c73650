"""`compare`: a matrix of agents x options x datasets x seeds, a job for each."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from decision_seq.config import build, check_command, dump_yaml, load_yaml, merge, parse_overrides
from decision_seq.data.sources import resolve
from decision_seq.errors import UserError
from decision_seq.eval.compare.evaluations import Evaluation
from decision_seq.eval.compare.jobs import POLL, Job
from decision_seq.eval.compare.ledger import Ledger
from decision_seq.eval.compare.live_table import LiveTable
from decision_seq.eval.compare.runners import RUNNERS, Runner
from decision_seq.files import HAS_LOCKS, exclusive
from decision_seq.run_config import blaming, check_same_run, run_config, write_run_config
from decision_seq.shipped import config_file

SET_BY_MATRIX = ("seed", "name")  # of every job; an option would make two jobs one


@dataclass(frozen=True)
class CompareConfig:
    """The matrix. Every job is the `base` run with its agent, dataset, option and seed laid over
    it."""

    base: str  # run config: a file, relative to this one, or the name of a shipped config
    agents: dict[str, dict[str, Any]]  # label -> what to lay over the base's `agent`
    datasets: dict[str, tuple[str, ...]]  # label -> data.sources
    seeds: tuple[int, ...]
    # label -> what to lay over a job, e.g. {long: {agent: {context_length: 60}}}
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    # label of an agent -> what to lay over its jobs, e.g. {lstm: {train: {learning_rate: 1e-3}}}
    per_agent: dict[str, dict[str, Any]] = field(default_factory=dict)
    # how each trained run is evaluated, e.g. [{context: window}, {context: stream}]
    evaluations: tuple[Evaluation, ...] = (Evaluation(),)
    # laid over every job, e.g. {train: {steps: 2000}}
    overrides: dict[str, Any] = field(default_factory=dict)


def load_matrix(named: Path | str, out: Path, assignments: Sequence[str] = ()) -> list[Job]:
    """Every job of the matrix in the file `named`, or the shipped one of that name, to run in
    folder `out`. `assignments` are `--set`s over all of them, or over the matrix itself where they
    begin with one of its keys, such as `datasets.medium=[a.npz]`."""
    path = config_file(named)
    with blaming(path, assignments):
        return _jobs(path, out, assignments)


def _jobs(path: Path, out: Path, assignments: Sequence[str]) -> list[Job]:
    given = parse_overrides(assignments)
    keys = given.keys() & CompareConfig.__dataclass_fields__.keys()
    read = load_yaml(path)
    check_command(read, path, "compare")
    data = merge(read, {key: given.pop(key) for key in keys})
    matrix = build(CompareConfig, data, str(path))
    beside = path.parent / matrix.base
    base_path = beside if beside.is_file() else config_file(matrix.base)
    base = load_yaml(base_path)
    everywhere = merge(matrix.overrides, given)
    _check_labels(path, matrix, given)
    jobs = []
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
                    its_own = merge(own, matrix.per_agent.get(agent, {}))
                    fields = merge(merge(everywhere, its_own), option_fields)
                    config = run_config(base, fields, f"{path} ({base_path.name})")
                    parts = [agent, option, dataset, f"seed{seed}"]
                    name = "_".join(filter(None, parts))
                    evaluations = matrix.evaluations if config.env is not None else ()
                    jobs.append(Job(name, config, evaluations, out))
    if not jobs or not matrix.evaluations:
        raise UserError(
            f"{path}: agents, datasets, seeds and evaluations must each name at least one"
        )
    names = [job.name for job in jobs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: two jobs would be called {name}; choose other labels")
    return jobs


def run_matrix(
    matrix: Sequence[Job],
    say: Callable[[str], None],
    runner: str = "local",
    jobs: int | None = None,
    gpus_per_job: float | None = None,
) -> tuple[list[Path], dict[str, str]]:
    """Train and evaluate every job that is not finished yet.

    A failing job does not stop the others. Returns the run folders of finished jobs, and by name
    the reason for each that failed.

    Args:
        matrix: of `load_matrix`.
        say: where lines for people go.
        runner: a key of RUNNERS.
        jobs: how many at once; worked out if None.
        gpus_per_job: share of a GPU for each; worked out if None.
    """
    if runner not in RUNNERS:
        raise UserError(f"--runner {runner}: does not exist; choose {' or '.join(RUNNERS)}")
    if not HAS_LOCKS:
        raise UserError(
            "compare is not supported on this platform, whose processes inherit no file locks; use "
            "`decision-seq train` and `evaluate` for each run and `decision-seq report` for all, "
            "or Linux under Windows (WSL)"
        )
    for job in matrix:  # results of another config must not pass for this one's
        if (job.run / "config.yaml").exists():
            check_same_run(job.run, job.config)
    out = matrix[0].out
    with exclusive(out / ".compare.lock", wait=False):
        ledger = Ledger(out)
        todo = []
        for job in matrix:
            if not job.finished:
                todo.append(job)
            elif ledger.last(job.name) != "finished":  # killed before it could be written down
                ledger.add(job.name, "finished")
        failed = {}
        if len(todo) == len(matrix):
            check_data(todo)
        if todo:
            workers = RUNNERS[runner](len(todo), jobs, gpus_per_job)
            if workers.allocation.gpus:
                todo = seeds_together(todo)
            failed = _run(todo, [job.name for job in matrix], ledger, workers, runner, say)
    return [job.run for job in matrix if job.name not in failed], failed


def check_data(todo: Sequence[Job]) -> None:
    """Raise UserError where there is no data for any of the jobs; where there is for some, the
    others fail by themselves."""
    missing = []
    for sources in dict.fromkeys(job.config.data.sources for job in todo):
        try:
            for source in sources:
                resolve(source)
        except UserError as error:
            missing.append(error)
        else:
            return
    raise missing[0]


def seeds_together(todo: Sequence[Job]) -> list[Job]:
    """The same jobs; those that differ in their seed alone are trained as one by the first."""
    kinds = [
        job.name if job.config.train.stream else dump_yaml(replace(job.config, seed=0))
        for job in todo  # a state that is carried along is not stacked
    ]
    alike: dict[str, tuple[int, ...]] = {}
    for job, kind in zip(todo, kinds, strict=True):
        alike[kind] = (*alike.get(kind, ()), job.config.seed)
    return [
        replace(job, seeds=alike[kind]) if len(alike[kind]) > 1 else job
        for job, kind in zip(todo, kinds, strict=True)
    ]


def _run(
    todo: list[Job],
    names: list[str],
    ledger: Ledger,
    runner: Runner,
    label: str,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Keep `runner` busy until every job has ended. Returns why jobs failed, by name."""
    allocation, failed = runner.allocation, {}
    gpus = f", GPUs: {allocation.gpus:g}" if allocation.gpus else ""
    say(
        f"{len(todo)} of {len(names)} jobs to run, {allocation.jobs} at once ({label}), with "
        f"threads: {allocation.threads}{gpus}"
    )
    if allocation.remark:
        say(allocation.remark)
    waiting, running, began = todo[::-1], {}, {}
    with LiveTable(names) as table:
        table.states |= {name: "finished" for name in names if name not in {j.name for j in todo}}

        def begin(job: Job) -> None:
            write_run_config(job.config, job.config_file)
            commands = [shlex.join(("decision-seq", *command)) for command in job.commands]
            attempt = ledger.count(job.name, "started") + 1
            ledger.add(
                job.name, "started", attempt=attempt, commands=commands, runner=label,
                jobs=allocation.jobs, threads=allocation.threads, gpus=allocation.gpus,
            )  # fmt: skip
            say("\n".join([f"{job.name}:", *(f"$ {command}" for command in commands)]))
            runner.start(job)
            running[job.name], began[job.name] = job, time.monotonic()
            table.states[job.name] = "running"

        def end(name: str, reason: str | None) -> None:
            log = str(running.pop(name).log)
            state, seconds = "finished", round(time.monotonic() - began[name], 1)
            if reason is None:
                ledger.add(name, "finished", seconds=seconds)
                say(f"{name}: finished in {seconds:.0f} s")
            else:
                state, failed[name] = "failed", reason
                ledger.add(name, "failed", seconds=seconds, reason=reason, log=log)
                say(f"{name}: failed ({reason}); all it said is in {log}")
            table.states[name] = state

        try:
            while waiting or running:
                while len(running) < allocation.jobs:
                    busy = {job.together for job in running.values()} - {""}
                    ready = [job for job in waiting if job.together not in busy]
                    if not ready:
                        break
                    waiting.remove(ready[-1])
                    begin(ready[-1])
                for result in runner.results():
                    end(result.name, result.reason)
                table.draw(running)
                time.sleep(POLL)
        except KeyboardInterrupt:
            say("stopping; running jobs save first, and the same command goes on")
            for name in running:
                ledger.add(name, "stopped")
            raise
        finally:
            runner.stop()
    return failed


def _check_labels(path: Path, matrix: CompareConfig, given: dict[str, Any]) -> None:
    """Labels become folder names; the same job twice would be one run counted twice. What overrides
    say of a job, those `given` by --set too, lies below what the matrix says of it."""
    for label in [*matrix.agents, *matrix.datasets, *matrix.options]:
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", label):
            raise UserError(f"{path}: label {label!r} must be letters, digits, '-', '_' and '.'")
    if len(set(matrix.seeds)) < len(matrix.seeds):
        raise UserError(f"{path}: seeds {list(matrix.seeds)} names one twice; remove it")
    if unknown := matrix.per_agent.keys() - matrix.agents.keys():
        raise UserError(
            f"{path}: per_agent names {min(unknown)}, which is none of agents: "
            f"{', '.join(matrix.agents)}"
        )
    laid = {"overrides": matrix.overrides}
    laid |= {f"options.{label}": fields for label, fields in matrix.options.items()}
    laid |= {f"per_agent.{label}": fields for label, fields in matrix.per_agent.items()}
    for key, fields in laid.items():
        if taken := fields.keys() & set(SET_BY_MATRIX):
            raise UserError(f"{path}: {key} sets {min(taken)}, which is the matrix's own")
    for key, fields in (("overrides", matrix.overrides), ("--set", given)):
        data = fields.get("data")
        if isinstance(data, dict) and "sources" in data:
            raise UserError(f"{path}: {key} sets data.sources; name them under datasets")
