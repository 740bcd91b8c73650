"""How everything here is measured: contenders take turns, so that a busy machine slows all alike.

What is reported: the best round is what the code costs, the median shows how noisy the machine was,
and ratios are taken within each round, with the range over the rounds beside their median.
"""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import importlib.util
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], object]
Timer = Callable[[], float]  # runs something once and returns the seconds that took


@dataclass(frozen=True)
class Options:
    """What the command was asked for."""

    quick: bool = False
    rehearsed: bool = False  # it is only to be seen that everything runs
    device: str = "cpu"
    threads: int = 1
    data: str = "decision-seq/hopper/medium-v0"  # for `curves`
    seconds: float = 12.0  # for the rounds of one table

    @property
    def brief(self) -> bool:
        """Whether there is less time than a measurement should have."""
        return self.seconds < Options.seconds


WARM_UPS = 3  # to compile and to fill caches; it takes as many until the heap grows no more
MAX_ROUNDS = 200


@dataclass
class Row:
    """One contender."""

    name: str
    seconds: list[float]  # of each round, a unit of work
    ratios: list[float] = field(default_factory=list)  # to the table's base, a round each
    note: str = ""


@dataclass
class Table:
    """Contenders that did the same work."""

    title: str
    rows: list[Row]
    base: str  # the row that the others are compared with
    note: str = ""
    faster: bool = False  # ratios say how many times as fast as the base, not as slow

    def __post_init__(self) -> None:
        base = next(row for row in self.rows if row.name == self.base)
        for row in self.rows:
            pairs = zip(row.seconds, base.seconds, strict=True)
            row.ratios = [b / own if self.faster else own / b for own, b in pairs]

    def markdown(self) -> str:
        """A heading and a table."""
        ratio = f"times as fast as {self.base}" if self.faster else f"times the time of {self.base}"
        lines = [f"### {self.title}", ""] + ([self.note, ""] if self.note else [])
        lines += [f"| | best ms | median ms | {ratio} | |", "|---|---|---|---|---|"]
        for row in self.rows:
            best, middle = 1e3 * min(row.seconds), 1e3 * statistics.median(row.seconds)
            low, high = min(row.ratios), max(row.ratios)
            spread = f"{statistics.median(row.ratios):.3g} ({low:.3g} to {high:.3g})"
            lines.append(f"| {row.name} | {best:.4g} | {middle:.4g} | {spread} | {row.note} |")
        return "\n".join(lines) + "\n"


@dataclass
class Listing:
    """A table of something else than times."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    series: dict[str, list[float]] = field(default_factory=dict)  # what the rows sum up
    figures: dict[str, str] = field(default_factory=dict)  # file name -> SVG

    def markdown(self) -> str:
        """As of a Table."""
        lines = [f"### {self.title}", "", self.note, ""]
        for cells in (self.columns, ["---"] * len(self.columns), *self.rows):
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


Run = Callable[[Options], Iterator[Table | Listing]]


@dataclass
class Benchmark:
    """A registered benchmark."""

    what: str
    run: Run
    tables: int


BENCHMARKS: dict[str, Benchmark] = {}


def benchmark(name: str, what: str, tables: int = 1) -> Callable[[Run], Run]:
    """Decorator: make a function, which yields so many tables, available as `--only NAME`."""

    def add(run: Run) -> Run:
        BENCHMARKS[name] = Benchmark(what, run, tables)
        return run

    return add


def interleaved(
    contenders: dict[str, Call], options: Options, units: Mapping[str, float] | None = None
) -> list[Row]:
    """Rounds in which every contender runs once, until the time is up. `units` says how much work
    a call of each is (1 by default)."""
    return take_turns(timers(contenders, options), options, units)


def timers(contenders: dict[str, Call], options: Options) -> dict[str, Timer]:
    return {name: timer(call, options) for name, call in contenders.items()}


def timer(call: Call, options: Options) -> Timer:
    """With one thread on a CPU, time is the processor's, so that other work on the machine counts
    as little as it can."""
    on_gpu = options.device == "cuda"
    clock = time.process_time if options.threads == 1 and not on_gpu else time.perf_counter

    def run() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        start = clock()
        call()
        if on_gpu:
            torch.cuda.synchronize()
        return clock() - start

    return run


def take_turns(
    contenders: dict[str, Timer], options: Options, units: Mapping[str, float] | None = None
) -> list[Row]:
    """`interleaved` of contenders that time themselves, as those in other processes do. There are
    at least two rounds, unless one takes several times the time there is for all."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    began = time.perf_counter()
    for _ in range(WARM_UPS):
        for run in contenders.values():
            run()
        if time.perf_counter() - began > 2 * options.seconds:
            break
    began = time.perf_counter()
    for rounds in range(1, MAX_ROUNDS + 1):
        for name, run in contenders.items():
            times[name].append(run() / (units or {}).get(name, 1.0))
        spent = (time.perf_counter() - began) / options.seconds
        if spent > (1 if rounds > 1 else 4):
            break
    return [Row(name, seconds) for name, seconds in times.items()]


def peak_memory(call: Callable[..., object], *arguments: Any) -> float:
    """Bytes that `call(*arguments)`, which returns what to run, needs beyond its setting up."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (call, arguments))


def _peak_memory(call: Callable[..., Call], arguments: tuple) -> float:
    import torch._dynamo  # 60 MiB, as every optimizer does

    torch.set_num_threads(1)
    run = call(*arguments)
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # setting up may have peaked higher
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    """Bytes in memory, now (VmRSS) or at most (VmHWM). Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(name))


@dataclass(frozen=True)
class Floor:
    """What the machine can do at best."""

    float32: float  # floating-point operations a second of a matrix product
    bfloat16: float
    copy: float  # bytes a second read and written

    def text(self) -> str:
        """For the head of the results."""
        return (
            f"Physical floor, measured by this command: matrix products {self.float32 / 1e9:.0f} "
            f"GFLOP/s in float32 and {self.bfloat16 / 1e9:.0f} in bfloat16, copying "
            f"{self.copy / 1e9:.1f} GB/s."
        )


def floor(options: Options) -> Floor:
    """Best of some runs."""
    return _floor(options.device, options.threads, options.rehearsed)


@functools.cache
def _floor(device: str, threads: int, rehearsed: bool) -> Floor:
    options = Options(device=device, threads=threads, seconds=1e-3 if rehearsed else 1.0)

    def best(call: Call) -> float:
        return min(interleaved({"": call}, options)[0].seconds)

    def product(dtype: torch.dtype) -> float:
        size = 16 if rehearsed else 8192 if device == "cuda" else 1024
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        return 2.0 * size**3 / best(lambda: a @ b)

    source = torch.empty((1 << (10 if rehearsed else 28)) // 4, device=device)
    target = torch.empty_like(source)
    copy = 2.0 * source.numel() * 4 / best(lambda: target.copy_(source))
    return Floor(product(torch.float32), product(torch.bfloat16), copy)


def hardware(options: Options) -> str:
    """The machine and the versions, for the head of the results."""
    if options.device == "cuda":
        machine = torch.cuda.get_device_name()
    else:
        machine = f"{processor()}, {options.threads} thread(s)"
    packages = "torch triton numpy gymnasium mujoco transformers mambapy mamba-ssm"
    versions = [f"{name} {found}" for name in packages.split() if (found := version(name))]
    return f"{machine}; Python {platform.python_version()}, {', '.join(versions)}"


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


PEERS = True  # False: none counts as installed


def installed(module: str) -> bool:
    return PEERS and importlib.util.find_spec(module) is not None


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
