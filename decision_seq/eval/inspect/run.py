"""`decision-seq inspect`: what an agent looks back at, as figures, numbers and a short table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decision_seq import __version__
from decision_seq.agents import SequenceAgent
from decision_seq.config import to_plain
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.data.transforms import as_conditioned
from decision_seq.data.windows import Batch, WindowSampler
from decision_seq.errors import UserError
from decision_seq.eval.inspect import figures as inspect_figures
from decision_seq.eval.inspect.influence import (
    Influence,
    LayerView,
    full_windows,
    measure_influence,
    view_layers,
)
from decision_seq.files import atomic_file, write_text
from decision_seq.run_config import RunConfig, load_run_config, trained_agent
from decision_seq.run_folder import Which, agent_hash, read_index

WINDOWS = 64  # over which the influence is averaged
SEED = 0  # of their choice: the same windows for every agent on the same data
SHARES = (0.1, 0.5, 0.9)  # quantiles of the memory length


@dataclass(frozen=True)
class Subject:
    """The agent and the data that an inspection measures."""

    config: RunConfig
    agent: SequenceAgent  # in eval mode
    store: EpisodeStore  # with its rewards delayed, where the agent was trained so
    checkpoint: str  # last, validation or untrained
    step: int  # gradient steps the agent has seen
    agent_hash: str | None = None  # of a trained one


@dataclass(frozen=True)
class Inspection:
    """Influence, token maps and memory of an agent, and the window that they are of."""

    subject: Subject
    context_length: int  # steps a window
    episode: int  # that the token maps show
    first_step: int  # of the window in the episode
    last_step: int
    influence: Influence
    layers: list[LayerView]


def load_trained(
    run: Path, checkpoint: Which, overrides: Sequence[str], device: torch.device
) -> Subject:
    """The agent of a checkpoint of the run folder `run`, and the run's data.

    Raises UserError if `overrides` change the agent, or if the data does not fit it.
    """
    step = read_index(run)[checkpoint]["step"]
    config = load_run_config(run / "config.yaml", overrides)
    if config.agent != load_run_config(run / "config.yaml").agent:
        raise UserError(
            f"{run}: holds a trained agent, which --set cannot change; give a config file to "
            "inspect another agent, untrained"
        )
    agent = trained_agent(run, config, step, device)
    store = open_store(config.data.sources)
    _check_data(agent, store)
    store = _as_trained(store, config)
    return Subject(config, agent, store, checkpoint, step, agent_hash(run, step))


def load_untrained(path: Path, overrides: Sequence[str], device: torch.device) -> Subject:
    """The agent that training the config file `path` starts from."""
    config = load_run_config(path, overrides)
    store = open_store(config.data.sources)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        agent = SequenceAgent.for_dataset(config.agent, store).to(device).eval()
    return Subject(config, agent, _as_trained(store, config), "untrained", 0)


def inspect_agent(
    subject: Subject, episode: int, step: int | None, context_length: int | None
) -> Inspection:
    """Token maps and memory on the window that ends at `step` of `episode`, and the influence of
    the past averaged over random windows.

    Args:
        subject: what to look at.
        episode: index in the dataset.
        step: last step of the window shown; by default that of the first full window.
        context_length: steps a window; by default what the agent was trained with.
    """
    agent, store = subject.agent, subject.store
    length = agent.config.context_length if context_length is None else context_length
    if length < 1:
        raise UserError(f"context_length is {length}; it must be at least 1")
    if not 0 <= episode < store.episodes:
        raise UserError(f"episode is {episode}; {store.name} has {store.episodes}, counted from 0")
    steps = int(store.lengths[episode])
    last = min(length, steps) - 1 if step is None else step
    if not 0 <= last < steps:
        raise UserError(f"step is {last}; episode {episode} has {steps} steps, counted from 0")
    first = max(0, last - length + 1)
    windows = full_windows(store, agent, length, WINDOWS, SEED)
    return Inspection(
        subject=subject,
        context_length=length,
        episode=episode,
        first_step=first,
        last_step=last,
        influence=measure_influence(agent, windows),
        layers=view_layers(agent, _window(store, agent, episode, first, last)),
    )


def write_inspection(inspection: Inspection, out: Path) -> list[Path]:
    """Write figures, token maps and, last, inspect.json to the folder `out`, each atomically."""
    files = []
    of = f"{inspection.subject.checkpoint}, step {inspection.subject.step}"
    for name, svg in inspect_figures.draw(inspection.influence, inspection.layers, of).items():
        write_text(out / f"inspect-{name}.svg", svg)
        files.append(out / f"inspect-{name}.svg")
    maps: dict[str, Any] = {
        f"layer{i}_{view.mixer}": view.token_map
        for i, view in enumerate(inspection.layers)
        if view.token_map is not None
    }
    if maps:
        files.append(out / "inspect-maps.npz")
        with atomic_file(files[-1]) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **maps)
    files.append(out / "inspect.json")
    write_text(files[-1], json.dumps(to_json(inspection), indent=1, allow_nan=False))
    return files


def to_json(inspection: Inspection) -> dict[str, Any]:
    """The numbers, without the token maps themselves."""
    subject, influence = inspection.subject, inspection.influence
    agent, spread = subject.agent, influence.norms.std(axis=0)
    return {
        "agent": subject.config.name,
        "backbone": to_plain(agent.config.backbone),
        "tokens": list(agent.config.tokens),
        "checkpoint": subject.checkpoint,
        "step": subject.step,
        "agent_hash": subject.agent_hash,
        "train_seed": subject.config.seed,
        "dataset": {"name": subject.store.name, "hash": subject.store.hash},
        "context_length": inspection.context_length,
        "trained_context_length": agent.config.context_length,
        "influence": {
            "windows": len(influence.norms),
            "half_life": half_life(influence),
            "by_lag": [
                {"lag": k, "steps": int(steps), "token": token, "mean": mean, "std": std}
                for k, (steps, token, mean, std) in enumerate(
                    zip(
                        influence.steps,
                        influence.tokens,
                        influence.by_lag.tolist(),
                        spread.tolist(),
                        strict=True,
                    )
                )
            ],
            "by_step": [
                {"steps": k, "mean": mean} for k, mean in enumerate(influence.by_step.tolist())
            ],
        },
        "window": {
            "episode": inspection.episode,
            "first_step": inspection.first_step,
            "last_step": inspection.last_step,
        },
        "layers": [_layer_json(view, agent) for view in inspection.layers],
        "versions": {"decision_seq": __version__, "torch": torch.__version__},
    }


def half_life(influence: Influence) -> dict[str, int] | None:
    """`Influence.half_life` in tokens and in steps."""
    lag = influence.half_life()
    return None if lag is None else {"tokens": lag, "steps": int(influence.steps[lag])}


def _layer_json(view: LayerView, agent: SequenceAgent) -> dict[str, Any]:
    numbers: dict[str, Any] = {"layer": view.layer, "mixer": view.mixer}
    if view.token_map is not None:
        kinds = len(agent.config.tokens)
        read = view.token_map.shape[-1] - kinds + agent.action_position
        weight = np.abs(view.token_map[:, read].astype(np.float64))  # [H, L]
        back = read - np.arange(weight.shape[1])
        total = weight.sum(axis=1)
        mean_lag = (weight * back).sum(axis=1) / np.where(total == 0, 1, total)
        numbers["mean_lag"] = mean_lag.tolist()  # [H]
    if view.memory is not None:
        quantiles = np.quantile(view.memory.astype(np.float64), SHARES)
        numbers["memory_tokens"] = {
            f"{share:.0%}": value for share, value in zip(SHARES, quantiles.tolist(), strict=True)
        }
    return numbers


def _as_trained(store: EpisodeStore, config: RunConfig) -> EpisodeStore:
    return as_conditioned(store, config.agent.returns)


def _check_data(agent: SequenceAgent, store: EpisodeStore) -> None:
    spec, shape, acts = agent.spec, store.observations.shape[1:], store.action_table
    found = (shape, store.discrete, acts.features if acts else store.action_dim)
    if found != (spec.observation_shape, spec.discrete, spec.action_dim):
        raise UserError(
            f"{store.name}: its observations {shape} or actions ({store.action_dim}) do not fit "
            f"the agent's {spec.observation_shape}, ({spec.action_dim}); name the data it was "
            "trained on with --set data.sources=[...]"
        )


def _window(
    store: EpisodeStore, agent: SequenceAgent, episode: int, first: int, last: int
) -> Batch:
    """Steps `first` to `last` of one episode."""
    sampler = WindowSampler(
        store,
        np.array([episode]),
        last - first + 1,
        agent.config.returns,
        SEED,
        agent.device,
        stack=agent.config.frame_stack,
    )
    return sampler.windows(torch.tensor([first]))
