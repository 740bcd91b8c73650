"""mamba-ssm's fused scan, where that package imports; the rest is as in triton_scan.py.

It wants time as the last dimension: [B, E, L] for u, dt and z, [B, N, L] for B and C.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from decision_seq.ops.seeds import each_seed


def accepts(dtype: torch.dtype, device: str) -> bool:
    return dtype == torch.float32 and device == "cuda"


@functools.cache
def unusable() -> str:
    """Why the package cannot be used, or "" if it can. Releases up to 2.3.2 do not import without
    their compiled scan. Since July 2026 its sources do, also where that was built for another
    PyTorch, and a plain install leaves it out."""
    if not torch.cuda.is_available():
        return "there is no GPU that PyTorch can use"
    try:
        _scan()
        if importlib.util.find_spec("selective_scan_cuda"):
            importlib.import_module("selective_scan_cuda")
            return ""
    except (ImportError, OSError, RuntimeError) as error:
        return f"mamba-ssm does not import ({' '.join(str(error).split())})"
    return (
        "mamba-ssm was installed without selective_scan_cuda, its compiled scan; "
        "set MAMBA_KEEP_CUDA_BUILD=TRUE when installing it"
    )


def _scan() -> Callable[..., Tensor]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None = None
) -> Tensor:
    return each_seed(_by_time_last, u, dt, A, B, C, D, *(() if z is None else (z,)))


def _by_time_last(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None = None
) -> Tensor:
    u, dt, B, C = (t.mT.contiguous() for t in (u, dt, B, C))
    return _scan()(u, dt, A, B, C, D, None if z is None else z.mT.contiguous()).mT
