"""A cell of a comparison at work: its commands, run one after the other with its lock held.

The commands inherit the descriptor of the lock file, so the lock lasts as long as any of them, even
where the comparison itself was killed: a restart waits for what still runs and does not run it
twice. On Linux they are also told to save and stop when their parent dies, so the wait is short.
"""

from __future__ import annotations

import ctypes
import fcntl
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
from decision_seq.run_config import RunConfig

POLL = 0.2  # seconds between looks at what runs
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Work:
    """A cell to run, in a form that can be sent to another machine with the same folders."""

    name: str
    run: Path
    config: RunConfig
    commands: tuple[tuple[str, ...], ...]  # arguments of decision-seq
    lock: Path
    log: Path  # what the commands say
    evaluations: tuple[Evaluation, ...] = (Evaluation(),)  # whose rows make it finished
    folder: Path = field(default_factory=Path.cwd)  # where they are typed


@dataclass(frozen=True)
class Ended:
    """How a cell ended: `reason` is why it failed, or None."""

    name: str
    reason: str | None


class CellProcess:
    """A cell's commands, one after another, with its lock held."""

    def __init__(self, work: Work, environment: Mapping[str, str]) -> None:
        self.work, self.environment = work, dict(os.environ) | dict(environment)
        self.commands = list(work.commands)
        self.process: subprocess.Popen[bytes] | None = None
        self.lock: IO[str] | None = None
        (work.folder / work.log).parent.mkdir(parents=True, exist_ok=True)

    def poll(self) -> Ended | None:
        """Go on if there is something to go on with. None while the cell is running."""
        if self.lock is None:
            self.lock = _try_lock(self.work.folder / self.work.lock)
            if self.lock is None:  # commands that a killed comparison left are still running
                return None
            run = self.work.folder / self.work.run
            if finished(run, self.work.config, self.work.evaluations):
                return self._end(None)
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return None
            self.process = None
            if code:
                return self._end(_reason(code, self.work.folder / self.work.log))
        if not self.commands:
            return self._end(None)
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
        with (self.work.folder / self.work.log).open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "decision_seq", *arguments],
                cwd=self.work.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(self.lock.fileno(),),
                start_new_session=True,  # a terminal's Ctrl-C is ours to pass on
                preexec_fn=_stop_with_parent,
            )

    def _end(self, reason: str | None) -> Ended:
        if self.lock is not None:
            self.lock.close()
            self.lock = None
        return Ended(self.work.name, reason)


def run_to_end(work: Work, environment: Mapping[str, str]) -> Ended:
    """A whole cell, as a task of a cluster."""
    process = CellProcess(work, environment)
    try:
        while (end := process.poll()) is None:
            time.sleep(POLL)
        return end
    finally:
        process.stop()


def _try_lock(path: Path) -> IO[str] | None:
    """The locked file, or None while another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _stop_with_parent() -> None:
    """In a command about to start: SIGTERM, which saves, once the comparison is gone."""
    if sys.platform == "linux":
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


_LIBC = ctypes.CDLL(None)


def _reason(code: int, log: Path) -> str:
    """Why a command failed: our own sentence if it said one, else its last line."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("decision-seq: ")]
    last = (ours or lines or [""])[-1].removeprefix("decision-seq: ")
    return f"exit code {code}: {last}" if last else f"exit code {code}"
