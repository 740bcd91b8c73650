"""Which implementation of selective scan and causal convolution runs: one table of backends in
order of preference.

A new backend is one entry in BACKENDS. The first usable one that accepts the tensor runs;
DECISION_SEQ_SCAN=<name> forces one.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from decision_seq.errors import UserError, say_once
from decision_seq.ops.c import cpu
from decision_seq.ops.gpu import mamba_ssm_scan, triton_scan
from decision_seq.ops.pytorch import blocked, reference


@dataclass(frozen=True)
class Backend:
    """One implementation; where it names no function, the reference's is taken."""

    name: str
    what: str
    fused: bool  # a kernel; it is said once where none of those for the device can run
    unusable: Callable[[], str]  # why this machine cannot run it; "" if it can
    accepts: Callable[[torch.dtype, str], bool]  # dtype and device type of the data
    half: bool = False  # takes and gives a layer's bfloat16 as it is, else it is widened
    scan: Callable[..., Tensor] = reference.selective_scan
    scan_step: Callable[..., tuple[Tensor, Tensor]] = reference.selective_scan_step
    # a scan from a state on, with gradients; None is made of `scan` and PyTorch
    continued_scan: Callable[..., tuple[Tensor, Tensor]] | None = None
    conv: Callable[..., Tensor] = reference.causal_conv_silu


@dataclass(frozen=True)
class BackendStatus:
    """What `decision-seq list kernels` shows of one backend."""

    name: str
    usable: bool
    chosen: bool  # runs for float32 on this machine's default device
    reason: str


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            name="c",
            what="C kernels for float32 on CPU",
            fused=True,
            unusable=cpu.unusable,
            accepts=cpu.accepts,
            scan=cpu.selective_scan,
            continued_scan=cpu.continued_scan,
            conv=cpu.causal_conv_silu,
            half=True,
        ),
        Backend(
            name="mamba_ssm",
            what="mamba-ssm's kernels for float32 on NVIDIA GPUs",
            fused=True,
            unusable=mamba_ssm_scan.unusable,
            accepts=mamba_ssm_scan.accepts,
            scan=mamba_ssm_scan.selective_scan,
            scan_step=triton_scan.selective_scan_step,
            conv=triton_scan.causal_conv_silu,
        ),
        Backend(
            name="triton",
            what="Triton kernels for float32 on GPUs",
            fused=True,
            unusable=triton_scan.unusable,
            accepts=triton_scan.accepts,
            scan=triton_scan.selective_scan,
            scan_step=triton_scan.selective_scan_step,
            conv=triton_scan.causal_conv_silu,
        ),
        Backend(
            name="torch",
            what="cache-blocked PyTorch",
            fused=False,
            unusable=lambda: "",
            accepts=lambda dtype, device: True,
            scan=blocked.selective_scan,
        ),
        Backend(
            name="reference",
            what="plain sequential PyTorch, for checking the others",
            fused=False,
            unusable=lambda: "",
            accepts=lambda dtype, device: True,
        ),
    )
}


def forced_backend() -> Backend | None:
    """The backend named by DECISION_SEQ_SCAN. Raises UserError for an unknown or unusable one."""
    name = os.environ.get("DECISION_SEQ_SCAN")
    if not name:
        return None
    if name not in BACKENDS:
        raise UserError(f"DECISION_SEQ_SCAN={name} is unknown; use {' or '.join(BACKENDS)}.")
    if reason := BACKENDS[name].unusable():
        raise UserError(f"DECISION_SEQ_SCAN={name} cannot run here: {reason}.")
    return BACKENDS[name]


def choose(dtype: torch.dtype, device: str) -> Backend:
    """The backend for data of this dtype on this type of device."""
    return BACKENDS[choose_name(dtype, device)]


def choose_name(dtype: torch.dtype, device: str) -> str:
    forced = forced_backend()
    if forced and forced.accepts(dtype, device):
        return forced.name
    better: dict[str, str] = {}  # why not
    for backend in BACKENDS.values():
        if backend.accepts(dtype, device):
            reason = backend.unusable()
            if not reason:
                if not backend.fused:
                    for name, why in better.items():
                        say_once(f"decision-seq: the {name} kernels are not used: {why}.")
                return backend.name
            better[backend.name] = reason
    raise AssertionError("the reference accepts everything")


# What torch.compiler.assume_constant_result does, which would import the compiler: 1.4 s a command.
choose_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def scan_backends() -> list[BackendStatus]:
    """Every backend: whether it can run here, whether it does, and why or why not."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = choose(torch.float32, device)
    return [
        BackendStatus(
            name=backend.name,
            usable=not backend.unusable(),
            chosen=backend is chosen,
            reason=backend.unusable() or backend.what,
        )
        for backend in BACKENDS.values()
    ]
