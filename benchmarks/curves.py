"""Training curves by the best scan, by PyTorch's and in bfloat16, which should be the same.

    python -m benchmarks --only curves [--data FILE]

The runs of a backbone share seed, initial weights and batches. Dropout is off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks import models
from benchmarks.measure import Listing, Options, benchmark
from decision_seq.agents import SequenceAgent
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.backbones import BackboneConfig
from decision_seq.data.sources import minari_dataset
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.eval.drawing import panels, to_svg
from decision_seq.eval.report.figures import style_of
from decision_seq.ops.dispatch import choose_name
from decision_seq.run_config import DataConfig, RunConfig, TrainConfig
from decision_seq.training.samplers import make_samplers
from decision_seq.training.step import gradient_step
from decision_seq.training.validation import validation_loss

NAMES = {"mamba": "Decision Mamba", "attention": "Decision Transformer"}
WARMUP = 20  # steps
SMOOTHED = 20  # steps that a point of a smoothed curve is the mean of
VALIDATIONS = 10


@dataclass
class Curve:
    """One run."""

    losses: list[float]  # of each step
    validation: list[tuple[int, float]]  # (steps taken, loss)

    @property
    def smoothed(self) -> np.ndarray:
        return np.convolve(self.losses, np.full(SMOOTHED, 1 / SMOOTHED), "valid")


def train(backbone: str, precision: str, store: EpisodeStore, options: Options) -> Curve:
    """A run of the Gym setting, with a learning rate and a warm-up for few steps."""
    steps = 60 if options.brief else 300
    config = RunConfig(
        "Hopper-v5",
        DataConfig((options.data,)),
        ReturnConditionedConfig(
            backbone=BackboneConfig.registry[backbone](
                width=models.WIDTH, layers=models.LAYERS, dropout=0.0
            )
        ),
        TrainConfig(steps=steps, learning_rate=1e-3, warmup_steps=WARMUP, precision=precision),  # type: ignore[arg-type]
    )
    torch.manual_seed(config.seed)
    device = torch.device(options.device)
    agent = SequenceAgent.for_dataset(config.agent, store).to(device)
    training, held_out = make_samplers(config, store, device)
    learner, curve = models.learner(agent, config.train), Curve([], [])
    for step in range(steps + 1):
        if step % (steps // VALIDATIONS) == 0:
            loss = validation_loss(agent, held_out["validation_loss"], config)
            curve.validation.append((step, loss))
        if step < steps:
            gradient_step(learner, training, config)
            curve.losses.append(float(learner.loss_sum))
            learner.loss_sum.zero_()
    return curve


@benchmark("curves", "training curves on hopper medium by each scan and in bfloat16, no times")
def curves(options: Options) -> Iterator[Listing]:
    if options.data == Options.data and options.data not in minari_dataset.local():
        print("curves is skipped: `decision-seq collect hopper medium` makes its data.")
        return
    store = open_store((options.data,))
    best = choose_name(torch.float32, options.device)
    settings = {
        f"{best} float32": (best, "float32"),
        "torch float32": ("torch", "float32"),
        f"{best} bfloat16": (best, "bfloat16"),
    }
    runs: dict[str, dict[str, Curve]] = {backbone: {} for backbone in NAMES}
    rows, series = [], {}
    for backbone, own in runs.items():
        for name, (backend, precision) in settings.items():
            with models.scan_backend(backend):
                curve = own[name] = train(backbone, precision, store, options)
            apart = distance(curve, own[f"{best} float32"])
            ends = (f"{curve.validation[i][1]:.4f}" for i in (0, -1))
            rows.append([f"{NAMES[backbone]}, {name}", *ends, f"{apart:.2g}"])
            series[f"{backbone}, {name}"] = curve.losses
    yield Listing(
        f"Training curves, {store.name}, batch 64, K 20, 3 layers, width 128",
        ["", "validation loss before", f"after {len(curve.losses)} steps", "largest distance"],
        rows,
        note=f"Distance: of the training loss, as a mean over {SMOOTHED} steps, from that by "
        f"`{best}` in float32 at the same step, relative to it. Seed, initial weights and batches "
        "are the same; dropout is 0. Learning rate 1e-3 "
        f"after {WARMUP} steps.",
        series=series,
        figures={"curves.svg": figure(runs)},
    )


def distance(curve: Curve, base: Curve) -> float:
    return float(np.max(np.abs(curve.smoothed / base.smoothed - 1)))


def figure(runs: dict[str, dict[str, Curve]]) -> str:
    """A panel a backbone: training losses as lines, the first the widest, as they hide each other;
    validation losses as dots."""
    drawing, axes = panels([NAMES[backbone] for backbone in runs])
    for (ax, _), own in zip(axes, runs.values(), strict=True):
        style = style_of(list(own))
        for (name, curve), line, width in zip(own.items(), "--:", (6, 2, 2), strict=True):
            look: dict[str, Any] = {"color": style[name][0], "alpha": 0.4 if width > 2 else 1.0}
            steps = range(SMOOTHED, len(curve.losses) + 1)
            ax.plot(steps, curve.smoothed, line, linewidth=width, label=name, **look)
            ax.plot(*zip(*curve.validation, strict=True), "o", markersize=width + 1, **look)
        ax.set_xlabel("gradient step")
        ax.set_yscale("log")
        ax.set_ylabel("loss")
    return to_svg(drawing, [ax for ax, _ in axes])
