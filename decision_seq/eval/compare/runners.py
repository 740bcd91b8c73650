"""Where the jobs of a comparison run: processes of this machine, or tasks of a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from decision_seq.errors import UserError
from decision_seq.eval.compare.jobs import Job, JobProcess, Result, run_to_end

MEMORY_A_JOB = 2.0  # GiB: Python with torch and MuJoCo, and room for data and activations
PASSED_ON = ("DECISION_SEQ_", "MINARI_", "MUJOCO_")  # variables a cluster's workers need as well


@dataclass(frozen=True)
class Allocation:
    """What is running at once, and what each job gets."""

    jobs: int
    threads: int
    gpus: float = 0.0  # of each job
    remark: str = ""  # a sentence if there is something to be said


class Runner(Protocol):
    """Runs up to `allocation.jobs` jobs at a time."""

    allocation: Allocation

    def start(self, job: Job) -> None:
        """Begin a job."""

    def results(self) -> list[Result]:
        """Of the jobs that have ended since the last question."""

    def stop(self) -> None:
        """Let the jobs that still run save and stop, wait for them, and clean up."""


def allocate(
    count: int,
    jobs: int | None,
    gpus_per_job: float | None,
    cores: int,
    memory: float,
    gpus: float,
) -> Allocation:
    """Divide a machine or cluster among jobs.

    Args:
        count: of jobs to run.
        jobs: how many at once, if someone said so.
        gpus_per_job: likewise; by default one, or the share of it that `jobs` leaves.
        cores: CPU cores.
        memory: free, GiB; infinite where somebody else looks after it.
        gpus: GPUs.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs is {jobs}; it must be at least 1")
    if gpus_per_job is not None and not 0 < gpus_per_job <= max(gpus, 1):
        raise UserError(f"--gpus-per-cell is {gpus_per_job}; there are {gpus:g} GPUs")
    wanted, remark = min(count, jobs or cores), ""
    if gpus:
        each = gpus_per_job or min(1.0, gpus / (jobs or gpus))
        wanted = min(wanted, int(gpus / each + 1e-9))
    fitting = max(1, int(min(memory / MEMORY_A_JOB, count)))
    if jobs is None and fitting < wanted:
        remark = (
            f"{fitting} jobs at once instead of {wanted}: {memory:.1f} GiB of memory are free and "
            f"a job may take {MEMORY_A_JOB:g}; --jobs {wanted} insists"
        )
        wanted = fitting
    said = os.environ.get("OMP_NUM_THREADS", "")  # the user knows better
    threads = int(said) if said.isdecimal() else max(1, cores // wanted)
    return Allocation(wanted, threads, each if gpus else 0.0, remark)


class LocalRunner:
    """Processes of this machine, which share its cores and GPUs."""

    def __init__(self, count: int, jobs: int | None, gpus_per_job: float | None) -> None:
        import torch

        self.gpus = torch.cuda.device_count()
        self.allocation = allocate(count, jobs, gpus_per_job, cores(), free_memory(), self.gpus)
        self.slots = list(range(self.allocation.jobs))[::-1]
        self.running: dict[int, JobProcess] = {}

    def start(self, job: Job) -> None:
        slot = self.slots.pop()
        environment = {"OMP_NUM_THREADS": str(self.allocation.threads)}
        if self.gpus:
            names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            names = names if names != [""] else [str(i) for i in range(self.gpus)]
            environment["CUDA_VISIBLE_DEVICES"] = names[int(slot * self.allocation.gpus + 1e-9)]
        self.running[slot] = JobProcess(job, environment)

    def results(self) -> list[Result]:
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

    def __init__(self, count: int, jobs: int | None, gpus_per_job: float | None) -> None:
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
        self.allocation = allocate(count, jobs, gpus_per_job, capacity, float("inf"), gpus)
        passed = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
        self.environment = passed | {"OMP_NUM_THREADS": str(self.allocation.threads)}
        self.task = ray.remote(
            num_cpus=self.allocation.threads, num_gpus=self.allocation.gpus, max_retries=0
        )(run_to_end)
        self.running: dict[Any, str] = {}

    def start(self, job: Job) -> None:
        self.running[self.task.remote(job, self.environment)] = job.name

    def results(self) -> list[Result]:
        done, _ = self.ray.wait(list(self.running), timeout=0) if self.running else ([], [])
        result = []
        for reference in done:
            name = self.running.pop(reference)
            try:
                result.append(self.ray.get(reference))
            except self.ray.exceptions.RayError as error:  # its worker or machine went away
                result.append(Result(name, f"Ray: {str(error).splitlines()[0]}"))
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
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(float(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    with contextlib.suppress(OSError, ValueError):  # a container's limit; "max" is none
        group = Path("/sys/fs/cgroup")
        limit = float((group / "memory.max").read_text())
        free = min(free, limit - float((group / "memory.current").read_text()))
    return free / 2**30
