"""What results were made on: processor, cores, GPU, and the memory a process came to hold; and how
numbers get to a GPU."""

from __future__ import annotations

import ctypes
import itertools
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from decision_seq.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

ALIGNED = 16  # bytes: where in a piece of memory an array may begin


def hardware(device: torch.device) -> dict[str, str | int | None]:
    """Processor, number of cores this process may use, and the GPU, if `device` is one."""
    import torch

    usable = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _processor(),
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def torch_device(name: str) -> torch.device:
    """The device of that name. Raises UserError where there is none."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name}: is not available here; use auto or cpu") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: is not supported; use auto, cpu, cuda or cuda:N")
    return device


def peak_memory_mib(device: torch.device) -> float | None:
    """The most memory held so far, in MiB: on a GPU what torch allocated there, else this process's
    resident memory, libraries included; None where the system does not say (Windows)."""
    import torch

    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:  # unlike getrusage this leaves out the process that started this one
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return round(int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 2**10, 1)
    except (OSError, IndexError):
        try:
            import resource
        except ImportError:
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On `device`. A GPU takes it from memory that stays in place, without waiting: while it works
    on one batch, the next is gathered."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def all_to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Each as it is, on `device`; all by one move, from memory that stays in place."""
    import torch

    starts = [0, *itertools.accumulate(-(-a.nbytes // ALIGNED) * ALIGNED for a in arrays)]
    host = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    raw = host.numpy()
    for array, start in zip(arrays, starts, strict=False):
        place = raw[start : start + array.nbytes].view(array.dtype)
        place.reshape(array.shape)[...] = array
    there = host.to(device, non_blocking=True)
    return [
        there[start : start + array.nbytes]
        .view(torch.from_numpy(array[:0]).dtype)
        .view(array.shape)
        for array, start in zip(arrays, starts, strict=False)
    ]


def on_its_way(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
    """What gives `tensor` as an array; a GPU sends it meanwhile, and is only then waited for."""
    import torch

    if tensor.device.type != "cuda":
        return tensor.numpy
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    sent = torch.cuda.Event()
    sent.record(torch.cuda.current_stream(tensor.device))

    def wait() -> np.ndarray:
        sent.synchronize()
        return host.numpy()

    return wait


def keep_freed_memory() -> None:
    """Have glibc keep what one step, of training or acting, frees for the next.

    By default it gives the top of its heap back to the kernel and takes it again page by page, up
    to 3,800 pages and 3 % of the time of every training step; of a step of 32 lanes of attention
    half of the time. The commands ask for this once, as they start; whoever calls `train` or
    `rollout` from Python may do so too. Does nothing where the C library is another.
    """
    trim_threshold, mmap_threshold = -1, -3  # mallopt's names for them
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 32 << 20)  # the most it takes; above, memory is not kept
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return re.findall(r"model name\s*: (.+)", text)[0].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine() or "unknown"
