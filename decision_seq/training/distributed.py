"""Several processes that train one agent together, as `torchrun` starts them.

Every process draws the same batch and takes its own rows of it. The loss is the sum over valid
steps of the whole batch over their number, as in one process: DistributedDataParallel averages the
gradients of W processes, so each takes its own sum times W over the number of all. Process 0 alone
writes files and draws progress; what the others wait for goes through `World.rank_zero_only`, so
that an error there ends all of them. One process is a world of size 1, in which nothing is
exchanged.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from decision_seq.agents import SequenceAgent
from decision_seq.data.windows import Batch
from decision_seq.errors import UserError
from decision_seq.training.random import RandomStream

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # while process 0 rolls out; a process that died is noticed at once


@dataclass(frozen=True)
class World:
    """The processes, seen from one of them."""

    rank: int = 0
    size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def rows(self) -> slice:
        """This process's rows of a batch: every `size`-th, so shares differ by one row at most."""
        return slice(self.rank, None, self.size)

    def check(self, batch_size: int) -> None:
        """Raise UserError unless every process has a row of every batch."""
        if batch_size < self.size:
            raise UserError(
                f"train.batch_size is {batch_size}, fewer windows than the {self.size} processes "
                "that share them; start fewer processes"
            )

    def loss_of(self, agent: SequenceAgent) -> Callable[[Batch], Tensor]:
        """From this process's rows to its share of the loss, whose mean over processes is that of
        the whole batch; the gradients are averaged on the way back."""
        if self.size == 1:
            return lambda batch: agent.loss(batch)
        shared = DistributedDataParallel(Loss(agent))
        return lambda batch: shared(batch, self.mean(batch.mask.sum().float()))

    def mean(self, value: Tensor) -> Tensor:
        """Of `value` over the processes; the same number in each."""
        if self.size == 1:
            return value
        value = value / self.size
        distributed.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process. A GPU is not waited for."""
        if self.size == 1:
            return flag
        flags = torch.tensor(float(flag))
        distributed.all_reduce(flags)
        return bool(flags)

    def rank_zero_only(self, work: Callable[[], T]) -> T | None:
        """`work()` in process 0 while the others wait. If it raises there, they leave as well."""
        if self.size == 1:
            return work()
        failed = True
        try:
            result = work() if self.is_rank_zero else None
            failed = False
        finally:
            failed_anywhere = self.any(failed)
        if failed_anywhere:
            raise SystemExit(2)  # process 0 says why
        return result

    def separate(self, random: RandomStream, seed: int, step: int) -> None:
        """Give every process but the first random numbers (dropout) of its own, from `step` on."""
        if not self.is_rank_zero:
            (own,) = np.random.SeedSequence([seed, self.rank, step]).generate_state(1, np.uint64)
            random.seed(int(own))


class Loss(nn.Module):
    """An agent's loss as a module, as DistributedDataParallel and `functional_call` want it."""

    def __init__(self, agent: SequenceAgent) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, batch: Batch, valid: Tensor | None = None) -> Tensor:
        """[]; the arguments are those of `SequenceAgent.loss`."""
        return self.agent.loss(batch, valid)


def is_rank_zero() -> bool:
    """Whether this process is the one that prints: the only one, or the first of `torchrun`'s."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """The world that `torchrun` set up, and this process's device; one process where it did not."""
    size = int(os.environ.get("WORLD_SIZE", "1")) if distributed.is_torchelastic_launched() else 1
    if size == 1:
        yield World(), device
        return
    backend = "gloo"
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started more processes here than there are GPUs "
                f"({torch.cuda.device_count()}); lower --nproc-per-node, or use --device cpu"
            )
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=PATIENCE)
    world = World(distributed.get_rank(), size)
    try:
        yield world, device
    except RuntimeError as error:  # gloo and nccl say so where a process has died
        if "onnection" not in str(error):
            raise
        raise UserError(f"process {world.rank}: another one stopped; see its message") from None
    finally:
        distributed.destroy_process_group()
