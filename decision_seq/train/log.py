"""What training says while it runs (metrics.jsonl, TensorBoard), and how it is told to stop."""

from __future__ import annotations

import contextlib
import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

from decision_seq.files import read_jsonl, write_text, writing


class MetricsLog:
    """Rows of scalars by step, to `metrics.jsonl` and to TensorBoard.

    Rows beyond `start_step` (written by a run that was killed before its next checkpoint) are
    dropped, so that a resumed log equals an uninterrupted one.
    """

    def __init__(self, run: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = run / "metrics.jsonl"
        kept = [row for row in read_jsonl(self.path) if row["step"] <= start_step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        with writing(self.path):
            self._file = self.path.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, **scalars: float) -> None:
        """One row. What is not finite is left out: JSON has no word for it."""
        scalars = {name: value for name, value in scalars.items() if math.isfinite(value)}
        with writing(self.path):
            self._file.write(json.dumps({"step": step, **scalars}) + "\n")
            self._file.flush()
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError) if error else writing(self.path):
            self._file.close()
            self._board.close()


class NoLog(contextlib.AbstractContextManager["NoLog", None]):
    """The log of a process that does not write."""

    def write(self, step: int, **scalars: float) -> None:
        """Nothing."""

    def __exit__(self, *_: object) -> None:
        """Nothing."""


class StopRequest:
    """Whether Ctrl-C or SIGTERM arrived; a second one interrupts at once, unless `patient`."""

    def __init__(self, patient: bool) -> None:
        self.requested, self.patient = False, patient

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        if self.requested and not self.patient:
            raise KeyboardInterrupt
        self.requested = True


@contextlib.contextmanager
def stop_on_signal(patient: bool = False) -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM into a request to save and stop after the current step. `torchrun`
    passes on what its processes may have got already, so with `patient` a second one is ignored:
    who cannot wait is `torchrun`, which kills after 30 s."""
    request = StopRequest(patient)
    try:
        old = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us there handles signals
        old = {}
    try:
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
