"""Evaluating a run: protocol from its config, rollouts, rows that say how they came about."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from decision_seq import __version__
from decision_seq.agents import SequenceAgent, load_agent
from decision_seq.agents.base import Context
from decision_seq.agents.return_prior import load_prior
from decision_seq.data.inspect import read_summary
from decision_seq.envs.registry import env_id, versions
from decision_seq.eval.results import Row, add_rows, asked
from decision_seq.eval.rollout import rollout
from decision_seq.run_config import RunConfig, load_run_config


def evaluate_run(
    run: Path,
    agent_file: Path,
    step: int,
    checkpoint: str,
    device: torch.device,
    targets: Sequence[float] | Literal["auto"] | None,
    episodes: int | None,
    context: Context | None,
    env: str | None,
    seed: int | None,
    on_step: Callable[[int, int], None],
    target_quantile: float | None = None,
    actions: list[np.ndarray] | None = None,
) -> list[Row]:
    """Roll out the agent in `agent_file`; what is None comes from the run's config. To `actions`
    every step's are added (see `rollout`).

    Returns the rows, which are added to the run folder as well.
    """
    config = load_run_config(run / "config.yaml")
    given: dict[str, Any] = {
        "targets": targets,
        "target_quantile": target_quantile,
        "episodes": episodes,
        "context": context,
        "seed": seed,
    }
    protocol = dataclasses.replace(config.eval, **{k: v for k, v in given.items() if v is not None})
    config = dataclasses.replace(config, eval=protocol, env=env or config.env)
    agent = load_agent(agent_file, device)
    return evaluate_agent(agent, config, run, step, checkpoint, on_step, actions)


def evaluate_agent(
    agent: SequenceAgent,
    config: RunConfig,
    run: Path,
    step: int,
    checkpoint: str,
    on_step: Callable[[int, int], None] = lambda done, lanes: None,
    actions: list[np.ndarray] | None = None,
) -> list[Row]:
    """Roll `agent` out by the protocol of `config.eval` and add the rows to the run folder."""
    protocol = config.eval
    data = read_summary(run / "dataset.json")
    episodes = rollout(
        agent,
        config.env,
        protocol.targets,
        protocol.episodes,
        protocol.seed,
        protocol.context,
        on_step,
        load_prior(run),
        protocol.target_quantile,
        actions,
    )
    return add_rows(
        run,
        episodes,
        agent=config.name,
        backbone=config.agent.backbone.kind,
        train_seed=config.seed,
        env=env_id(config.env),
        dataset={"name": data["name"], "hash": data["hash"]},
        context=protocol.context,
        context_length=config.agent.context_length,
        checkpoint=checkpoint,
        step=step,
        device=str(agent.device),
        versions={"decision_seq": __version__, "torch": torch.__version__, **versions()},
    )


def summary_table(rows: list[Row]) -> None:
    """Print mean and standard deviation over episodes, a line a target."""
    first = rows[0]
    table = Table(
        title=f"{first['run']}: {first['env']}, {first['checkpoint']} checkpoint (step "
        f"{first['step']}), context {first['context']}"
    )
    columns = ("target", "episodes", "return", "normalized score", "length", "ms a step", "OOD")
    for column in columns:
        table.add_column(column, justify="right")
    for target, group in groupby(rows, key=asked):
        part = list(group)
        scores = [row["normalized_score"] for row in part]
        distances = [row["ood_mean"] for row in part]
        if part[0]["target_rule"] == "auto":
            target += f": {_mean_std([row['target'] for row in part])}"
        table.add_row(
            target,
            str(len(part)),
            _mean_std([row["episode_return"] for row in part]),
            "-" if None in scores else _mean_std(scores),
            f"{np.mean([row['length'] for row in part]):.0f}",
            f"{np.mean([row['milliseconds_per_step'] for row in part]):.2f}",
            "-" if None in distances else f"{np.mean(distances):.2f}",
        )
    Console().print(table)
    if first["ood_mean"] is not None:
        print("OOD: how far visited states lie from the data's (mean 0), in standard deviations")
    if first["env"].startswith("Walker2d-v5"):
        print("Walker2d-v5 has other foot friction than v2 to v4: these are not D4RL-v2 scores.")


def _mean_std(values: list[float]) -> str:
    return f"{np.mean(values):.1f} ± {np.std(values):.1f}"
