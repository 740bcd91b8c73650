"""What training says while it runs (metrics.jsonl, TensorBoard), and how it is told to stop."""

from __future__ import annotations

import contextlib
import json
import math
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from decision_seq.config import to_plain
from decision_seq.files import read_jsonl, write_text, writing
from decision_seq.run_config import RunConfig


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

    def write(self, step: int, **values: float | None) -> None:
        """One row. What is unknown is left out, and what is not finite: JSON has no word for it."""
        scalars = {k: v for k, v in values.items() if v is not None and math.isfinite(v)}
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


def log_result(run: Path, config: RunConfig, step: int, scalars: Mapping[str, float]) -> None:
    """What a run came to, for TensorBoard: `scalars` at `step`, and the config's fields beside them
    as hyperparameters (its HPARAMS page)."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    with writing(run / "tensorboard"), SummaryWriter(str(run / "tensorboard")) as board:
        for name, value in scalars.items():
            board.add_scalar(name, value, step)
        for part in hparams(_flat(to_plain(config)), dict(scalars)):
            board.file_writer.add_summary(part)


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; what is not a plain value is text."""
    if isinstance(value, Mapping):
        parts = [_flat(part, f"{key}.{name}" if key else name) for name, part in value.items()]
        return {name: leaf for part in parts for name, leaf in part.items()}
    return {key: value if isinstance(value, bool | int | float | str) else str(value)}


class NoLog(contextlib.AbstractContextManager["NoLog", None]):
    """The log of a process that does not write."""

    def write(self, step: int, **values: float | None) -> None:
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
