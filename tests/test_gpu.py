"""What runs on a GPU only, beside the CPU: `pytest tests/test_gpu.py` where there is one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import frame_episodes, random_episodes, write_npz
from ops_inputs import conv_inputs, scan_inputs, single, with_grads
from small_agents import (
    KINDS,
    A,
    K,
    S,
    drawn_steps,
    every,
    every_backbone,
    every_pair,
    make,
    random_batch,
)
from torch import Tensor

from decision_seq import ops
from decision_seq.agents import AgentConfig
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.data.transforms import ReturnSpec
from decision_seq.data.windows import Batch, WindowSampler
from decision_seq.ops.dispatch import BACKENDS, choose
from decision_seq.ops.pytorch import reference
from decision_seq.policy import Policy
from decision_seq.policy.graph import GraphEngine
from decision_seq.run_config import DataConfig, RunConfig, TrainConfig, run_config
from decision_seq.settings import Context
from decision_seq.training.distributed import World
from decision_seq.training.faults import FiniteGuard
from decision_seq.training.log import NoLog
from decision_seq.training.loop import Run, fresh_learner
from decision_seq.training.optim import make_optimizer
from decision_seq.training.random import RandomStream
from decision_seq.training.recorded import RecordedSteps, SingleSteps
from decision_seq.training.samplers import make_samplers
from decision_seq.training.stacked import Stepper
from decision_seq.training.step import Learner, gradient_step

if not torch.cuda.is_available():
    pytest.skip("PyTorch finds no GPU", allow_module_level=True)
GPU = torch.device("cuda", 0)
AVAILABLE = [name for name in ("triton", "mamba_ssm", "torch") if not BACKENDS[name].unusable()]
SHAPES = [(1, 1, 1, 1), (2, 17, 5, 3), (1, 33, 40, 16), (64, 60, 256, 16), (2, 3000, 64, 16)]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Products in float32, not TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(params=AVAILABLE)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DECISION_SEQ_SCAN", request.param)
    return request.param


def moved(batch: Batch, device: torch.device) -> Batch:
    return Batch(**{name: tensor.to(device) for name, tensor in vars(batch).items()})


def check(function, oracle, inputs: list[Tensor | None]) -> None:
    """Values and gradients on the GPU against float64 on the CPU."""
    expected, expected_grads = with_grads(oracle, inputs)
    here = [None if t is None else t.to(GPU) for t in single(inputs)]
    torch.manual_seed(0)
    leaves = [None if t is None else t.requires_grad_() for t in here]
    y = function(*leaves)
    direction = torch.randn(y.shape, dtype=torch.float64).to(y)
    grads = torch.autograd.grad(
        (y * direction).sum(), [t for t in leaves if t is not None], materialize_grads=True
    )
    for actual, exact, limit in [
        (y, expected, 1e-6),
        *((g, e, 1e-5) for g, e in zip(grads, expected_grads, strict=True)),
    ]:
        error = (actual.cpu().double() - exact).norm() / exact.norm().clamp_min(1e-30)
        assert error < limit


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gated", [True, False])
def test_scans_agree_with_float64(backend: str, shape: tuple[int, ...], gated: bool) -> None:
    if backend == "mamba_ssm" and shape[3] > 256:
        pytest.skip("mamba-ssm's kernels take up to 256 states")
    check(ops.selective_scan, reference.selective_scan, scan_inputs(shape, gated))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("taps", [1, 4])
def test_convolutions_agree_with_float64(backend: str, shape: tuple[int, ...], taps: int) -> None:
    check(ops.causal_conv_silu, reference.causal_conv_silu, conv_inputs(shape, taps))


def test_a_fused_kernel_runs_by_default() -> None:
    assert choose(torch.float32, "cuda").fused


@every_pair
def test_losses_and_gradients_are_those_of_the_cpu(kind: str, config: type[AgentConfig]) -> None:
    agent, batch = make(kind, config).train(), random_batch(4, lengths=[K, 1, 3, K])
    here = copy.deepcopy(agent).to(GPU)
    losses = agent.loss(batch), here.loss(moved(batch, GPU))
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1].cpu(), losses[0], rtol=1e-4, atol=1e-6)
    pairs = zip(agent.named_parameters(), here.parameters(), strict=True)
    for (name, a), b in pairs:
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and b.grad is not None:
            torch.testing.assert_close(b.grad.cpu(), a.grad, rtol=1e-3, atol=1e-5, msg=name)


@every("discrete")
@pytest.mark.parametrize("context", ["window", "stream"])
def test_actions_are_those_of_the_cpu_and_recorded(
    kind: str, config: type[AgentConfig], context: Context, discrete: bool
) -> None:
    agent = make(kind, config, discrete)
    here = copy.deepcopy(agent).to(GPU)
    policies = [Policy(a, context, [5.0, 6.0, 7.0], 3) for a in (agent, here)]
    for seen in drawn_steps(3 * K, 3, np.random.default_rng(3)):
        expected, action = (policy.act(*seen) for policy in policies)
        np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-4)
    engine = policies[1].engine
    assert isinstance(engine, GraphEngine) and engine.possible and engine.graph is not None


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("frames", [True, False])
def test_batches_are_those_of_the_cpu(resident: bool, frames: bool, tmp_path: Path) -> None:
    lengths = [3, 9, 1, 7]
    episodes = frame_episodes(lengths) if frames else random_episodes(lengths)
    store = open_store([str(write_npz(tmp_path / "data.npz", episodes))])
    here, there = (sampler(store, device) for device in (torch.device("cpu"), GPU))
    assert all(table.is_cuda for table in there._tables.values())
    if not resident:
        there._tables = here._tables
    for index in range(3):
        batch = there.batch(index, 16)
        for name, tensor in vars(here.batch(index, 16)).items():
            assert getattr(batch, name).is_cuda and torch.equal(getattr(batch, name).cpu(), tensor)


def sampler(store: EpisodeStore, device: torch.device) -> WindowSampler:
    return WindowSampler(store, np.arange(store.episodes), K, ReturnSpec(scale=10.0), 0, device)


@every_backbone
@pytest.mark.parametrize("resident", [True, False])
def test_a_gradient_step_waits_for_nothing(kind: str, resident: bool, tmp_path: Path) -> None:
    """So the next batch is gathered while the GPU works on this one."""
    file = write_npz(tmp_path / "data.npz", random_episodes([40] * 10, S, A))
    store, agent = open_store([str(file)]), make(kind).to(GPU).train()
    windows = sampler(store, GPU)
    if not resident:
        windows._tables = sampler(store, torch.device("cpu"))._tables
    settings = TrainConfig(steps=9, batch_size=8)
    config = RunConfig("Hopper-v5", DataConfig((str(file),)), agent.config, settings)
    guard, optimizer = FiniteGuard(0, GPU), make_optimizer(agent, settings)
    sums, stream = torch.zeros(2, device=GPU), RandomStream(0, GPU)
    learner = Learner(agent, agent, optimizer, guard, *sums, random=stream)
    for _ in range(3):  # to load kernels
        gradient_step(learner, windows, config)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            gradient_step(learner, windows, config)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert learner.guard.tripped() is None and float(learner.loss_count) == 6


def small_runs(kind: str, folder: Path, seeds: tuple[int, ...], **settings: Any) -> list[Run]:
    """Without folders, with dropout."""
    file = write_npz(folder / "data.npz", random_episodes([40] * 10, S, A))
    backbone = {"kind": kind, "width": 16, "layers": 2, "dropout": 0.2}
    agent = {"kind": "return_conditioned", "context_length": K, "backbone": backbone}
    base = {"env": "Hopper-v5", "data": {"sources": [str(file)]}, "agent": agent}
    config = run_config(base | {"train": {"batch_size": 8, "steps": 9, **settings}}, {}, "test")
    store, made = open_store([str(file)]), []
    for own in (replace(config, seed=seed) for seed in seeds):
        learner = fresh_learner(own, store, GPU, World())
        windows, _ = make_samplers(own, store, GPU)
        made.append(Run(own, Path(), learner, windows, {}, NoLog(), None))
    return made


@every_backbone
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recorded_steps_are_those_one_by_one(kind: str, precision: str, tmp_path: Path) -> None:
    """With dropout, from the same stream of random numbers, and a rate that changes."""
    run, alone = (small_runs(kind, tmp_path, (3,), precision=precision)[0] for _ in range(2))
    step = RecordedSteps(SingleSteps(run.learner, run.training, run.config))
    for number in range(8):
        torch.cuda.set_sync_debug_mode("error" if number > 4 else "default")
        try:
            norm = step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected = gradient_step(alone.learner, alone.training, alone.config)
        torch.testing.assert_close(norm, expected, rtol=1e-2, atol=1e-4)
    assert step.graph is not None
    states = (r.learner.random.state() for r in (run, alone))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@every_backbone
@pytest.mark.parametrize("compile", ["off", "auto"])
def test_seeds_at_once_are_those_alone_and_wait_for_nothing(
    kind: str, compile: str, tmp_path: Path
) -> None:
    """Dropout included: the masks are each seed's own, recorded or not."""
    stacked, alone = (small_runs(kind, tmp_path, (3, 1), compile=compile) for _ in range(2))
    stepper = Stepper()
    for number in range(8):
        waits = number < (5 if compile == "auto" else 1)  # kernels are loaded, a step is recorded
        torch.cuda.set_sync_debug_mode("default" if waits else "error")
        try:
            norms = torch.stack(stepper(stacked))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected = [gradient_step(run.learner, run.training, run.config) for run in alone]
        torch.testing.assert_close(norms, torch.stack(expected), rtol=1e-2, atol=1e-4)
    assert compile == "off" or stepper.step.graph is not None  # type: ignore[attr-defined]
    for run, other in zip(stacked, alone, strict=True):
        states = (r.learner.random.state() for r in (run, other))
        assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "pointwise"])
def test_mixed_precision_stays_near(kind: str) -> None:
    agent, batch = make(kind).to(GPU).train(), moved(random_batch(4), GPU)
    exact = agent.loss(batch)
    with torch.autocast("cuda", torch.bfloat16):
        rounded = agent.loss(batch)
    rounded.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in agent.parameters())
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.01)
