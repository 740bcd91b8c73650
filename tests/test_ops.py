"""Every backend against the float64 reference: values, gradients, streaming, determinism."""

import functools
import itertools
import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from ops_inputs import (
    AVAILABLE,
    assert_close,
    conv_inputs,
    needs_c,
    scan_inputs,
    single,
    with_grads,
)
from torch import Tensor

from decision_seq import ops
from decision_seq.ops.dispatch import BACKENDS
from decision_seq.ops.pytorch import reference

NAMES = ("u", "dt", "A", "B", "C", "D", "z")
# Every value of each of B, L, E, N (and k) below occurs; the product of all would take minutes.
SHAPES = [
    # B, L, E, N
    (1, 1, 1, 1),
    (2, 2, 17, 5),
    (1, 7, 40, 16),
    (3, 31, 17, 16),
    (2, 32, 40, 20),
    (2, 33, 256, 16),
    (5, 60, 40, 5),
    (1, 130, 256, 16),
    (2, 130, 17, 20),
    (3, 60, 1, 16),
    (2, 33, 600, 1),
    (1, 1100, 17, 3),
    (70, 2, 17, 5),
]
TAPS = (4, 1, 3, 2, 7)
CHUNKS = ([1] * 9, [3, 3, 3], [2, 1, 5, 1], [9])


def in_turn(first: Sequence[Any], second: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Each of `first` with two of `second`, all of which occur."""
    size = len(second)
    return [(a, second[(i + j) % size]) for i, a in enumerate(first) for j in (0, size // 2)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and on a busy machine they wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=AVAILABLE)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DECISION_SEQ_SCAN", request.param)
    return request.param


@functools.cache
def expected_scan(shape: tuple[int, ...], gated: bool) -> tuple[Tensor, list[Tensor]]:
    return with_grads(reference.selective_scan, scan_inputs(shape, gated))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scan_agrees_with_the_float64_reference(backend: str, shape: tuple, gated: bool) -> None:
    inputs = scan_inputs(shape, gated)
    expected, expected_grads = expected_scan(shape, gated)
    y, grads = with_grads(ops.selective_scan, single(inputs))
    assert y.dtype == torch.float32
    assert_close(y, expected, 1e-6, "y")
    for name, grad, expected_grad in zip(NAMES, grads, expected_grads, strict=False):
        assert_close(grad, expected_grad, 1e-5, f"gradient of {name}")


@pytest.mark.parametrize(("shape", "taps"), in_turn(SHAPES, TAPS), ids=str)
def test_conv_agrees_with_conv1d(backend: str, shape: tuple, taps: int) -> None:
    def conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        past = torch.nn.functional.pad(x.mT, (taps - 1, 0))
        y = torch.nn.functional.conv1d(past, weight, bias, groups=x.shape[2])
        return torch.nn.functional.silu(y).mT

    inputs = conv_inputs(shape, taps)
    expected, expected_grads = with_grads(conv1d, inputs)
    y, grads = with_grads(ops.causal_conv_silu, single(inputs))
    assert_close(y, expected, 1e-6, "y")
    names = ("x", "weight", "bias")
    for name, grad, expected_grad in zip(names, grads, expected_grads, strict=True):
        assert_close(grad, expected_grad, 1e-5, f"gradient of {name}")


def test_strided_views_of_the_projections(backend: str) -> None:
    """u and z are halves of in_proj's output, B and C slices of x_proj's."""
    batch, length, width, states = 3, 37, 40, 16
    torch.manual_seed(1)
    xz = torch.randn(batch, length, 2 * width, requires_grad=True)
    bc = torch.randn(batch, length, 3 + 2 * states, requires_grad=True)
    dt = (torch.rand(length, batch, width) + 0.01).transpose(0, 1).requires_grad_()
    _, _, A, _, _, D, _ = single(scan_inputs((batch, length, width, states)))
    weight, bias = torch.randn(width, 1, 4), torch.randn(width)

    def run(xz: Tensor, bc: Tensor, dt: Tensor) -> Tensor:
        x, z = xz.chunk(2, -1)
        _, B, C = bc.split([3, states, states], -1)
        u = ops.causal_conv_silu(x, weight.to(x), bias.to(x))
        return ops.selective_scan(u, dt, A.to(x), B, C, D.to(x), z)

    leaves = [xz, bc, dt]
    y, grads = with_grads(run, leaves)
    expected, expected_grads = with_grads(run, [t.double() for t in leaves])
    assert_close(y, expected, 1e-6)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_close(grad, expected_grad, 1e-5)


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_gradcheck(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECISION_SEQ_SCAN", name)
    for shape in [(2, 18, 2, 3), (1, 1, 3, 1)]:
        inputs = [t.requires_grad_() for t in scan_inputs(shape)]
        assert torch.autograd.gradcheck(ops.selective_scan, inputs)
        inputs = [t.requires_grad_() for t in conv_inputs(shape, 3)]
        assert torch.autograd.gradcheck(ops.causal_conv_silu, inputs)


@pytest.mark.parametrize(("chunks", "states"), in_turn(CHUNKS, (1, 5, 16, 20)), ids=str)
def test_scan_step_equals_forward(backend: str, states: int, chunks: list[int]) -> None:
    u, dt, A, B, C, D, z = single(scan_inputs((2, 9, 17, states)))
    state = torch.zeros(2, 17, states)
    outputs, start = [], 0
    for n in chunks:
        part = slice(start, start + n)
        before = state.clone()
        y, new_state = ops.selective_scan_step(
            u[:, part], dt[:, part], A, B[:, part], C[:, part], D, z[:, part], state
        )
        assert torch.equal(state, before), "the given state must not change"
        outputs, state, start = [*outputs, y], new_state, start + n
    expected = ops.selective_scan(u, dt, A, B, C, D, z)
    assert_close(torch.cat(outputs, 1), expected.double(), 1e-6)


@pytest.mark.parametrize(("chunks", "taps"), in_turn(CHUNKS, TAPS), ids=str)
def test_conv_step_equals_forward(backend: str, taps: int, chunks: list[int]) -> None:
    x, weight, bias = single(conv_inputs((2, 9, 17, 0), taps))
    history = torch.zeros(2, taps - 1, 17)
    outputs, start = [], 0
    for n in chunks:
        before = history.clone()
        y, new_history = ops.causal_conv_silu_step(x[:, start : start + n], weight, bias, history)
        assert torch.equal(history, before), "the given history must not change"
        outputs, history, start = [*outputs, y], new_history, start + n
    assert_close(torch.cat(outputs, 1), ops.causal_conv_silu(x, weight, bias).double(), 1e-6)


def test_step_of_many_lanes_and_no_gate(backend: str) -> None:
    inputs = scan_inputs((33, 2, 40, 16), gated=False)
    state = torch.randn(33, 40, 16, dtype=torch.float64)
    expected_y, expected_state = reference.selective_scan_step(*inputs, state)
    y, new_state = ops.selective_scan_step(*single(inputs), state.float())
    assert_close(y, expected_y, 1e-6)
    assert_close(new_state, expected_state, 1e-6)


def test_two_runs_are_bit_equal(backend: str) -> None:
    """Resuming a run bit for bit needs this; the C kernel holds it for any number of threads."""
    inputs = single(scan_inputs((9, 40, 300, 16)))
    results = []
    for threads in (1, 2, 2, 3) if backend == "c" else (1, 1):
        torch.set_num_threads(threads)
        y, grads = with_grads(ops.selective_scan, inputs)
        conv_y, conv_grads = with_grads(
            ops.causal_conv_silu, single(conv_inputs((9, 40, 300, 0), 4))
        )
        results.append([y, *grads, conv_y, *conv_grads])
    for first, second in itertools.pairwise(results):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_empty_inputs(backend: str) -> None:
    for shape in [(0, 5, 17, 16), (2, 0, 17, 16)]:
        y, grads = with_grads(ops.selective_scan, single(scan_inputs(shape)))
        assert y.shape == shape[:3]
        assert all(not grad.any() for grad in grads)
        y, grads = with_grads(ops.causal_conv_silu, single(conv_inputs(shape, 4)))
        assert y.shape == shape[:3]
        assert all(not grad.any() for grad in grads)


def test_autocast_and_half_precision_compute_in_float32(backend: str) -> None:
    inputs = scan_inputs((2, 33, 17, 16))
    expected, expected_grads = with_grads(reference.selective_scan, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        y, grads = with_grads(ops.selective_scan, single(inputs))
    assert_close(y, expected, 1e-6)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_close(grad, expected_grad, 1e-5)


def test_half_precision_is_rounded_once(backend: str) -> None:
    """bfloat16 comes in and goes out; what is between them is float32."""
    scan = [t.bfloat16() for t in scan_inputs((2, 33, 17, 16))]
    conv = [t.bfloat16() for t in conv_inputs((2, 33, 17, 16), 4)]
    for function, oracle, inputs in (
        (ops.selective_scan, reference.selective_scan, scan),
        (ops.causal_conv_silu, reference.causal_conv_silu, conv),
    ):
        y, grads = with_grads(function, inputs)
        exact_inputs = [t.double() for t in inputs]
        expected, expected_grads = with_grads(oracle, exact_inputs, rounded=torch.bfloat16)
        for own, exact in zip([y, *grads], [expected, *expected_grads], strict=True):
            assert own.dtype == torch.bfloat16
            allowed = exact.abs() * 2**-8 + 1e-5 * exact.abs().max()
            assert ((own.double() - exact).abs() <= allowed).all()


def test_compiled_code_sees_the_operators(backend: str) -> None:
    inputs = single(scan_inputs((2, 5, 17, 4)))
    weight, bias = torch.randn(17, 1, 4), torch.randn(17)

    def run(*inputs: Tensor) -> Tensor:
        u, *rest = inputs
        return ops.selective_scan(ops.causal_conv_silu(u, weight, bias), *rest)

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    expected, expected_grads = with_grads(run, inputs)
    y, grads = with_grads(compiled, inputs)
    assert_close(y, expected.double(), 1e-6)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_close(grad, expected_grad.double(), 1e-5)


def test_the_operators_are_registered_soundly() -> None:
    inputs = single(scan_inputs((2, 18, 17, 5)))
    u, dt, A, B, C, D, z = (t.requires_grad_() for t in inputs)
    torch.library.opcheck(torch.ops.decision_seq.scan_blocked.default, (u, dt, A, B, C))
    if not BACKENDS["c"].unusable():
        operators = torch.ops.decision_seq
        torch.library.opcheck(operators.scan_cpu.default, (u, dt, A, B, C, D, z, True))
        torch.library.opcheck(operators.scan_cpu.default, (u, dt, A, B, C, D, None, True))
        weight, bias = (t.requires_grad_() for t in (torch.randn(17, 1, 4), torch.randn(17)))
        torch.library.opcheck(operators.conv_silu_cpu.default, (u, weight, bias))


@needs_c
def test_exponential_of_the_c_kernel() -> None:
    """After an input of 1 at the first step, with dt = B = C = 1, the second gives exp(A).

    Rounding dt A to float32 alone costs up to 1.2e-7 |dt A|; the rest must stay below 3e-7.
    """
    rates = -torch.cat([torch.linspace(0, 80, 20_001), torch.logspace(-8, 0, 10_000)])  # [E]
    width = len(rates)
    first = torch.tensor([1.0, 0.0]).view(1, 2, 1).expand(1, 2, width)
    one = torch.ones(1, 2, width)
    y = BACKENDS["c"].scan(
        first, one, rates[:, None], one[..., :1], one[..., :1], torch.zeros(width)
    )
    expected = rates.double().exp()
    error = (y[0, 1] - expected).abs() / expected
    assert (error < 3e-7 - 1.2e-7 * rates.double()).all()
    assert error[-10_000:].max() < 3e-7


@needs_c
def test_forked_child_does_not_wait_for_threads() -> None:
    """Data loaders fork; OpenMP's threads stay behind in the parent."""
    torch.set_num_threads(2)
    inputs = single(scan_inputs((9, 40, 300, 16)))
    expected = ops.selective_scan(*inputs)
    child = os.fork()
    if child == 0:
        # Compared by numpy: torch.equal would itself ask for the threads that are gone.
        y = BACKENDS["c"].scan(*inputs).numpy()
        os._exit(0 if (y == expected.numpy()).all() else 1)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
