"""A training step as a GPU makes it: by precision, recorded, by whose scan; and of many seeds at
once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks import models
from benchmarks.measure import Call, Options, Table, benchmark, interleaved
from benchmarks.scan import usable
from benchmarks.training import MAIN, PRECISIONS, forced, step
from decision_seq.data.windows import WindowSampler
from decision_seq.run_config import DataConfig, RunConfig, TrainConfig
from decision_seq.training.log import NoLog
from decision_seq.training.loop import Run
from decision_seq.training.random import RandomStream
from decision_seq.training.stacked import Stepper

COUNTS = (1, 2, 5, 10, 20)


@benchmark("steps", "a training step by precision, recorded or not, and by every kernel's scan")
def steps(options: Options) -> Iterator[Table]:
    windows = models.sampler(models.store(), options.device)
    calls: dict[str, Call] = {}
    precisions = PRECISIONS[: 1 if options.quick else 2]  # bfloat16 takes seconds on some CPUs
    ways = {"": False} | ({", recorded": True} if options.device == "cuda" else {})
    for backbone, (how, recorded) in itertools.product(MAIN, ways.items()):
        make = partial(step, backbone, windows=windows, options=options, recorded=recorded)
        for precision in precisions:
            calls[f"{backbone} {precision}{how}"] = make(precision=precision)
        calls[f"{backbone} TF32{how}"] = in_tf32(make(precision="float32"))
    for backend in usable(options):
        if backend.fused:
            run = step("mamba", "float32", windows, options)
            calls[f"mamba float32, scan by {backend.name}"] = forced(backend.name, run)
    yield Table(
        "Training step, batch 64, K 20, 3 layers, width 128, dropout 0.1",
        interleaved(calls, options),
        base="mamba float32",
        note="Compiled ones are in `training`: compiling takes longer than all of these.",
    )


def in_tf32(call: Call) -> Call:
    """Products of float32 by tensor cores, which round what they read to 10 bits."""

    def run() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        call()
        torch.set_float32_matmul_precision(before)

    return run


@benchmark("seeds", "a training step of 1 to 20 seeds at once, by the seed", tables=2)
def seeds(options: Options) -> Iterator[Table]:
    windows = models.sampler(models.store(), options.device)
    counts = COUNTS[:2] if options.quick else COUNTS
    ways: dict[str, bool] = {"": False} | ({", recorded": True} if options.device == "cuda" else {})
    for backbone in MAIN:
        calls: dict[str, Call] = {}
        units: dict[str, float] = {}
        for how, recorded in ways.items():
            alone = f"1 seed, alone{how}"
            calls[alone] = step(backbone, "float32", windows, options, recorded=recorded)
            for count in counts:
                name = f"{count} at once{how}"
                calls[name] = stacked_step(backbone, count, windows, options, recorded)
                units[name] = count
        yield Table(
            f"Training step of {backbone}, float32, milliseconds a seed",
            interleaved(calls, options, units),
            base=alone,
        )


def stacked_step(
    backbone: str, count: int, windows: WindowSampler, options: Options, recorded: bool
) -> Call:
    """The whole gradient step of `decision-seq train --seeds`, its batches included; `recorded` as
    in `training.step`."""
    device, runs = torch.device(options.device), []
    settings = TrainConfig(steps=1, compile="auto" if recorded else "off")
    for seed in range(count):
        agent = models.agent(backbone).to(device)
        config = RunConfig("Hopper-v5", DataConfig(("noise",)), agent.config, settings)
        learner = models.learner(agent, settings)
        learner.random = RandomStream(seed, device)
        runs.append(Run(config, Path(), learner, windows, {}, NoLog(), None))
    stepper = Stepper()
    return lambda: stepper(runs)
