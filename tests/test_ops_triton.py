"""The Triton kernels against the float64 reference, run by Triton's interpreter on the CPU.

A process of its own runs them: TRITON_INTERPRET counts when Triton is imported, and importing
Triton changes what PyTorch's compiler does.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

needs_triton = pytest.mark.skipif(
    not importlib.util.find_spec("triton"),
    reason="triton is not installed; it comes with PyTorch's CUDA builds, or pip install triton",
)

# B, L, E, N: odd widths and lengths, one of each, more than a block and than a chunk of either size
SHAPES = [(1, 1, 1, 1), (2, 17, 5, 3), (1, 33, 40, 16), (2, 5, 33, 20), (3, 16, 32, 8)]
LONG = (1, 1030, 2, 2)  # checkpoints every 32 steps

CHECK = """
import json, sys
import torch
sys.path[:0] = json.loads(sys.argv[2])
from ops_inputs import conv_inputs, scan_inputs, single, with_grads
from decision_seq import ops
from decision_seq.ops.pytorch import reference
from decision_seq.ops.gpu import triton_scan
from decision_seq.ops.dispatch import choose

assert choose(torch.float32, "cpu").name == "triton", choose(torch.float32, "cpu")
assert choose(torch.float64, "cpu").name == "torch"
errors = {}

def error(actual, expected):
    return float((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30))

def compare(what, function, oracle, inputs):
    expected, expected_grads = with_grads(oracle, inputs)
    y, grads = with_grads(function, single(inputs))
    assert y.dtype == torch.float32
    errors[what] = [error(y, expected), *map(error, grads, expected_grads)]

for shape in json.loads(sys.argv[1]):
    shape = tuple(shape)
    for gated in (True, False):
        inputs = scan_inputs(shape, gated)
        compare(f"scan {shape} {gated}", ops.selective_scan, reference.selective_scan, inputs)
    for taps in (1, 4):
        inputs = conv_inputs(shape, taps)
        compare(f"conv {shape} {taps}", ops.causal_conv_silu, reference.causal_conv_silu, inputs)

# views: u and z are halves of one matrix, dt is time-major
torch.manual_seed(0)
xz = torch.randn(2, 7, 80, dtype=torch.float64)
u, dt, A, B, C, D, z = scan_inputs((2, 7, 40, 5))
def strided(xz, dt, B):
    u, z = xz.chunk(2, -1)
    u = ops.causal_conv_silu(u, torch.ones(40, 1, 4).to(xz), torch.zeros(40).to(xz))
    return ops.selective_scan(u, dt.transpose(0, 1), A.to(xz), B.mT, C.to(xz), D.to(xz), z)
leaves = [xz, dt.transpose(0, 1).contiguous(), B.mT.contiguous()]
compare("views", strided, strided, leaves)

# seeds at once: weights of their own, for D those of all
seeds = [scan_inputs((2, 5, 33, 3)), [x + 0.1 for x in scan_inputs((2, 5, 33, 3))]]
stacked = [torch.stack(pair) for pair in zip(*seeds)]
stacked[2] = -stacked[2].abs()
weights = [torch.stack([w, 0.5 - w]) for w in conv_inputs((2, 5, 33, 3), 4)]
dims = (0, 0, 0, 0, 0, None, 0)
def scans(function):
    def run(u, dt, A, B, C, D, z):
        each = torch.func.vmap(function, dims)
        return each(u, dt, A, B, C, D[0], z)
    return run
def one_by_one(function):
    return lambda *x: torch.stack([function(*i) for i in zip(*x)])
def one_D(u, dt, A, B, C, D, z):
    return one_by_one(reference.selective_scan)(u, dt, A, B, C, D[:1].expand_as(D), z)
compare("seeds", scans(ops.selective_scan), one_D, stacked)
convolved = torch.func.vmap(ops.causal_conv_silu)
compare("seeds conv", convolved, one_by_one(reference.causal_conv_silu), weights)

# streaming: three tokens, then two
inputs = scan_inputs((2, 5, 33, 3))
u, dt, A, B, C, D, z = single(inputs)
state, outputs = torch.zeros(2, 33, 3), []
for part in (slice(0, 3), slice(3, 5)):
    y, state = ops.selective_scan_step(
        u[:, part], dt[:, part], A, B[:, part], C[:, part], D, z[:, part], state)
    outputs.append(y)
_, expected_state = reference.selective_scan_step(*inputs, torch.zeros(2, 33, 3).double())
errors["stream"] = [error(torch.cat(outputs, 1), reference.selective_scan(*inputs)),
                    error(state, expected_state)]

# training on streams: from a state on, with gradients
before = torch.randn(2, 33, 3).double()
def continued(step):
    return lambda *x: step(*x, before.to(x[0]))[0]
compare("continued", continued(ops.selective_scan_step), continued(reference.scan_from), inputs)

for shape in [(0, 5, 17, 4), (2, 0, 17, 4)]:
    y, grads = with_grads(ops.selective_scan, single(scan_inputs(shape)))
    assert y.shape == shape[:3] and not any(g.any() for g in grads)
    y, grads = with_grads(ops.causal_conv_silu, single(conv_inputs(shape, 4)))
    assert y.shape == shape[:3] and not any(g.any() for g in grads)

leaves = [t.requires_grad_() for t in single(scan_inputs((2, 3, 4, 2)))]
torch.library.opcheck(torch.ops.decision_seq.scan_triton.default, (*leaves, True))
leaves = [t.requires_grad_() for t in single(conv_inputs((2, 3, 4, 2), 3))]
torch.library.opcheck(torch.ops.decision_seq.conv_silu_triton.default, tuple(leaves))
print(json.dumps(errors))
"""


def interpreted(shapes: list[tuple[int, ...]]) -> dict[str, list[float]]:
    """Errors of y and of every gradient, by case."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK, json.dumps(shapes), json.dumps([os.path.dirname(__file__)])],
        env={**os.environ, "TRITON_INTERPRET": "1", "DECISION_SEQ_SCAN": "triton"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return errors


def check(errors: dict[str, list[float]]) -> None:
    for what, (value, *grads) in errors.items():
        assert value < 1e-6, f"{what}: value {value:.1e}"
        assert all(grad < 1e-5 for grad in grads), f"{what}: gradients {grads}"


@needs_triton
def test_the_kernels_agree_with_the_float64_reference() -> None:
    check(interpreted(SHAPES))


@needs_triton
@pytest.mark.slow
def test_long_windows() -> None:
    check(interpreted([LONG]))


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from decision_seq.ops.gpu import triton_kernels as k

scan, conv = {"BLOCK": 32, "N": 16}, {"TAPS": 4, "STEPS": 32, "BLOCK": 64}
cases = [
    (k.scan_forward, {"GATED": True, "KEEP": True, "STREAM": False, **scan}),
    (k.scan_forward, {"GATED": False, "KEEP": False, "STREAM": True, **scan}),
    (k.scan_backward, {"GATED": True, **scan}),
    (k.conv_forward, conv),
    (k.conv_backward, conv),
]
integers = ("length", "width", "states", "chunk", "rows")
for kernel, constants in cases:
    signature = {
        name: "constexpr" if name in constants
        else "i32" if name in integers or name.endswith(("_b", "_t"))
        else "*fp32"
        for name in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert "cubin" in compile(source, target=GPUTarget("cuda", 80, 32)).asm
"""


@needs_triton
@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu() -> None:
    """The interpreter takes what the compiler may not; compiling needs no GPU."""
    subprocess.run([sys.executable, "-c", COMPILE], check=True, timeout=250)


def test_mamba_ssm_is_called_as_it_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs a GPU; here its documented layout, with the reference's scan inside."""
    import ops_inputs

    from decision_seq.ops.gpu import mamba_ssm_scan
    from decision_seq.ops.pytorch import reference

    def selective_scan_fn(u, delta, A, B, C, D, z=None):  # type: ignore[no-untyped-def]
        assert u.is_contiguous() and u.shape == delta.shape == (2, 17, 5)  # [B, E, L]
        assert B.is_contiguous() and B.shape == C.shape == (2, 3, 5)  # [B, N, L]
        y = reference.selective_scan(u.mT, delta.mT, A, B.mT, C.mT, D, z if z is None else z.mT)
        return y.mT

    monkeypatch.setattr(mamba_ssm_scan, "_scan", lambda: selective_scan_fn)
    for gated in (True, False):
        inputs = ops_inputs.scan_inputs((2, 5, 17, 3), gated)
        expected = reference.selective_scan(*inputs)
        assert torch.equal(mamba_ssm_scan.selective_scan(*inputs), expected)


@pytest.mark.skipif(bool(importlib.util.find_spec("mamba_ssm")), reason="mamba-ssm is here")
def test_mamba_ssm_without_its_compiled_scan_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from decision_seq.ops.gpu import mamba_ssm_scan

    why_not = mamba_ssm_scan.unusable.__wrapped__
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "does not import (No module named 'mamba_ssm')" in why_not()
    monkeypatch.setattr(mamba_ssm_scan, "_scan", lambda: print)
    assert "without selective_scan_cuda" in why_not()
    compiled = tmp_path / "selective_scan_cuda.py"
    compiled.write_text("raise ImportError('undefined symbol: of another PyTorch')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "does not import (undefined symbol: of another PyTorch)" in why_not()
    compiled.write_text("")
    importlib.invalidate_caches()
    assert why_not() == ""
    sys.modules.pop("selective_scan_cuda")
