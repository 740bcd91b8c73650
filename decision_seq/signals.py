"""How long work is told to save and stop."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


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
