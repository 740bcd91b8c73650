"""A runner of comparisons and sweeps in this process, which has imported what the commands need."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence

import pytest

from decision_seq.cli import main
from decision_seq.eval.compare.jobs import Job, Result
from decision_seq.eval.compare.runners import Allocation
from decision_seq.files import exclusive


class Here:
    """Runs a job's commands one after the other."""

    allocation = Allocation(jobs=1, threads=1)

    def __init__(self, *_: object) -> None:
        self.ended: list[Result] = []

    def start(self, job: Job) -> None:
        said, code = io.StringIO(), 0
        with (
            exclusive(job.lock, wait=True),
            contextlib.redirect_stderr(said),
        ):
            for command in job.commands:
                code = code or typed(command)
        reason = said.getvalue().splitlines()[-1] if code else None
        self.ended.append(Result(job.name, reason))

    def results(self) -> list[Result]:
        ended, self.ended = self.ended, []
        return ended

    def stop(self) -> None:
        """Nothing runs on."""


def typed(arguments: Sequence[str]) -> int:
    """A command in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["decision-seq", *arguments])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0
