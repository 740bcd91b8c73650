"""Which implementation runs: one table of paths in order of preference.

A new path is one entry in PATHS. The first usable path that accepts the tensor runs;
DECISION_SEQ_SCAN=<name> forces one.
"""

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from decision_seq.errors import UserError
from decision_seq.ops.c import cpu, cpu_attention, cpu_block, cpu_linear
from decision_seq.ops.gpu import mamba_ssm_scan, triton_scan
from decision_seq.ops.pytorch import blocked, plain, reference


@dataclass(frozen=True)
class Path:
    """One implementation of a block's operations; those of PyTorch alone where it has none."""

    name: str
    what: str
    fused: bool  # a kernel; it is said once where none of those for the device can run
    unusable: Callable[[], str]  # why this machine cannot run it; "" if it can
    accepts: Callable[[torch.dtype, str], bool]  # dtype and device type of the data
    half: bool = False  # takes and gives a layer's bfloat16 as it is, else it is widened
    scan: Callable[..., Tensor] = reference.selective_scan
    scan_step: Callable[..., tuple[Tensor, Tensor]] = reference.selective_scan_step
    conv: Callable[..., Tensor] = reference.causal_conv_silu
    conv_step: Callable[..., tuple[Tensor, Tensor]] = reference.causal_conv_silu_step
    streams: bool = False  # whether the calls of cpu_stream.py are for it
    linear: Callable[..., Tensor] = plain.linear
    linear_gelu: Callable[..., Tensor] = plain.linear_gelu
    linear_softplus: Callable[..., Tensor] = plain.linear_softplus
    layer_norm: Callable[..., Tensor] = plain.layer_norm
    attention: Callable[..., Tensor] = plain.attention
    dropout_add: Callable[..., Tensor] = plain.dropout_add


@dataclass(frozen=True)
class PathStatus:
    """What `decision-seq list kernels` shows of one path."""

    name: str
    usable: bool
    chosen: bool  # runs for float32 on this machine's default device
    reason: str


PATHS = {
    path.name: path
    for path in (
        Path(
            name="c",
            what="C kernels for float32 on CPU",
            fused=True,
            unusable=cpu.unusable,
            accepts=cpu.accepts,
            scan=cpu.selective_scan,
            scan_step=cpu.selective_scan_step,
            conv=cpu.causal_conv_silu,
            conv_step=cpu.causal_conv_silu_step,
            streams=True,
            half=True,
            linear=cpu_linear.linear,
            linear_gelu=cpu_block.linear_gelu,
            linear_softplus=cpu_block.linear_softplus,
            layer_norm=cpu_block.layer_norm,
            attention=cpu_attention.attention,
            dropout_add=cpu_block.dropout_add,
        ),
        Path(
            name="mamba_ssm",
            what="mamba-ssm's kernels for float32 on NVIDIA GPUs",
            fused=True,
            unusable=mamba_ssm_scan.unusable,
            accepts=mamba_ssm_scan.accepts,
            scan=mamba_ssm_scan.selective_scan,
            scan_step=triton_scan.selective_scan_step,
            conv=triton_scan.causal_conv_silu,
        ),
        Path(
            name="triton",
            what="Triton kernels for float32 on GPUs",
            fused=True,
            unusable=triton_scan.unusable,
            accepts=triton_scan.accepts,
            scan=triton_scan.selective_scan,
            scan_step=triton_scan.selective_scan_step,
            conv=triton_scan.causal_conv_silu,
        ),
        Path(
            name="torch",
            what="cache-blocked PyTorch",
            fused=False,
            unusable=lambda: "",
            accepts=lambda dtype, device: True,
            scan=blocked.selective_scan,
        ),
        Path(
            name="reference",
            what="plain sequential PyTorch, for checking the others",
            fused=False,
            unusable=lambda: "",
            accepts=lambda dtype, device: True,
        ),
    )
}


def forced_path() -> Path | None:
    """The path named by DECISION_SEQ_SCAN. Raises UserError for an unknown or unusable one."""
    name = os.environ.get("DECISION_SEQ_SCAN")
    if not name:
        return None
    if name not in PATHS:
        raise UserError(f"DECISION_SEQ_SCAN={name} is not a scan path; use {' or '.join(PATHS)}.")
    if reason := PATHS[name].unusable():
        raise UserError(f"DECISION_SEQ_SCAN={name} cannot run here: {reason}.")
    return PATHS[name]


def choose(dtype: torch.dtype, device: str) -> Path:
    """The path for data of this dtype on this type of device."""
    return PATHS[choose_name(dtype, device)]


def choose_name(dtype: torch.dtype, device: str) -> str:
    forced = forced_path()
    if forced and forced.accepts(dtype, device):
        return forced.name
    better: dict[str, str] = {}  # why not
    for path in PATHS.values():
        if path.accepts(dtype, device):
            reason = path.unusable()
            if not reason:
                if not path.fused:
                    for name, why in better.items():
                        say_once(f"decision-seq: the {name} kernels are not used: {why}.")
                return path.name
            better[path.name] = reason
    raise AssertionError("the reference path accepts everything")


# What torch.compiler.assume_constant_result does, which would import the compiler: 1.4 s a command.
choose_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def say_once(line: str) -> None:
    print(line, file=sys.stderr)


def scan_paths() -> list[PathStatus]:
    """Every path: whether it can run here, whether it does, and why or why not."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = choose(torch.float32, device)
    return [
        PathStatus(
            name=path.name,
            usable=not path.unusable(),
            chosen=path is chosen,
            reason=path.unusable() or path.what,
        )
        for path in PATHS.values()
    ]
