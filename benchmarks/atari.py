"""Training on frames: how many a second, beside the papers' way, and how much memory it takes.

    python benchmarks/atari.py [--steps 500000] [--runs 5] [--device cpu]

Writes a dataset of noise frames of the papers' size to a temporary folder (500,000 steps: 3.5 GB),
then takes gradient steps of a Decision Mamba (3 layers, width 128) on batches of 32 windows of 10
steps, in turn in two ways. Ours: unique frames move as uint8, are stacked by a view, and are
standardised on the device. The papers': stacks of four are gathered window by window as float32 and
collated, as the Dataset of Decision Transformer's Atari code does. Medians over the runs, by wall
time and by processor time, which other work on a machine changes less. Then the process's memory:
anonymous, and mapped from files, which the system can take back.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from decision_seq.agents import SequenceAgent
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.data.episodes import Episodes
from decision_seq.data.frames import array_on_disk
from decision_seq.data.store import EpisodeStore, open_folder, write_store
from decision_seq.data.windows import Batch, WindowSampler
from decision_seq.model.encoders.base import FrameEncoder

LENGTH, BATCH, EPISODE = 10, 32, 1000  # steps a window, windows a batch, steps an episode


def noise(steps: int, folder: Path) -> EpisodeStore:
    """A dataset of `steps` steps in whole episodes, written piece by piece."""
    rng = np.random.default_rng(0)
    frames = array_on_disk((steps, 84, 84))
    for start in range(0, steps, EPISODE):
        part = frames[start : start + EPISODE]
        part[:] = rng.integers(0, 256, part.shape, dtype=np.uint8)
    ends = np.arange(1, steps + 1) % EPISODE == 0
    ends[-1] = True
    offsets = np.concatenate([[0], np.flatnonzero(ends) + 1])
    rewards = rng.integers(-1, 2, steps).astype(np.float32)
    actions = rng.integers(0, 6, steps)
    columns = (frames, actions, rewards, ends, np.zeros(steps, bool), offsets)
    write_store(folder / "noise", Episodes(*columns), {})
    return open_folder(folder / "noise", "noise")


def published(store: EpisodeStore, places: list[tuple[int, int]]) -> torch.Tensor:
    """[B, K, 4, 84, 84] float32 of the windows that begin at (episode, step), row by row."""
    windows = []
    for episode, first in places:
        start, stop = (int(row) for row in store.offsets[episode : episode + 2])
        stacks = np.zeros((LENGTH, 4, 84, 84), np.uint8)
        for k in range(LENGTH):
            row = min(start + first + k, stop - 1)
            oldest = max(start, row - 3)
            stacks[k, 4 - (row + 1 - oldest) :] = store.observations[oldest : row + 1]
        windows.append(torch.tensor(stacks, dtype=torch.float32) / 255)
    return torch.stack(windows)


def net_of(agent: SequenceAgent) -> torch.nn.Module:
    """The convolutions of its encoder."""
    assert isinstance(agent.encoder, FrameEncoder)
    return agent.encoder.net


def gradient_step(agent: SequenceAgent, batch: Batch, raw: bool) -> None:
    """Loss and gradients. Floats that are scaled already skip the scaling."""
    if raw:
        values = agent.preprocess(batch.observations, batch.actions, batch.returns_to_go)
    else:
        features = net_of(agent)(batch.observations.flatten(0, 1)).unflatten(0, (BATCH, LENGTH))
        values = {
            "return_to_go": batch.returns_to_go,
            "observation": features,
            "action": batch.actions,
        }
    agent.imitation_errors(agent(values, batch.timesteps), batch.actions).mean().backward()
    agent.zero_grad()


def timed(call: Callable[[], object]) -> np.ndarray:
    """(wall, processor) seconds of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return np.array([time.perf_counter() - wall, time.process_time() - processor])


def resident(kind: str) -> float:
    """Megabytes of this process's memory of a kind: RssAnon, RssFile."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(kind))


def main() -> None:
    """Print a row a way, and the memory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=500_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DECISION_SEQ_CACHE"] = folder
        store = noise(options.steps, Path(folder))
        size = (Path(folder) / "noise" / "observations.npy").stat().st_size
        print(f"{store.steps} steps, {size / 1e9:.2f} GB of frames on disk")
        config = ReturnConditionedConfig(context_length=LENGTH)
        ours = SequenceAgent.for_dataset(config, store).to(options.device).train()
        theirs = SequenceAgent.for_dataset(config, store).to(options.device).train()
        net_of(theirs).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        episodes = np.arange(store.episodes)
        sampler = WindowSampler(store, episodes, LENGTH, config.returns, 0, options.device)
        times: dict[str, list[np.ndarray]] = {way: [] for way in ("ours", "papers'")}
        for run in range(options.runs + 1):  # the first warms up
            batch, places = sampler.batch(run, BATCH), sampler.places(run, BATCH)
            gather = timed(partial(sampler.batch, run, BATCH))
            step = timed(partial(gradient_step, ours, batch, True))
            times["ours"].append(np.stack([gather, step]))
            gather = timed(lambda: published(store, places).to(options.device))  # noqa: B023
            batch.observations = published(store, places).to(options.device)
            step = timed(partial(gradient_step, theirs, batch, False))
            times["papers'"].append(np.stack([gather, step]))
        print(f"{'way':8} {'clock':10} {'batch, ms':>10} {'step, ms':>9} {'stacks/s':>9}")
        for way, measured in times.items():
            for clock, name in enumerate(("wall", "processor")):
                gather, step = np.median(np.stack(measured[1:]), axis=0)[:, clock]
                rate = BATCH * LENGTH / (gather + step)
                print(f"{way:8} {name:10} {1e3 * gather:10.1f} {1e3 * step:9.1f} {rate:9.0f}")
        for i in range(options.steps // (BATCH * (LENGTH + 3))):  # about every frame once
            sampler.batch(i, BATCH)
        memory = {kind: resident(f"Rss{kind}") for kind in ("Anon", "File")}
        print(f"memory after an epoch of batches: {memory['Anon']:.0f} MB anonymous, ", end="")
        print(f"{memory['File']:.0f} MB mapped from files")


if __name__ == "__main__":
    main()
