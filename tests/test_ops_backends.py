"""Which kernels run: without a compiler, with a broken one, by force; what is refused."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from ops_inputs import needs_c, scan_inputs, single

from decision_seq import ops
from decision_seq.errors import UserError
from decision_seq.ops.c import build as native
from decision_seq.ops.dispatch import BACKENDS


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("CC", "DECISION_SEQ_SCAN")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


USE_EVERYTHING = """
import torch
from decision_seq import ops
one = torch.ones(2, 3, 4)
y = ops.selective_scan(one, one, -one[0, 0, :, None], one[..., :1], one[..., :1], one[0, 0], one)
y = ops.causal_conv_silu(y, torch.ones(4, 1, 2), one[0, 0])
assert y.isfinite().all()
print([b.name for b in ops.scan_backends() if b.chosen])
"""


def test_without_a_compiler_the_fallback_runs(tmp_path: Path) -> None:
    done = run_python(USE_EVERYTHING, CC="no-such-compiler", DECISION_SEQ_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['torch']\n"
    assert done.stderr.count("\n") == 1
    assert "CC=no-such-compiler was not found" in done.stderr


def test_without_gradients_the_compiler_is_not_imported() -> None:
    watch = "import sys\nassert 'torch._dynamo' not in sys.modules"
    done = run_python(
        "\n".join(["import torch", "torch.set_grad_enabled(False)", USE_EVERYTHING, watch])
    )
    assert done.returncode == 0, done.stderr


def test_a_failing_compiler_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    monkeypatch.setenv("DECISION_SEQ_CACHE", str(tmp_path))
    with pytest.raises(native.KernelUnavailable, match="false failed"):
        native.SCAN_LIBRARY.compiled()


@needs_c
def test_an_unwritable_cache_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DECISION_SEQ_CACHE", str(tmp_path / "file"))
    with pytest.raises(native.KernelUnavailable, match="could not be built"):
        native.SCAN_LIBRARY.load.__wrapped__()


def test_forcing_a_backend_that_cannot_run_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = dataclasses.replace(BACKENDS["c"], unusable=lambda: "it is broken")
    monkeypatch.setitem(BACKENDS, "c", broken)
    monkeypatch.setenv("DECISION_SEQ_SCAN", "c")
    with pytest.raises(UserError, match="cannot run here: it is broken"):
        ops.selective_scan(*single(scan_inputs((1, 1, 1, 1))))


@needs_c
def test_two_may_compile_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECISION_SEQ_CACHE", str(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: native.SCAN_LIBRARY.compiled(), range(2))
    assert first == second
    assert list((tmp_path / "kernels").iterdir()) == [first]


def test_wrong_shapes_are_refused() -> None:
    u, dt, A, B, C, D, z = single(scan_inputs((2, 5, 17, 4)))
    with pytest.raises(ValueError, match=r"dt \[2, 4, 17\]"):
        ops.selective_scan(u, dt[:, 1:], A, B, C, D, z)
    with pytest.raises(ValueError, match="state must be"):
        ops.selective_scan_step(u, dt, A, B, C, D, z, torch.zeros(2, 17, 5))
    with pytest.raises(ValueError, match="weight"):
        ops.causal_conv_silu(u, torch.zeros(16, 1, 4), torch.zeros(17))
    with pytest.raises(ValueError, match="history must be"):
        ops.causal_conv_silu_step(u, torch.zeros(17, 1, 4), torch.zeros(17), u)


def test_an_unknown_backend_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECISION_SEQ_SCAN", "fortran")
    with pytest.raises(UserError, match="DECISION_SEQ_SCAN=fortran is unknown; use c or"):
        ops.selective_scan(*single(scan_inputs((1, 1, 1, 1))))


def test_exactly_one_backend_is_chosen() -> None:
    backends = ops.scan_backends()
    assert [b.name for b in backends] == list(BACKENDS)
    assert sum(b.chosen for b in backends) == 1
    assert all(b.usable for b in backends if b.chosen)
    assert all(b.reason for b in backends)
