"""Loggers: where the scalars of a run go beside metrics.jsonl, by the names that `train.loggers`
lists. A new one is a class here and a line of LOGGERS, with its name in settings.LoggerName.

Each is told what its own package wants to know by that package's variables (WANDB_MODE,
WANDB_PROJECT, MLFLOW_TRACKING_URI, TRACKIO_DIR, ...); unset, all of them need no account but wandb.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from decision_seq.config import to_plain
from decision_seq.errors import UserError
from decision_seq.files import write_text, writing
from decision_seq.run_config import RunConfig
from decision_seq.variables import taken_back

PROJECT = "decision-seq"
ID_FILE = "logger-id"  # of the run folder: what the run is called where names must be unique

Scalars = Mapping[str, float]


@dataclass(frozen=True)
class LoggedRun:
    """What loggers are opened for."""

    folder: Path  # run folder
    config: RunConfig  # shown as the run's settings
    # a run begins at 0, or goes on after this step: what was logged of later ones is void. None
    # where only a result is added
    start_step: int | None = None

    @cached_property
    def id(self) -> str:
        """What loggers call the run: made when it begins, kept in its folder."""
        path = self.folder / ID_FILE
        if self.start_step == 0 or not path.is_file():
            write_text(path, uuid.uuid4().hex[:12])
        return path.read_text(encoding="utf-8")


class Logger(ABC):
    """A run in one logger, opened to be written: new, or the one that has its id already."""

    module: ClassVar[str]  # that must be installed
    extra: ClassVar[str] = ""  # that installs it; "" if the package itself does
    # it is as close as metrics.jsonl: it drops what is void, and a full disk stops the run
    own: ClassVar[bool] = False
    remedy: ClassVar[str] = "leave it out"  # where it cannot be opened

    @abstractmethod
    def __init__(self, run: LoggedRun) -> None: ...

    @abstractmethod
    def write(self, step: int, scalars: Scalars) -> None:
        """Finite numbers by name."""

    def result(self, step: int, scalars: Scalars) -> None:
        """What the run came to at `step`."""
        self.write(step, scalars)

    @abstractmethod
    def close(self, failed: bool) -> None:
        """Flush. `failed` if an error ended the run."""


class TensorBoard(Logger):
    """Event files in the run folder's tensorboard/."""

    module, own = "tensorboard", True

    def __init__(self, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / "tensorboard"
        # files are read in the order of their names, in which those of one second have none: a
        # restart that is read too late takes away what came after it
        while any(folder.glob(f"*.{int(time.time())}.*")):
            time.sleep(0.05)
        purged = None if run.start_step is None else run.start_step + 1
        self._board = SummaryWriter(str(folder), purge_step=purged)
        self._config = run.config

    def write(self, step: int, scalars: Scalars) -> None:
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def result(self, step: int, scalars: Scalars) -> None:
        """With the config's fields beside them as hyperparameters (its HPARAMS page)."""
        from torch.utils.tensorboard.summary import hparams

        self.write(step, scalars)
        assert self._board.file_writer is not None  # while it is open
        for part in hparams(_flat(to_plain(self._config)), dict(scalars)):
            self._board.file_writer.add_summary(part)

    def close(self, failed: bool) -> None:
        self._board.close()


class Wandb(Logger):
    """Weights & Biases; with WANDB_MODE=offline files in the run folder's wandb/, for `wandb
    sync`."""

    module, extra = "wandb", "wandb"
    remedy = "do `wandb login`, set WANDB_MODE=offline, or leave it out"

    def __init__(self, run: LoggedRun) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.id,
            name=run.folder.name,
            dir=str(run.folder),
            config=to_plain(run.config),
            resume="allow",
            reinit="create_new",  # several seeds have a run each, side by side
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")  # its own steps only rise

    def write(self, step: int, scalars: Scalars) -> None:
        self._run.log({"step": step, **scalars})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class Trackio(Logger):
    """Trackio, local: TRACKIO_DIR, or its folder in the cache; `trackio show` draws it."""

    module, extra = "trackio", "trackio"

    def __init__(self, run: LoggedRun) -> None:
        import trackio

        with contextlib.redirect_stdout(sys.stderr):
            self._run = trackio.init(
                os.environ.get("TRACKIO_PROJECT", PROJECT),
                name=f"{run.folder.name}-{run.id}",
                config=to_plain(run.config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def write(self, step: int, scalars: Scalars) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self, failed: bool) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


class MLflow(Logger):
    """MLflow's tracking: MLFLOW_TRACKING_URI, by default mlflow.db in the working folder."""

    module, extra = "mlflow", "mlflow"

    def __init__(self, run: LoggedRun) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        place = found.experiment_id if found else self._client.create_experiment(name)
        before = self._client.search_runs([place], f"tags.`{PROJECT}` = '{run.id}'", max_results=1)
        if before:
            self._id = before[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        new = self._client.create_run(place, run_name=run.folder.name, tags={PROJECT: run.id})
        self._id = new.info.run_id
        for key, value in _flat(to_plain(run.config)).items():
            self._client.log_param(self._id, key, str(value)[:500])  # its limit

    def write(self, step: int, scalars: Scalars) -> None:
        for name, value in scalars.items():
            key = re.sub(r"[^\w\-. :/]", "_", name)  # what else its names may not hold
            self._client.log_metric(self._id, key, value, step=step)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


LOGGERS: dict[str, type[Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": MLflow,
}


def check_loggers(names: Sequence[str]) -> None:
    """Raise UserError unless all of them are installed."""
    for name in names:
        if not importlib.util.find_spec(LOGGERS[name].module):
            raise UserError(
                f"train.loggers names {name}, which is not installed: "
                f"pip install 'decision-seq[{LOGGERS[name].extra}]'"
            )


class Loggers:
    """All that `run` is written to. One that fails on the way is left out from then on, with a
    sentence on stderr: metrics.jsonl has the same numbers.

    Raises UserError naming one that cannot be opened; where only a result is added it is left out.
    """

    def __init__(self, run: LoggedRun) -> None:
        self._open: dict[str, Logger] = {}
        try:
            for name in run.config.train.loggers:
                self._begin(name, run)
        except BaseException:
            self.close(failed=True)
            raise

    def write(self, step: int, scalars: Scalars, sent: frozenset[str] = frozenset()) -> None:
        """`sent` names scalars of that step that were written before the run was resumed: a logger
        that cannot drop them does not get them again."""
        for name, logger in [*self._open.items()]:
            new = {k: v for k, v in scalars.items() if logger.own or k not in sent}
            if new:
                self._ask(name, logger.write, step, new)

    def result(self, step: int, scalars: Scalars) -> None:
        """What the run came to at `step`."""
        for name, logger in [*self._open.items()]:
            self._ask(name, logger.result, step, scalars)

    def close(self, failed: bool) -> None:
        """Flush all of them."""
        for name, logger in [*self._open.items()]:
            self._ask(name, logger.close, failed)

    def _begin(self, name: str, run: LoggedRun) -> None:
        kind = LOGGERS[name]
        try:
            with writing(run.folder) if kind.own else taken_back():
                self._open[name] = kind(run)
        except Exception as error:  # a stranger's package may fail in any way
            if kind.own or isinstance(error, UserError):
                raise
            said = f"train.loggers: {name} cannot be opened ({_first_line(error)})"
            if run.start_step is not None:
                raise UserError(f"{said}; {kind.remedy}") from error
            print(said, file=sys.stderr)

    def _ask(self, name: str, act: Callable[..., None], *arguments: Any) -> None:
        if self._open[name].own:
            act(*arguments)
            return
        try:
            with taken_back():
                act(*arguments)
        except Exception as error:
            del self._open[name]
            print(f"{name}: is no longer logged to ({_first_line(error)})", file=sys.stderr)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; what is not a plain value is text."""
    if isinstance(value, Mapping):
        parts = [_flat(part, f"{key}.{name}" if key else name) for name, part in value.items()]
        return {name: leaf for part in parts for name, leaf in part.items()}
    return {key: value if isinstance(value, bool | int | float | str) else str(value)}
