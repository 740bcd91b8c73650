"""Training steps and batches, beside those of the packages that can be installed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path as FilePath

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import models
from benchmarks.measure import Call, Options, Row, Table, benchmark, floor, installed, interleaved
from benchmarks.scan import conv1d_silu, mambapy_scan
from decision_seq.data.store import EpisodeStore
from decision_seq.data.windows import Batch, WindowSampler
from decision_seq.ops.dispatch import PATHS
from decision_seq.run_config import DataConfig, RunConfig, TrainConfig
from decision_seq.train.faults import FiniteGuard
from decision_seq.train.loop import Learner, gradient_step
from decision_seq.train.optim import make_optimizer

ARRAYS = ("observations", "actions", "rewards", "offsets")
D3RLPY = "DECISION_SEQ_D3RLPY_PYTHON"


def step(backbone: str, precision: str, windows: WindowSampler, options: Options) -> Call:
    """The whole gradient step of `decision-seq train`, its batch included."""
    agent = models.agent(backbone).to(options.device)
    settings = TrainConfig(steps=1, precision=precision)  # type: ignore[arg-type]
    config = RunConfig("Hopper-v5", DataConfig(("noise",)), agent.config, settings)
    sums = torch.zeros(2, device=options.device)
    guard = FiniteGuard(0, torch.device(options.device))
    learner = Learner(agent, agent, make_optimizer(agent, settings), guard, sums[0], sums[1])
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
    model = DecisionTransformerModel(config).to(options.device).train()
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


@benchmark("training", "training steps: attention and Mamba, float32 and bf16, and transformers'")
def training(options: Options) -> Iterator[Table]:
    windows = models.sampler(models.store(), options.device)
    ours = {
        f"{backbone} {precision}": step(backbone, precision, windows, options)
        for backbone in ("attention", "mamba")
        for precision in ("float32", "bfloat16")
    }
    theirs = {}
    if installed("transformers"):
        batch = windows.batch(0, models.BATCH)
        for precision in ("float32", "bfloat16"):
            name = f"transformers DecisionTransformer {precision}"
            theirs[name] = transformers_step(batch, precision, options)
    needed = {name: flops(ours[f"{name} float32"]) for name in ("attention", "mamba")}
    rates = floor(options)
    floors = ", ".join(
        f"{name} {1e3 * n / rates.float32:.1f} ms in float32 and "
        f"{1e3 * n / rates.bfloat16:.1f} in bfloat16"
        for name, n in needed.items()
    )
    yield Table(
        "Training step, batch 64, K 20, 3 layers, width 128, dropout 0.1",
        interleaved(ours | theirs, options),
        base="attention float32",
        note=f"Ours draw the batch as well. Matrix products alone, at the measured rate: {floors}.",
    )
    row = d3rlpy_row(options)
    if row is not None:
        yield Table("d3rlpy's Decision Transformer, a process of its own", [row], base=row.name)


def d3rlpy_row(options: Options) -> Row | None:
    """d3rlpy pins another gymnasium, so it needs an environment of its own."""
    python = os.environ.get(D3RLPY)
    if not python:
        print(f"d3rlpy is skipped: set {D3RLPY} to the Python of an environment that has it.")
        return None
    script = FilePath(__file__).with_name("d3rlpy_step.py")
    done = subprocess.run(
        [python, str(script), options.device, str(options.threads)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(f"d3rlpy is skipped: {python} failed ({(done.stderr.splitlines() or ['?'])[-1]}).")
        return None
    return Row("d3rlpy float32", json.loads(done.stdout.splitlines()[-1]))


@benchmark("mamba", "a Mamba training step by our scan, by mambapy's, and transformers' mixer")
def mamba(options: Options) -> Iterator[Table]:
    windows = models.sampler(models.store(), options.device)
    contenders = {"ours": step("mamba", "float32", windows, options)}
    if installed("mambapy"):
        fields = {"name": "mambapy", "unusable": str, "accepts": lambda dtype, device: True}
        path = dataclasses.replace(PATHS["torch"], **fields, scan=mambapy_scan, conv=conv1d_silu)
        PATHS["mambapy"] = path
        contenders["mambapy's scan"] = forced("mambapy", step("mamba", "float32", windows, options))
    contenders["torch (no compiler)"] = forced("torch", step("mamba", "float32", windows, options))
    yield Table(
        "Mamba training step, float32, in the same model",
        interleaved(contenders, options),
        base="ours",
    )
    PATHS.pop("mambapy", None)
    if installed("transformers"):
        yield Table(
            "One Mamba mixer, forward + backward, batch 64, 60 tokens, width 128",
            interleaved(mixers(options), options),
            base="ours",
        )


def forced(path: str, call: Call) -> Call:
    def run() -> None:
        with models.scan_path(path):
            call()

    return run


def mixers(options: Options) -> dict[str, Call]:
    """Our mixer and transformers', with PyTorch alone."""
    from transformers import MambaConfig as Theirs
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = Theirs(hidden_size=models.WIDTH, state_size=16, num_hidden_layers=1)
    modules = {
        "ours": models.agent("mamba").backbone.blocks[0].mixer,  # type: ignore[union-attr]
        "transformers": MambaMixer(config, layer_idx=0),
    }
    x = torch.randn(models.BATCH, models.TOKENS, models.WIDTH, device=options.device)

    def run(module: nn.Module) -> Call:
        module.to(options.device)

        def call() -> None:
            y: Tensor = module(x)
            y.square().mean().backward()

        return call

    return {name: run(module) for name, module in modules.items()}  # type: ignore[arg-type]


@benchmark("sampler", "a batch of 64 windows, beside the papers' loop over rows")
def sampler(options: Options) -> Iterator[Table]:
    data = models.store()
    windows = models.sampler(data, options.device)
    batch = iter(range(1 << 40))
    contenders = {
        "ours": lambda: [windows.batch(next(batch), models.BATCH) for _ in range(20)],
        "papers' loop": lambda: rows_one_by_one(data, options.device),
    }
    table = Table(
        "A batch of 64 windows of 20 steps",
        interleaved(contenders, options, {"ours": 20.0}),
        base="ours",
        note="It gathers "
        f"{models.BATCH * models.STEPS * 4 * (models.OBSERVATIONS + models.ACTIONS + 4) / 1e3:.0f}"
        " kB.",
    )
    yield table


def rows_one_by_one(data: EpisodeStore, device: str) -> list[Tensor]:
    """What Decision Transformer's experiment.py does for every batch (arXiv:2106.01345): draws
    episodes by length, then slices, pads, normalises and stacks row by row."""
    store = {name: np.asarray(getattr(data, name)) for name in ARRAYS}
    k, scale = models.STEPS, 1000.0
    lengths = np.diff(store["offsets"])
    drawn = np.random.choice(len(lengths), models.BATCH, p=lengths / lengths.sum())
    columns: list[list[np.ndarray]] = [[] for _ in range(6)]
    mean, std = store["observations"][:1000].mean(0), store["observations"][:1000].std(0)
    for episode in drawn:
        first, length = store["offsets"][episode], int(lengths[episode])
        start = random.randint(0, length - 1)
        at = slice(first + start, first + min(start + k, length))
        got = at.stop - at.start
        pad = k - got
        observations = store["observations"][at][None]
        zeros = np.zeros((1, pad, observations.shape[-1]))
        observations = (np.concatenate([zeros, observations], axis=1) - mean) / std
        actions = store["actions"][at][None]
        actions = np.concatenate([np.ones((1, pad, actions.shape[-1])) * -10.0, actions], axis=1)
        rewards = np.concatenate(
            [np.zeros((1, pad, 1)), store["rewards"][at].reshape(1, -1, 1)], axis=1
        )
        rest = store["rewards"][first + start : first + length]
        sums = np.zeros_like(rest)
        sums[-1] = rest[-1]
        for i in reversed(range(len(rest) - 1)):  # a Python loop to the episode's end, as there
            sums[i] = rest[i] + sums[i + 1]
        to_go = sums[:got].reshape(1, -1, 1)
        to_go = np.concatenate([np.zeros((1, pad, 1)), to_go], axis=1) / scale
        timesteps = np.concatenate(
            [np.zeros((1, pad)), np.arange(start, start + got)[None]], axis=1
        )
        mask = np.concatenate([np.zeros((1, pad)), np.ones((1, got))], axis=1)
        for column, value in zip(
            columns, (observations, actions, rewards, to_go, timesteps, mask), strict=True
        ):
            column.append(value)
    return [
        torch.from_numpy(np.concatenate(column, axis=0)).float().to(device) for column in columns
    ]
