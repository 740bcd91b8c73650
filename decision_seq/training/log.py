"""What training says while it runs: metrics.jsonl, loggers."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from decision_seq.files import read_jsonl, write_text, writing
from decision_seq.run_config import RunConfig
from decision_seq.training.loggers import LoggedRun, Loggers


class MetricsLog:
    """Rows of scalars by step, to `metrics.jsonl` and to the loggers of `config`.

    Rows beyond `start_step` (written by a run that was killed before its next checkpoint) are
    dropped, so that a resumed log equals an uninterrupted one.
    """

    def __init__(self, run: Path, config: RunConfig, start_step: int) -> None:
        self.path = run / "metrics.jsonl"
        rows = read_jsonl(self.path)
        self._sent = [(row["step"], key) for row in rows if row["step"] > start_step for key in row]
        kept = [row for row in rows if row["step"] <= start_step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._loggers = Loggers(LoggedRun(run, config, start_step))
        with writing(self.path):
            self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, **values: float | None) -> None:
        """One row. What is unknown is left out, and what is not finite: JSON has no word for it."""
        scalars = {k: v for k, v in values.items() if v is not None and math.isfinite(v)}
        with writing(self.path):
            self._file.write(json.dumps({"step": step, **scalars}) + "\n")
            self._file.flush()
            sent = frozenset(key for at, key in self._sent if at == step)
            self._loggers.write(step, scalars, sent)

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
            self._loggers.close(failed=error is not None)


def log_result(run: Path, config: RunConfig, step: int, scalars: Mapping[str, float]) -> None:
    """What a run came to, for its loggers: `scalars` at `step`."""
    with writing(run):
        loggers = Loggers(LoggedRun(run, config))
        loggers.result(step, scalars)
        loggers.close(failed=False)


class NoLog(contextlib.AbstractContextManager["NoLog", None]):
    """The log of a process that does not write."""

    def write(self, step: int, **values: float | None) -> None:
        """Nothing."""

    def __exit__(self, *_: object) -> None:
        """Nothing."""
