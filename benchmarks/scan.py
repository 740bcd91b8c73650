"""Time and memory of every selective-scan path, interleaved in one process.

    python -m benchmarks.scan

mamba.py's parallel scan is measured too where the package mambapy is installed. Every round runs
every contender once, so that a busy machine slows all of them alike; the best of the rounds is
what the code costs, the median beside it shows how noisy the machine was. With one thread, time is
the processor's, so that other work on the machine counts as little as it can.
"""

import importlib.util
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from decision_seq import ops
from decision_seq.ops.dispatch import PATHS

ROUNDS, SLOW = 20, 0.5  # what is slower than SLOW seconds gets a tenth of the rounds
TRAINING_SHAPE = (64, 60, 256, 16)  # B, L, E, N of a Decision Mamba layer, batch 64, K = 20
LONG_SHAPE = (64, 3000, 512, 16)
TAPS = 4


def main() -> None:
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        print_times(f"Scan, forward + backward, {threads} thread(s)", scan_contenders())
        print_times(f"Convolution + SiLU, forward + backward, {threads} thread(s)", convolutions())
    torch.set_num_threads(1)
    print_times("A hundred streamed tokens, one lane, scan step, 1 thread", step_contenders())
    print_memory()


def scan_inputs(shape: tuple[int, ...]) -> list[Tensor]:
    batch, length, width, states = shape
    torch.manual_seed(0)
    inputs = [
        torch.randn(batch, length, width),
        torch.rand(batch, length, width) * 0.1 + 0.001,
        -torch.arange(1.0, states + 1).repeat(width, 1),
        torch.randn(batch, length, states),
        torch.randn(batch, length, states),
        torch.ones(width),
        torch.randn(batch, length, width),
    ]
    return [tensor.requires_grad_() for tensor in inputs]


def forward_backward(function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    dy = torch.randn_like(inputs[0])
    return lambda: torch.autograd.grad(function(*inputs), inputs, dy)


def usable_paths() -> list[str]:
    return [path.name for path in ops.scan_paths() if path.usable]


def scan_contenders() -> dict[str, Callable[[], object]]:
    inputs = scan_inputs(TRAINING_SHAPE)
    contenders = {name: forward_backward(PATHS[name].scan, inputs) for name in usable_paths()}
    if importlib.util.find_spec("mambapy"):
        contenders["mambapy"] = forward_backward(mambapy_scan, inputs)
    return contenders


def mambapy_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor
) -> Tensor:
    """The same computation around mambapy's scan, as its MambaBlock does it."""
    from mambapy.pscan import pscan

    decay = torch.exp(dt.unsqueeze(-1) * A)  # [B, L, E, N]
    states = pscan(decay, dt.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1))
    return ((states @ C.unsqueeze(-1)).squeeze(3) + D * u) * F.silu(z)


def convolutions() -> dict[str, Callable[[], object]]:
    batch, length, width, _ = TRAINING_SHAPE
    inputs = [torch.randn(batch, length, width), torch.randn(width, 1, TAPS), torch.randn(width)]
    inputs = [tensor.requires_grad_() for tensor in inputs]

    def conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.conv1d(x.mT, weight, bias, padding=TAPS - 1, groups=width)[..., :length]
        return F.silu(y).mT

    contenders = {name: PATHS[name].conv for name in usable_paths() if name != "reference"}
    contenders["torch.conv1d"] = conv1d
    return {name: forward_backward(function, inputs) for name, function in contenders.items()}


def step_contenders() -> dict[str, Callable[[], object]]:
    u, dt, A, B, C, D, z = (t.detach() for t in scan_inputs((1, 1, *TRAINING_SHAPE[2:])))
    state = torch.randn(1, *A.shape)
    steps = {name: PATHS[name].scan_step for name in usable_paths() if name != "torch"}

    def repeat(step: Callable[..., object]) -> Callable[[], object]:
        return lambda: [step(u, dt, A, B, C, D, z, state) for _ in range(100)]

    return {name: repeat(step) for name, step in steps.items()}


def print_times(title: str, contenders: dict[str, Callable[[], object]]) -> None:
    times = interleaved(contenders)
    fastest = min(min(seconds) for seconds in times.values())
    print(f"{title}\n")
    print("| path | best ms | median ms | times the fastest |\n|---|---|---|---|")
    for name, seconds in sorted(times.items(), key=lambda item: min(item[1])):
        best, median = min(seconds), statistics.median(seconds)
        print(f"| {name} | {best * 1e3:.2f} | {median * 1e3:.2f} | {best / fastest:.1f} |")
    print()


def interleaved(contenders: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of every call; each round runs every contender once, slow ones not every round."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(ROUNDS):
        for name, function in contenders.items():
            if round_ % 10 and min(times[name]) > SLOW:
                continue
            start = clock()
            function()
            times[name].append(clock() - start)
    return times


def print_memory() -> None:
    """Peak memory beyond the inputs, each path in a process of its own."""
    batch, length, width, states = LONG_SHAPE
    print(f"Extra memory, forward + backward, B {batch} L {length} E {width} N {states}\n")
    print("| path | extra GB | seconds |\n|---|---|---|")
    for name in usable_paths():
        if name == "reference":
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory, seconds = pool.apply(measure_memory, (name,))
        print(f"| {name} | {memory / 1e9:.2f} | {seconds:.1f} |")


def measure_memory(name: str) -> tuple[int, float]:
    inputs = scan_inputs(LONG_SHAPE)
    run = forward_backward(PATHS[name].scan, inputs)
    before = peak_memory()
    start = time.perf_counter()
    run()
    return peak_memory() - before, time.perf_counter() - start


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
