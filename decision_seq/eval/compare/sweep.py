"""`sweep`: a search over settings. Optuna proposes trials, and the runners of comparisons do them.

Trials are proposed a batch at a time and a batch is run to its end before the next is proposed,
each trial by a sampler that is seeded with its number. So which settings are tried depends on the
sweep alone, not on how many run at once, which ends first, or how often it was interrupted.

OUT/optuna.log is Optuna's journal, which its own tools read; runs, jobs and ledger lie beside it as
those of `compare` do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from decision_seq.config import (
    build,
    check_command,
    dump_yaml,
    in_words,
    load_yaml,
    merge,
    parse_overrides,
    to_plain,
)
from decision_seq.errors import UserError
from decision_seq.eval.compare.evaluations import Evaluation
from decision_seq.eval.compare.jobs import Job
from decision_seq.eval.compare.matrix import run_matrix
from decision_seq.eval.rows import read_rows
from decision_seq.files import exclusive, write_text
from decision_seq.run_config import RunConfig, blaming, run_config
from decision_seq.run_folder import TRIAL, read_index
from decision_seq.settings import check_seed
from decision_seq.shipped import config_file

if TYPE_CHECKING:
    import optuna

JOURNAL, SETTINGS = "optuna.log", "sweep.yaml"
Objective = Literal["validation_loss", "rollouts"]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones if both are."""

    low: Any
    high: Any
    log: bool = False  # evenly in their logarithm

    def __post_init__(self) -> None:
        if not all(type(end) in (int, float) for end in (self.low, self.high)):
            raise UserError(f"low and high are {self.low!r} and {self.high!r}; give two numbers")
        if self.low >= self.high or (self.log and self.low <= 0):
            raise UserError(
                f"low is {self.low} and high {self.high}; low must be below high, and above 0 "
                "where log is true"
            )


@dataclass(frozen=True)
class SweepConfig:
    """The search. Every trial is the `base` run with its values of `space` laid over it."""

    base: str  # run config: a file, relative to this one, or the name of a shipped config
    # key, such as train.learning_rate -> a list to choose from, or {low, high, log}
    space: dict[str, Any]
    trials: int
    # what is best: the lowest validation loss of the last checkpoint, which costs no rollouts; or
    # the highest score in rollouts, of which each trial then gets as many again for the report
    objective: Objective = "validation_loss"
    batch: int = 1  # trials proposed at once, so that they can run side by side
    seed: int = 0  # of what is tried; that of training is the base's
    overrides: dict[str, Any] = field(default_factory=dict)  # laid over every trial

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.trials < 1 or self.batch < 1 or not self.space:
            raise UserError("trials and batch must be at least 1, and space name at least one key")


@dataclass(frozen=True)
class Trial:
    """What was tried and what came of it."""

    number: int
    parameters: dict[str, Any]  # by config key
    value: float | None  # of the objective; None if it failed
    run: Path


@dataclass(frozen=True)
class Sweep:
    """A search, ready to run in `out`."""

    config: SweepConfig
    base: dict[str, Any]  # run config, as in its file
    source: str  # where both are from, for messages
    out: Path

    def run(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.out / "runs" / f"trial-{number:03d}"

    def job(self, number: int, parameters: Mapping[str, Any]) -> Job:
        """The run of a trial. Raises UserError where its config is not as it must be."""
        name = self.run(number).name
        tried = parse_overrides(f"{key}={json.dumps(value)}" for key, value in parameters.items())
        fields = merge(merge(self.config.overrides, tried), {"name": name})
        config = run_config(self.base, fields, f"{self.source}, {_words(parameters)}")
        judging = (Evaluation(checkpoint="selection"),) * (self.config.objective == "rollouts")
        evaluations = (*judging, Evaluation()) if config.env is not None else ()
        return Job(name, config, evaluations, self.out)

    def value(self, job: Job) -> float:
        """What the objective says of a run that has ended."""
        if self.config.objective == "validation_loss":
            loss = read_index(job.run)["last"]["validation_loss"]
            if loss is None:
                raise UserError(
                    f"{job.run}: data.validation_fraction {job.config.data.validation_fraction:g} "
                    "holds out none of its few episodes, so no loss can judge; raise it, "
                    "or let rollouts judge, and choose another --out"
                )
            return float(loss)
        rows = [row for row in read_rows(job.run) if row["checkpoint"] == "selection"]
        scored = all(row["normalized_score"] is not None for row in rows)
        return float(
            np.mean([row["normalized_score" if scored else "episode_return"] for row in rows])
        )


def load_sweep(named: Path | str, out: Path, assignments: Sequence[str] = ()) -> Sweep:
    """The search in the file `named`, or the shipped one of that name, to run in folder `out`.
    `assignments` are `--set`s over every trial, or over the search itself where they begin with one
    of its keys, such as `trials=50`.

    Raises UserError where a key is unknown, or the objective cannot be had.
    """
    path = config_file(named)
    with blaming(path, assignments):
        return _sweep(path, out, assignments)


def _sweep(path: Path, out: Path, assignments: Sequence[str]) -> Sweep:
    given = parse_overrides(assignments)
    keys = given.keys() & SweepConfig.__dataclass_fields__.keys()
    read = load_yaml(path)
    check_command(read, path, "sweep")
    config = build(SweepConfig, merge(read, {k: given.pop(k) for k in keys}), str(path))
    config = replace(config, overrides=merge(config.overrides, given))
    beside = path.parent / config.base
    base_path = beside if beside.is_file() else config_file(config.base)
    sweep = Sweep(config, load_yaml(base_path), f"{path} ({base_path.name})", out)
    for key, choices in config.space.items():
        if not isinstance(choices, list | Mapping) or not choices:
            raise UserError(f"{path}: `space.{key}` must be a list, or {{low: ..., high: ...}}")
        if isinstance(choices, Mapping):
            build(Range, choices, str(path), f"space.{key}")
    _check_objective(path, sweep)
    return sweep


def run_sweep(
    sweep: Sweep,
    say: Callable[[str], None],
    runner: str = "local",
    jobs: int | None = None,
    gpus_per_job: float | None = None,
) -> tuple[list[Trial], dict[str, str]]:
    """Run every trial that has not ended yet; those that were interrupted go on.

    Args:
        sweep: of `load_sweep`.
        say, runner, jobs, gpus_per_job: as of `run_matrix`.

    Returns:
        All trials by number, and by the name of its run why a trial of this call failed.

    Raises:
        UserError: Optuna is missing, or the folder holds another search.
    """
    config, failed = sweep.config, dict[str, str]()
    with _study(sweep) as (optuna, study):
        states = optuna.trial.TrialState
        while True:
            begun = study.get_trials(deepcopy=False, states=(states.RUNNING,))
            batch = [(t.number, _values(t.params)) for t in begun]
            ended = len(study.trials) - len(batch)
            size = min(config.batch - ended % config.batch, config.trials - ended)
            while len(batch) < size:
                number = len(study.trials)
                # seeded by the trial, so that an interruption within a batch changes nothing
                own = np.random.SeedSequence([config.seed, number]).generate_state(1)[0]
                study.sampler = optuna.samplers.TPESampler(seed=int(own))
                batch.append((number, _values(study.ask(_distributions(optuna, config)).params)))
            if not batch:
                break
            matrix, broken = _jobs(sweep, batch)
            if matrix:
                broken |= run_matrix([*matrix.values()], say, runner, jobs, gpus_per_job)[1]
            for number, parameters in batch:
                name = sweep.run(number).name
                if name in broken:
                    study.tell(number, state=states.FAIL)
                    continue
                value = sweep.value(matrix[number])
                study.tell(number, value)
                say(f"{name}: {config.objective} {value:.5g} with {_words(parameters)}")
            failed |= broken
        trials = [
            Trial(t.number, _values(t.params), t.value, sweep.run(t.number)) for t in study.trials
        ]
    return trials, failed


def ranked(trials: Sequence[Trial], objective: Objective) -> list[Trial]:
    """The best by the objective first, those that failed last; of equals the earlier."""
    sign = -1 if objective == "rollouts" else 1
    return sorted(trials, key=lambda t: (t.value is None, sign * (t.value or 0.0), t.number))


def _jobs(
    sweep: Sweep, batch: Sequence[tuple[int, dict[str, Any]]]
) -> tuple[dict[int, Job], dict[str, str]]:
    """The jobs of a batch by number, with what they try written into their run folders; and by name
    why a trial has none: its values do not go together."""
    matrix, broken = {}, {}
    for number, parameters in batch:
        try:
            job = matrix[number] = sweep.job(number, parameters)
        except UserError as error:
            broken[sweep.run(number).name] = str(error)
            continue
        about = {"parameters": parameters, "objective": sweep.config.objective}
        write_text(job.run / TRIAL, json.dumps(about))
    return matrix, broken


@contextmanager
def _study(sweep: Sweep) -> Iterator[tuple[Any, optuna.Study]]:
    """Optuna, and the search's study, new or as it was left."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise UserError("sweep needs Optuna: pip install 'decision-seq[sweep]'") from None
    out, said = sweep.out, optuna.logging.get_verbosity()
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out / ".sweep.lock", wait=False):
        _check_same(sweep)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            yield (
                optuna,
                optuna.create_study(
                    storage=JournalStorage(JournalFileBackend(str(out / JOURNAL))),
                    study_name="sweep",
                    direction="maximize" if sweep.config.objective == "rollouts" else "minimize",
                    load_if_exists=True,
                ),
            )
        finally:
            optuna.logging.set_verbosity(said)


def _distributions(optuna: Any, config: SweepConfig) -> dict[str, Any]:
    """The space as Optuna has it: choices are JSON texts, so that they can be anything."""
    found: dict[str, Any] = {}
    for key, choices in config.space.items():
        if isinstance(choices, list):
            texts = [json.dumps(choice) for choice in choices]
            found[key] = optuna.distributions.CategoricalDistribution(texts)
            continue
        given = Range(**choices)
        whole = type(given.low) is type(given.high) is int
        kind = optuna.distributions.IntDistribution if whole else (
            optuna.distributions.FloatDistribution)  # fmt: skip
        found[key] = kind(given.low, given.high, log=given.log)
    return found


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What Optuna chose, as the config has it."""
    return {k: json.loads(v) if isinstance(v, str) else v for k, v in parameters.items()}


def _check_objective(path: Path, sweep: Sweep) -> None:
    """Raise UserError where trials could not be judged; builds one, to see that keys are known."""
    first = {k: c[0] if isinstance(c, list) else c["low"] for k, c in sweep.config.space.items()}
    run: RunConfig = sweep.job(0, first).config
    if sweep.config.objective == "rollouts" and run.env is None:
        raise UserError(f"{path}: objective is rollouts, but the runs name no env")
    if sweep.config.objective == "validation_loss" and not run.data.validation_fraction:
        raise UserError(
            f"{path}: objective is validation_loss, but data.validation_fraction is 0; raise it, "
            "or let rollouts judge"
        )


def _check_same(sweep: Sweep) -> None:
    """Raise UserError where the folder holds another search, up to the number of trials."""
    path = sweep.out / SETTINGS
    plain = {k: v for k, v in to_plain(sweep.config).items() if k not in ("trials", "base")}
    plain["run"] = to_plain(run_config(sweep.base, sweep.config.overrides, sweep.source))
    if path.is_file():
        before = load_yaml(path)
        changed = [key for key in plain if before.get(key) != plain[key]]
        if changed:
            raise UserError(
                f"{path}: the search there has other settings ({', '.join(changed)}); use the same "
                "config, or choose another --out"
            )
    write_text(path, dump_yaml(plain))


def _words(parameters: Mapping[str, Any]) -> str:
    """train.learning_rate 0.00031, agent.preset bc"""
    return ", ".join(f"{key} {in_words(value)}" for key, value in parameters.items())
