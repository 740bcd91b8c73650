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

    generators: the stream's own on a GPU, where it lends its state to the global one: that can be
        done within the recording of a CUDA graph, which then has to know them. Empty on a CPU.
    """

    def __init__(self, seed: int = 0, device: torch.device | None = None) -> None:
        self._lent: list[torch.Generator] = []  # the global ones of a GPU
        self.generators: list[torch.Generator] = []
        if device is not None and device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.init()
            self._lent.append(torch.cuda.default_generators[index])
            self.generators.append(torch.Generator(torch.device("cuda", index)))
        self._own = self._others = torch.default_generator.get_state()
        self._theirs: list[torch.Generator] = []
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Begin anew."""
        with self:
            for generator in (torch.default_generator, *self._lent):
                generator.manual_seed(seed)

    def state(self) -> list[Tensor]:
        """Where the stream is: the state of the CPU's generator and, on a GPU, of its own."""
        return [self._own, *(generator.get_state() for generator in self.generators)]

    def restore(self, state: Sequence[Tensor]) -> None:
        """Go on from `state`; on another kind of device, as far as it says."""
        with self:
            for generator, own in zip((torch.default_generator, *self._lent), state, strict=False):
                generator.set_state(own)

    def __enter__(self) -> None:
        _turn.acquire()
        self._others = torch.default_generator.get_state()
        torch.default_generator.set_state(self._own)
        self._theirs = [generator.graphsafe_get_state() for generator in self._lent]
        for generator, own in zip(self._lent, self.generators, strict=True):
            generator.graphsafe_set_state(own)

    def __exit__(self, *_: object) -> None:
        self._own = torch.default_generator.get_state()
        torch.default_generator.set_state(self._others)
        for generator, theirs in zip(self._lent, self._theirs, strict=True):
            generator.graphsafe_set_state(theirs)
        _turn.release()
