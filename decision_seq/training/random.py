"""Random numbers of one run, whatever else in the process draws some."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

_turn = threading.Lock()  # a process has one generator a device


class RandomStream:
    """torch's generators of the CPU and of `device`, as one run draws from them.

    Within `with stream:` they go on where this stream was left; outside they are what they were. So
    initialisation and dropout are functions of the seed alone, although layers draw from global
    generators: runs in threads of one process take turns, and a caller's own draws neither change
    the run's nor are changed.
    """

    def __init__(self, seed: int = 0, device: torch.device | None = None) -> None:
        self._generators = [torch.default_generator]
        if device is not None and device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.init()
            self._generators.append(torch.cuda.default_generators[index])
        self._own = self._others = self._read()
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Begin anew."""
        with self:
            for generator in self._generators:
                generator.manual_seed(seed)

    def state(self) -> list[Tensor]:
        """Where the stream is: the state of the CPU's generator and, on a GPU, of its own."""
        return self._own

    def restore(self, state: Sequence[Tensor]) -> None:
        """Go on from `state`; on another kind of device, as far as it says."""
        with self:
            for generator, own in zip(self._generators, state, strict=False):
                generator.set_state(own)

    def __enter__(self) -> None:
        _turn.acquire()
        self._others = self._read()
        for generator, own in zip(self._generators, self._own, strict=True):
            generator.set_state(own)

    def __exit__(self, *_: object) -> None:
        self._own = self._read()
        for generator, theirs in zip(self._generators, self._others, strict=True):
            generator.set_state(theirs)
        _turn.release()

    def _read(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators]
