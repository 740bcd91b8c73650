"""Training steps, beside those of the packages that can be installed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import models
from benchmarks.measure import (
    Call,
    Options,
    Table,
    benchmark,
    floor,
    installed,
    interleaved,
    take_turns,
    timers,
)
from benchmarks.peers import d3rlpy
from benchmarks.scan import conv1d_silu, mambapy_scan
from decision_seq.backbones import BackboneConfig
from decision_seq.data.windows import Batch, WindowSampler
from decision_seq.ops.dispatch import BACKENDS, Backend, choose_name
from decision_seq.run_config import DataConfig, RunConfig, TrainConfig
from decision_seq.training.recorded import RecordedSteps, SingleSteps
from decision_seq.training.step import gradient_step

MAIN, PRECISIONS = ("attention", "mamba"), ("float32", "bfloat16")
KERNELS: dict[str, tuple[str, ...]] = {"attention": (), "mamba": ("scan", "conv")}


def step(
    backbone: str,
    precision: str,
    windows: WindowSampler,
    options: Options,
    compiled: bool = False,
    recorded: bool = False,
) -> Call:
    """The whole gradient step of `decision-seq train`, its batch included; `recorded` as a CUDA
    graph, as it is by default on a GPU, or launched kernel by kernel."""
    agent = models.agent(backbone).to(options.device)
    settings = TrainConfig(steps=1, precision=precision)  # type: ignore[arg-type]
    config = RunConfig("Hopper-v5", DataConfig(("noise",)), agent.config, settings)
    learner = models.learner(agent, settings)
    if compiled:
        learner.loss = torch.compile(agent.loss)
    if recorded:
        return RecordedSteps(SingleSteps(learner, windows, config))
    return lambda: gradient_step(learner, windows, config)


def transformers_step(batch: Batch, precision: str, options: Options) -> Call:
    """The same model by transformers: published widths, dropout, clipping and optimizer."""
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    config = DecisionTransformerConfig(
        state_dim=models.OBSERVATIONS,
        act_dim=models.ACTIONS,
        hidden_size=models.WIDTH,
        max_ep_len=models.EPISODE,
        n_layer=models.LAYERS,
        n_head=1,
        n_inner=4 * models.WIDTH,
        n_positions=1024,
    )
    model = DecisionTransformerModel(config).train().to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    rewards = torch.zeros(*batch.mask.shape, 1, device=options.device)

    def run() -> None:
        with torch.autocast(options.device, torch.bfloat16, enabled=precision == "bfloat16"):
            predicted = model(
                states=batch.observations,
                actions=batch.actions,
                rewards=rewards,
                returns_to_go=batch.returns_to_go.unsqueeze(-1),
                timesteps=batch.timesteps,
                attention_mask=batch.mask.long(),
            ).action_preds
        kept = batch.mask.reshape(-1)
        loss = F.mse_loss(predicted.float().flatten(0, 1)[kept], batch.actions.flatten(0, 1)[kept])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()

    return run


def flops(call: Call) -> int:
    """Floating-point operations of the matrix products in a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def steps(backbones: Iterable[str], windows: WindowSampler, options: Options) -> dict[str, Call]:
    """Of each backbone, in both precisions."""
    return {
        f"{backbone} {precision}": step(backbone, precision, windows, options)
        for backbone in backbones
        for precision in PRECISIONS
    }


def compiled_steps(windows: WindowSampler, options: Options) -> tuple[dict[str, Call], str]:
    """The same with the loss by torch.compile, on a GPU, and what it could not compile. On a CPU it
    is slower than the kernels."""
    calls: dict[str, Call] = {}
    failures = ""
    if options.device == "cpu":
        return calls, failures
    for backbone, precision in itertools.product(MAIN, PRECISIONS):
        call = step(backbone, precision, windows, options, compiled=True)
        name = f"{backbone} {precision}, compiled"
        try:
            call()
        except Exception as error:  # whatever the compiler raises, the others are worth their turns
            reason, *_ = str(error).splitlines() or [""]
            failures += f" {name}: {type(error).__name__}, {reason}."
        else:
            calls[name] = call
    return calls, failures


@benchmark("training", "training steps of attention and Mamba, beside transformers' and d3rlpy's")
def training(options: Options) -> Iterator[Table]:
    windows = models.sampler(models.store(), options.device)
    ours = steps(MAIN, windows, options)
    compiled, failures = compiled_steps(windows, options)
    theirs = {}
    if installed("transformers"):
        batch = windows.batch(0, models.BATCH)
        for precision in PRECISIONS:
            name = f"transformers DecisionTransformer {precision}"
            theirs[name] = transformers_step(batch, precision, options)
    needed = {name: flops(ours[f"{name} float32"]) for name in MAIN}
    rates = floor(options)
    floors = ", ".join(
        f"{name} {1e3 * n / rates.float32:.1f} ms in float32 and "
        f"{1e3 * n / rates.bfloat16:.1f} in bfloat16"
        for name, n in needed.items()
    )
    with d3rlpy("d3rlpy DecisionTransformer float32", "step", options) as elsewhere:
        rows = take_turns(timers(ours | compiled | theirs, options) | elsewhere, options)
    yield Table(
        "Training step, batch 64, K 20, 3 layers, width 128, dropout 0.1",
        rows,
        base="attention float32",
        note="Ours draw the batch as well. d3rlpy runs in a process of its own, which takes turns "
        f"with this one. Matrix products alone, at the measured rate: {floors}.{failures}",
    )


@benchmark("backbones", "a training step of every backbone, float32 and bf16")
def backbones(options: Options) -> Iterator[Table]:
    windows = models.sampler(models.store(), options.device)
    yield Table(
        "Training step of every backbone, batch 64, K 20, 3 layers, width 128, dropout 0.1",
        interleaved(steps(BackboneConfig.registry, windows, options), options),
        base="attention float32",
    )


@benchmark(
    "mamba", "a Mamba training step by our scan, by mambapy's, and transformers' mixer", tables=2
)
def mamba(options: Options) -> Iterator[Table]:
    windows = models.sampler(models.store(), options.device)
    contenders = {"ours": step("mamba", "float32", windows, options)}
    contenders["torch (no compiler)"] = forced("torch", step("mamba", "float32", windows, options))
    mambapy = dataclasses.replace(
        BACKENDS["torch"], name="mambapy", scan=mambapy_scan, conv=conv1d_silu
    )
    if installed("mambapy"):
        contenders["mambapy's scan"] = forced("mambapy", step("mamba", "float32", windows, options))
    with known(mambapy):
        yield Table(
            "Mamba training step, float32, in the same model",
            interleaved(contenders, options),
            base="ours",
        )
    if installed("transformers"):
        yield Table(
            "One Mamba mixer, forward + backward, batch 64, 60 tokens, width 128",
            interleaved(mixers(options), options),
            base="ours",
        )


@benchmark("ablation", "a training step with one kernel at a time by PyTorch instead", tables=4)
def ablation(options: Options) -> Iterator[Table]:
    windows = models.sampler(models.store(), options.device)
    best = BACKENDS[choose_name(torch.float32, options.device)]
    for backbone, precision in itertools.product(MAIN, PRECISIONS):
        run = step(backbone, precision, windows, options)
        without = [replaced(best, kernel) for kernel in KERNELS[backbone]]
        contenders = {backend.name: forced(backend.name, run) for backend in (best, *without)}
        contenders["none by a kernel"] = forced("torch", run)
        with known(*without):
            yield Table(
                f"Training step of {backbone}, {precision}, batch 64, K 20, 3 layers, width 128",
                interleaved(contenders, options),
                base=best.name,
            )


def replaced(backend: Backend, kernel: str) -> Backend:
    """The backend with this operation by PyTorch, in float32 as it runs where there is no other."""
    own = getattr(BACKENDS["torch"], kernel)

    def widened(*tensors: Tensor | None) -> Tensor:
        return own(*(None if t is None else t.float() for t in tensors))

    return dataclasses.replace(backend, name=f"{kernel} by PyTorch", **{kernel: widened})  # type: ignore[arg-type]


@contextmanager
def known(*backends: Backend) -> Iterator[None]:
    """These can be forced by their names."""
    BACKENDS.update({backend.name: backend for backend in backends})
    try:
        yield
    finally:
        for backend in backends:
            del BACKENDS[backend.name]


def forced(backend: str, call: Call) -> Call:
    def run() -> None:
        with models.scan_backend(backend):
            call()

    return run


def mixers(options: Options) -> dict[str, Call]:
    """Our mixer and transformers', with PyTorch alone."""
    from transformers import MambaConfig as Theirs
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = Theirs(hidden_size=models.WIDTH, state_size=16, num_hidden_layers=1)
    modules: dict[str, Any] = {
        "ours": models.agent("mamba").backbone.blocks[0].mixer,
        "transformers": MambaMixer(config, layer_idx=0),
    }
    x = torch.randn(models.BATCH, models.TOKENS, models.WIDTH, device=options.device)

    def run(module: nn.Module) -> Call:
        module.to(options.device)

        def call() -> None:
            y: Tensor = module(x)
            y.square().mean().backward()

        return call

    return {name: run(module) for name, module in modules.items()}
