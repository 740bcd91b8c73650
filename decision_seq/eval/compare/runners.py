"""Where the cells of a comparison run: processes of this machine, or tasks of a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from decision_seq.errors import UserError
from decision_seq.eval.compare.jobs import CellProcess, Ended, Work, run_to_end

MEMORY_A_CELL = 2.0  # GiB: Python with torch and MuJoCo, and room for data and activations
PASSED_ON = ("DECISION_SEQ_", "MINARI_", "MUJOCO_")  # variables a cluster's workers need as well


@dataclass(frozen=True)
class Share:
    """What is running at once, and what each cell gets."""

    jobs: int
    threads: int
    gpus: float = 0.0  # of each cell
    remark: str = ""  # a sentence if there is something to be said


class Runner(Protocol):
    """Runs up to `share.jobs` cells at a time."""

    share: Share

    def start(self, work: Work) -> None:
        """Begin a cell."""

    def ended(self) -> list[Ended]:
        """Cells that have ended since the last question."""

    def stop(self) -> None:
        """Let the cells that still run save and stop, wait for them, and clean up."""


def share_out(
    cells: int,
    jobs: int | None,
    gpus_per_cell: float | None,
    cores: int,
    memory: float,
    gpus: float,
) -> Share:
    """Divide a machine or cluster among cells.

    Args:
        cells: how many there are to run.
        jobs: at once, if someone said so.
        gpus_per_cell: likewise; by default one, or the share of it that `jobs` leaves.
        cores: CPU cores.
        memory: free, GiB; infinite where somebody else looks after it.
        gpus: GPUs.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs is {jobs}; it must be at least 1")
    if gpus_per_cell is not None and not 0 < gpus_per_cell <= max(gpus, 1):
        raise UserError(f"--gpus-per-cell is {gpus_per_cell}; there are {gpus:g} GPUs")
    wanted, remark = min(cells, jobs or cores), ""
    if gpus:
        each = gpus_per_cell or min(1.0, gpus / (jobs or gpus))
        wanted = min(wanted, int(gpus / each + 1e-9))
    fitting = max(1, int(min(memory / MEMORY_A_CELL, cells)))
    if jobs is None and fitting < wanted:
        remark = (
            f"{fitting} cells at once instead of {wanted}: {memory:.1f} GiB of memory are free and "
            f"a cell may take {MEMORY_A_CELL:g}; --jobs {wanted} insists"
        )
        wanted = fitting
    said = os.environ.get("OMP_NUM_THREADS", "")  # the user knows better
    threads = int(said) if said.isdecimal() else max(1, cores // wanted)
    return Share(wanted, threads, each if gpus else 0.0, remark)


class LocalRunner:
    """Processes of this machine, which share its cores and GPUs."""

    def __init__(self, cells: int, jobs: int | None, gpus_per_cell: float | None) -> None:
        import torch

        self.gpus = torch.cuda.device_count()
        self.share = share_out(cells, jobs, gpus_per_cell, cores(), free_memory(), self.gpus)
        self.slots = list(range(self.share.jobs))[::-1]
        self.running: dict[int, CellProcess] = {}

    def start(self, work: Work) -> None:
        slot = self.slots.pop()
        environment = {"OMP_NUM_THREADS": str(self.share.threads)}
        if self.gpus:
            names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            names = names if names != [""] else [str(i) for i in range(self.gpus)]
            environment["CUDA_VISIBLE_DEVICES"] = names[int(slot * self.share.gpus + 1e-9)]
        self.running[slot] = CellProcess(work, environment)

    def ended(self) -> list[Ended]:
        result = []
        for slot, process in list(self.running.items()):
            if (end := process.poll()) is not None:
                del self.running[slot]
                self.slots.append(slot)
                result.append(end)
        return result

    def stop(self) -> None:
        for process in self.running.values():
            if process.process is not None:  # all at once, then wait for each
                process.process.terminate()
        for process in self.running.values():
            if process.process is not None:
                process.process.wait()


class RayRunner:
    """Tasks of a Ray cluster: the one of RAY_ADDRESS, else one on this machine. All its machines
    must see the same folders."""

    def __init__(self, cells: int, jobs: int | None, gpus_per_cell: float | None) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("--runner ray needs Ray: pip install 'decision-seq[ray]'") from None
        self.ray = ray
        address = os.environ.get("RAY_ADDRESS")
        own: dict[str, Any] = (
            {} if address else {"num_cpus": max(cores(), jobs or 1), "include_dashboard": False}
        )
        try:
            ray.init(
                address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if address else own),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise UserError(f"RAY_ADDRESS {address}: cannot be reached ({why})") from None
        total = ray.cluster_resources()
        capacity, gpus = int(total.get("CPU", 1)), total.get("GPU", 0.0)
        self.share = share_out(cells, jobs, gpus_per_cell, capacity, float("inf"), gpus)
        passed = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
        self.environment = passed | {"OMP_NUM_THREADS": str(self.share.threads)}
        self.task = ray.remote(
            num_cpus=self.share.threads, num_gpus=self.share.gpus, max_retries=0
        )(run_to_end)
        self.running: dict[Any, str] = {}

    def start(self, work: Work) -> None:
        self.running[self.task.remote(work, self.environment)] = work.name

    def ended(self) -> list[Ended]:
        done, _ = self.ray.wait(list(self.running), timeout=0) if self.running else ([], [])
        result = []
        for reference in done:
            name = self.running.pop(reference)
            try:
                result.append(self.ray.get(reference))
            except self.ray.exceptions.RayError as error:  # its worker or machine went away
                result.append(Ended(name, f"Ray: {str(error).splitlines()[0]}"))
        return result

    def stop(self) -> None:
        running = list(self.running)
        for reference in running:
            self.ray.cancel(reference)
        if running:
            self.ray.wait(running, num_returns=len(running))
        self.ray.shutdown()


RUNNERS: dict[str, Callable[[int, int | None, float | None], Runner]] = {
    "local": LocalRunner,
    "ray": RayRunner,
}


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def free_memory() -> float:
    """GiB that this process may still take; infinite where the system does not say."""
    free = float("inf")
    with contextlib.suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(float(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    with contextlib.suppress(OSError, ValueError):  # a container's limit; "max" is none
        group = Path("/sys/fs/cgroup")
        limit = float((group / "memory.max").read_text())
        free = min(free, limit - float((group / "memory.current").read_text()))
    return free / 2**30
