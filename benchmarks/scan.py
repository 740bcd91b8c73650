"""Selective scan, convolution and streamed tokens by every backend, mambapy's scan among them."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import (
    Call,
    Options,
    Row,
    Table,
    benchmark,
    floor,
    installed,
    interleaved,
    peak_memory,
)
from decision_seq import ops
from decision_seq.ops.dispatch import BACKENDS, Backend

BATCH, WIDTH, STATES, TAPS = 64, 256, 16, 4  # of a Decision Mamba layer
LENGTHS = (60, 150, 3000)
LONG_SHAPE = (64, 3000, 512, 16)
EVERY_LENGTH = ("c", "triton", "mamba_ssm", "torch")  # the others would take minutes at 3000


def scan_inputs(shape: tuple[int, ...], device: str = "cpu") -> list[Tensor]:
    """u, dt, A, B, C, D, z of a trained layer's sizes."""
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
    return [tensor.to(device).requires_grad_() for tensor in inputs]


def forward_backward(function: Callable[..., Tensor], inputs: list[Tensor]) -> Call:
    dy = torch.randn_like(inputs[0])
    return lambda: torch.autograd.grad(function(*inputs), inputs, dy)


def usable(options: Options) -> list[Backend]:
    """The backends that run here, best first."""
    takes = [
        backend for backend in BACKENDS.values() if backend.accepts(torch.float32, options.device)
    ]
    return [backend for backend in takes if not backend.unusable()]


def mambapy_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None = None
) -> Tensor:
    """The same computation around mambapy's scan, as its MambaBlock does it."""
    from mambapy.pscan import pscan

    decay = torch.exp(dt.unsqueeze(-1) * A)  # [B, L, E, N]
    states = pscan(decay, dt.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1))
    y = (states @ C.unsqueeze(-1)).squeeze(3) + D * u
    return y if z is None else y * F.silu(z)


def conv1d_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's own convolution, as mambapy and transformers use it."""
    y = F.conv1d(x.mT, weight, bias, padding=weight.shape[-1] - 1, groups=x.shape[2])
    return F.silu(y[..., : x.shape[1]]).mT


@benchmark(
    "scan", "selective scan forward + backward by every backend, L = 60, 150, 3000", tables=4
)
def scan(options: Options) -> Iterator[Table]:
    for length in LENGTHS[: 2 if options.quick else 3]:
        batch = BATCH if length < 1000 else 4
        inputs = scan_inputs((batch, length, WIDTH, STATES), options.device)
        backends = [p for p in usable(options) if length < 1000 or p.name in EVERY_LENGTH]
        contenders = {backend.name: forward_backward(backend.scan, inputs) for backend in backends}
        if installed("mambapy"):
            contenders["mambapy"] = forward_backward(mambapy_scan, inputs)
        # read u, dt, z, write y; read those and dy, write du, ddt, dz and half as B, C
        matrices = 4 + 9
        seconds = matrices * inputs[0].numel() * 4 / floor(options).copy
        yield Table(
            f"Scan, forward + backward, B {batch} L {length} E {WIDTH} N {STATES}",
            interleaved(contenders, options),
            base=backends[0].name,
            note=f"Reading and writing its matrices alone takes {1e3 * seconds:.2f} ms.",
        )
    if options.device == "cpu" and not BACKENDS["c"].unusable() and (os.cpu_count() or 1) > 1:
        yield by_threads(options)


def by_threads(options: Options) -> Table:
    """The C backend on one thread and on two, by the clock."""
    run = forward_backward(BACKENDS["c"].scan, scan_inputs((BATCH, LENGTHS[0], WIDTH, STATES)))

    def on(threads: int) -> Call:
        def call() -> None:
            torch.set_num_threads(threads)
            run()

        return call

    contenders = {"1 thread": on(1), "2 threads": on(2)}
    rows = interleaved(contenders, dataclasses.replace(options, threads=2))
    torch.set_num_threads(options.threads)
    return Table(
        f"Scan by threads, forward + backward, B {BATCH} L {LENGTHS[0]} E {WIDTH} N {STATES}",
        rows,
        base="1 thread",
        note="By the clock, so what else runs on the machine counts.",
        faster=True,
    )


@benchmark("conv", "causal convolution + SiLU forward + backward by every backend")
def conv(options: Options) -> Iterator[Table]:
    inputs = [
        torch.randn(BATCH, LENGTHS[0], WIDTH),
        torch.randn(WIDTH, 1, TAPS),
        torch.randn(WIDTH),
    ]
    inputs = [tensor.to(options.device).requires_grad_() for tensor in inputs]
    backends = [
        backend for backend in usable(options) if backend.name not in ("reference", "mamba_ssm")
    ]
    contenders = {backend.name: forward_backward(backend.conv, inputs) for backend in backends}
    contenders["conv1d"] = forward_backward(conv1d_silu, inputs)
    yield Table(
        f"Convolution + SiLU, forward + backward, B {BATCH} L {LENGTHS[0]} E {WIDTH}, {TAPS} taps",
        interleaved(contenders, options),
        base=backends[0].name,
        note=f"Reading and writing its matrices alone takes "
        f"{1e3 * 5 * inputs[0].numel() * 4 / floor(options).copy:.2f} ms.",
    )


def long_scan(name: str) -> Call:
    """For `peak_memory`."""
    return forward_backward(BACKENDS[name].scan, scan_inputs(LONG_SHAPE))


@benchmark("scan-memory", "peak memory of a scan over 3000 tokens, B 64, E 512 (given time)")
def scan_memory(options: Options) -> Iterator[Table]:
    if options.brief or options.device != "cpu":
        return
    rows = []
    for name in [status.name for status in ops.scan_backends() if status.usable]:
        if name in EVERY_LENGTH:
            start = time.perf_counter()
            used = peak_memory(long_scan, name)
            rows.append((name, time.perf_counter() - start, used))
    batch, length, width, states = LONG_SHAPE
    outputs = 4 * batch * length * width * 4
    yield Table(
        f"Memory beyond the inputs, forward + backward, B {batch} L {length} E {width} N {states}",
        [Row(name, [seconds], note=f"{used / 1e9:.2f} GB") for name, seconds, used in rows],
        base=rows[0][0],
        note=f"Of these {outputs / 1e9:.2f} GB are y, du, ddt and dz. Times include starting a "
        "process.",
    )
