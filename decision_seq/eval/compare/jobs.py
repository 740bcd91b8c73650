"""The jobs of a comparison: each one run, trained and evaluated by commands that people could type.

The commands run one after the other with the job's lock held. They inherit the descriptor of the
lock file, so the lock lasts as long as any of them, even where the comparison itself was killed: a
restart waits for what still runs and does not run it twice. On Linux they are also told to save and
stop when their parent dies, so the wait is short.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from decision_seq.eval.compare.evaluations import Evaluation, finished
from decision_seq.files import try_lock
from decision_seq.run_config import RunConfig

POLL = 0.2  # seconds between looks at what runs
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """One run of the matrix, in a form that can be sent to another machine with the same
    folders."""

    name: str
    config: RunConfig
    evaluations: tuple[Evaluation, ...]  # whose rows make it finished
    out: Path  # folder of the comparison
    folder: Path = field(default_factory=Path.cwd)  # where its commands are typed
    seeds: tuple[int, ...] = ()  # trained as one with its own, which is among them

    @property
    def run(self) -> Path:
        """Its run folder."""
        return self.out / "runs" / self.name

    @property
    def config_file(self) -> Path:
        """The config that its commands read."""
        return self._file("yaml")

    @property
    def lock(self) -> Path:
        """Held while its commands run."""
        return self._file("lock")

    @property
    def log(self) -> Path:
        """All that its commands say."""
        return self._file("log")

    @property
    def together(self) -> str:
        """The run folders of `seeds`, as `train --seeds` takes them; "" if it is trained alone."""
        return str(self.run).removesuffix(str(self.config.seed)) + "{seed}" if self.seeds else ""

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """Arguments of decision-seq, command by command. Where seeds are trained together, that
        comes first; if it fails, the job's own training says whether it was for this seed."""
        train = ("train", str(self.config_file), "--out", str(self.run), "--resume")
        stacked = ("train", str(self.config_file), "--out", self.together, "--resume", "--seeds")
        first = ((*stacked, *map(str, self.seeds)),) if self.seeds else ()
        evaluations = (evaluation.command(self.run) for evaluation in self.evaluations)
        return (*first, train, *evaluations)

    @property
    def finished(self) -> bool:
        """Whether its rows are all there."""
        return finished(self.folder / self.run, self.config, self.evaluations)

    def _file(self, suffix: str) -> Path:
        return self.out / "cells" / f"{self.name}.{suffix}"


@dataclass(frozen=True)
class Result:
    """How a job ended: `reason` is why it failed, or None."""

    name: str
    reason: str | None


class JobProcess:
    """A job's commands, one after another, with its lock held."""

    def __init__(self, job: Job, environment: Mapping[str, str]) -> None:
        self.job, self.environment = job, dict(os.environ) | dict(environment)
        self.commands = list(job.commands)
        self.together = False  # whether the running command trains other jobs' seeds as well
        self.process: subprocess.Popen[bytes] | None = None
        self.lock: IO[str] | None = None
        (job.folder / job.log).parent.mkdir(parents=True, exist_ok=True)

    def poll(self) -> Result | None:
        """Go on if there is something to go on with. None while the job is running."""
        if self.lock is None:
            self.lock = _try_lock(self.job.folder / self.job.lock)
            if self.lock is None:  # commands that a killed comparison left are still running
                return None
            if self.job.finished:
                return self._end(None)
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return None
            self.process = None
            if code and not self.together:
                return self._end(_reason(code, self.job.folder / self.job.log))
        if not self.commands:
            return self._end(None)
        self.together = bool(self.job.seeds) and len(self.commands) == len(self.job.commands)
        self._start(self.commands.pop(0))
        return None

    def stop(self) -> None:
        """Tell the running command to save and stop, and wait for it."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
        self._end(None)

    def _start(self, arguments: tuple[str, ...]) -> None:
        assert self.lock is not None
        with (self.job.folder / self.job.log).open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "decision_seq", *arguments],
                cwd=self.job.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(self.lock.fileno(),),
                start_new_session=True,  # a terminal's Ctrl-C is ours to pass on
                preexec_fn=_stop_with_parent,
            )

    def _end(self, reason: str | None) -> Result:
        if self.lock is not None:
            self.lock.close()
            self.lock = None
        return Result(self.job.name, reason)


def run_to_end(job: Job, environment: Mapping[str, str]) -> Result:
    """A whole job, as a task of a cluster."""
    process = JobProcess(job, environment)
    try:
        while (end := process.poll()) is None:
            time.sleep(POLL)
        return end
    finally:
        process.stop()


def _try_lock(path: Path) -> IO[str] | None:
    """The locked file, or None while another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w", encoding="utf-8")
    if not try_lock(file.fileno()):
        file.close()
        return None
    return file


def _stop_with_parent() -> None:
    """In a command about to start: SIGTERM, which saves, once the comparison is gone."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # not between fork and start


def _reason(code: int, log: Path) -> str:
    """Why a command failed: our own sentence if it said one, else its last line."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [
        line
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    ours = [line for line in lines if line.startswith("decision-seq: ")]
    last = (ours or lines or [""])[-1].removeprefix("decision-seq: ")
    return f"exit code {code}: {last}" if last else f"exit code {code}"
