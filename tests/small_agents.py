"""Small agents of every kind, a batch and a rollout for them, and trained runs evaluated."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decision_seq.agents import AgentConfig, AgentSpec, SequenceAgent, load_agent
from decision_seq.agents.behaviour_cloning import BehaviourCloningConfig
from decision_seq.agents.max_return import MaxReturnConfig
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.backbones import BackboneConfig
from decision_seq.data.transforms import ReturnSpec
from decision_seq.data.windows import Batch
from decision_seq.eval.rollout.protocol import evaluate_agent, evaluation_config
from decision_seq.eval.rows import Row
from decision_seq.policy import Policy
from decision_seq.policy.policy import EngineName
from decision_seq.run_config import RunConfig, load_run_config, run_config
from decision_seq.run_folder import agent_at, read_index
from decision_seq.settings import Context
from decision_seq.training.loop import train

# of a row; all else repeats bit for bit on a CPU
MEASURED = ("milliseconds_per_step", "peak_memory_mib")
K, S, A = 5, 4, 3
KINDS = sorted(BackboneConfig.registry)
every_backbone = pytest.mark.parametrize("kind", KINDS)
AGENTS = (ReturnConditionedConfig, BehaviourCloningConfig, MaxReturnConfig)
FULLY = ("attention", "mamba")


def every(*more: str) -> pytest.MarkDecorator:
    """Parametrizes a test by `kind` and `config`, and by `tokens` and `discrete` if they are named:
    every backbone with the first of each, and all combinations of two backbones; with -m slow the
    rest of the product."""
    cells = []
    for kind, config in itertools.product(KINDS, AGENTS):
        if (kind, config) == ("pointwise", MaxReturnConfig):
            continue  # an agent that predicts its return needs a backbone that mixes tokens
        choices = {"tokens": config.layouts, "discrete": (False, True)}
        for chosen in itertools.product(*(choices[name] for name in more)):
            first = config is AGENTS[0] and all(
                value == choices[name][0] for name, value in zip(more, chosen, strict=True)
            )
            words = (len(value) if isinstance(value, tuple) else value for value in chosen)
            name = "-".join(map(str, (kind, config.kind, *words)))
            marks = () if first or kind in FULLY else pytest.mark.slow
            cells.append(pytest.param(kind, config, *chosen, id=name, marks=marks))
    return pytest.mark.parametrize(("kind", "config", *more), cells)


every_pair = every()


def tiny_run(env: str, source: str, **data: Any) -> RunConfig:
    """One gradient step of the smallest Decision Mamba."""
    plain = {
        "env": env,
        "data": {"sources": [source], **data},
        "agent": {
            "preset": "decision-mamba", "context_length": 2, "returns": {"scale": 10},
            "backbone": {"width": 8, "layers": 1},
        },
        "train": {"steps": 1, "batch_size": 2, "checkpoint_interval": 1},
    }  # fmt: skip
    return run_config(plain, {}, "test")


def make(
    kind: str,
    config: type[AgentConfig] = ReturnConditionedConfig,
    discrete: bool = False,
    **kw: object,
) -> SequenceAgent:
    """A small agent, with large enough weights that inputs matter."""
    torch.manual_seed(0)
    backbone = BackboneConfig.registry[kind](width=16, layers=2, dropout=0.0)
    fields = {"context_length": K, "returns": ReturnSpec(scale=10.0), "backbone": backbone}
    fields |= {"timestep_init": "published"} | kw  # not zero: timesteps are to matter
    settings = config(**fields)  # type: ignore[arg-type]
    agent = settings.agent(settings, AgentSpec((S,), A, discrete, max_timestep=20)).eval()
    with torch.no_grad():
        agent.observation_mean.fill_(0.5)
        agent.observation_std.fill_(2.0)
        for name, parameter in agent.backbone.named_parameters():
            if "mixer" in name and name.endswith("weight") and parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return agent


def random_batch(size: int = 3, discrete: bool = False, lengths: list[int] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(2)
    mask = torch.arange(K) < torch.tensor(lengths or [K] * size)[:, None]
    if discrete:
        actions = torch.randint(A, (size, K), generator=generator)
    else:
        actions = torch.rand(size, K, A, generator=generator) * 2 - 1
    return Batch(
        observations=torch.randn(size, K, S, generator=generator),
        actions=actions,
        returns_to_go=torch.rand(size, K, generator=generator),
        timesteps=torch.arange(K).expand(size, K) + 3,
        mask=mask,
        episode_returns=torch.rand(size, generator=generator),
    )


def predict(agent: SequenceAgent, batch: Batch) -> Tensor:
    values = agent.preprocess(batch.observations, batch.actions, batch.returns_to_go)
    return agent(values, batch.timesteps)


def roll(
    agent: SequenceAgent,
    context: Context,
    steps: int,
    seed: int = 3,
    lanes: int = 2,
    engine: EngineName = "auto",
) -> np.ndarray:
    """Actions [steps, lanes, ...] for a fixed sequence of observations and rewards."""
    draw = np.random.default_rng(seed)
    policy = Policy(agent, context, np.linspace(5, 8, lanes), lanes, engine=engine)
    return np.stack([policy.act(*seen) for seen in drawn_steps(steps, lanes, draw)])


def drawn_steps(
    steps: int, lanes: int, draw: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Observations [lanes, S] and rewards [lanes]."""
    for _ in range(steps):
        yield draw.standard_normal((lanes, S), np.float32), draw.random(lanes, np.float32)


def trained_toy(folder: Path, toy_file: Path, steps: int = 6) -> Path:
    """A run of the toy environment, of a few steps, in `folder`."""
    base = Path(__file__).parents[1] / "configs" / "point-run-decision-mamba.yaml"
    sets = [f"train.steps={steps}", f"train.checkpoint_interval={steps}"]
    config = load_run_config(base, [*sets, f"data.sources=[{toy_file}]"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("decision_seq.data.store.cache_dir", lambda: folder / "cache")
        train(config, folder / "run", torch.device("cpu"))
    return folder / "run"


def evaluated(run: Path, checkpoint: str = "last", **changes: Any) -> list[Row]:
    """The rows of `decision-seq evaluate`, with `changes` of the run's protocol."""
    step = read_index(run)[checkpoint]["step"]
    agent = load_agent(agent_at(run, step), torch.device("cpu"))
    return evaluate_agent(agent, evaluation_config(run, **changes), run, step, checkpoint)
