"""Evaluating a run: protocol from its config, rollouts, rows that say how they came about."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decision_seq import __version__
from decision_seq.agents import SequenceAgent, load_agent
from decision_seq.agents.return_prior import load_prior
from decision_seq.data.tools.info import own_references, read_summary
from decision_seq.envs.identity import simulated
from decision_seq.envs.reference_scores import scoring
from decision_seq.envs.registry import env_id, versions
from decision_seq.envs.variants import difference
from decision_seq.errors import UserError
from decision_seq.eval.rollout.episodes import rollout
from decision_seq.eval.rows import CHECKPOINT_RULES, Row, add_rows, target_label, target_name
from decision_seq.files import read_jsonl
from decision_seq.hardware import hardware, peak_memory_mib
from decision_seq.run_config import RunConfig, check_unchanged, load_run_config
from decision_seq.run_folder import agent_hash


def evaluation_config(run: Path, env: str | None = None, **given: Any) -> RunConfig:
    """The run's config with what is `given` of `EvalConfig`'s fields, and is not None, laid over
    its protocol."""
    config = load_run_config(run / "config.yaml")
    if (env or config.env) is None:
        raise UserError(f"{run}: was trained without an environment; name one with --env")
    protocol = dataclasses.replace(config.eval, **{k: v for k, v in given.items() if v is not None})
    return dataclasses.replace(config, eval=protocol, env=env or config.env)


def evaluate_best(
    run: Path,
    agent_files: Mapping[int, Path],
    config: RunConfig,
    device: torch.device,
    on_step: Callable[[int, int], None] = lambda done, lanes: None,
    actions: list[np.ndarray] | None = None,
) -> tuple[list[Row], list[Row]]:
    """Roll every checkpoint out and report the one with the highest return, next to the last.

    What chooses are rollouts of their own, from the environment seeds after the reported ones:
    chosen and reported by the same rollouts, a policy's luck would pass for its skill. All rows are
    kept, those that choose as `selection`, the candidates' own scores as `candidate`.

    Args:
        run: run folder.
        agent_files: step -> weights of every candidate; two at least.
        config: the run's, with its protocol.
        device: where to act.
        on_step: see `rollout`.
        actions: those of the chosen checkpoint are added (see `rollout`).

    Returns:
        Rows of the last checkpoint, and of the best.

    Raises:
        UserError: there is nothing to choose from.
    """
    if len(agent_files) < 2:
        raise UserError(
            f"{run}: holds one checkpoint, so there is none to choose; train with "
            "train.keep_interval, or evaluate the last"
        )
    apart = judging(config)

    def rows(
        step: int, checkpoint: str, config: RunConfig, actions: list[np.ndarray] | None = None
    ) -> list[Row]:
        agent, count = load_agent(agent_files[step], device), len(agent_files)
        return evaluate_agent(agent, config, run, step, checkpoint, on_step, actions, count)

    means = {}
    for step in agent_files:
        means[step] = np.mean([row["episode_return"] for row in rows(step, "selection", apart)])
        rows(step, "candidate", config)
    chosen = max(sorted(means), key=lambda step: means[step])
    return rows(max(agent_files), "last", config), rows(chosen, "best", config, actions)


def judging(config: RunConfig) -> RunConfig:
    """The same with episodes that judge, see `EvalConfig.judging`."""
    return dataclasses.replace(config, eval=config.eval.judging())


def evaluate_agent(
    agent: SequenceAgent,
    config: RunConfig,
    run: Path,
    step: int,
    checkpoint: str,
    on_step: Callable[[int, int], None] = lambda done, lanes: None,
    actions: list[np.ndarray] | None = None,
    candidates: int | None = None,
) -> list[Row]:
    """Roll `agent` out by the protocol of `config.eval` and add the rows to the run folder.
    `candidates` is the number of checkpoints that rollouts choose from."""
    check_unchanged(run, config, agent.config)
    protocol, device = config.eval, agent.device
    assert config.env is not None  # `evaluation_config` asks for one
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    data, name = read_summary(run / "dataset.json"), env_id(config.env)
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
        protocol.max_steps,
        scoring(name, _references_of_data(agent, data, name), protocol.score_reference),
        protocol.simulator,
    )
    return add_rows(
        run,
        episodes,
        agent=config.name,
        backbone=config.agent.backbone.kind,
        train_seed=config.seed,
        env=simulated(name, protocol.simulator),
        simulator=protocol.simulator,
        dataset={"name": data["name"], "hash": data["hash"]},
        context=protocol.context,
        context_length=config.agent.context_length,
        trained_steps=agent.spec.max_timestep + 1,  # of the longest episode it learnt from
        checkpoint=checkpoint,
        checkpoint_rule=_rule(checkpoint, config),
        agent_hash=agent_hash(run, step) if checkpoint != "interval" else None,
        candidates=_candidates(run, checkpoint, candidates),
        step=step,
        episodes=protocol.episodes,
        lanes=len(episodes),
        parameters=sum(p.numel() for p in agent.parameters()),
        peak_memory_mib=peak_memory_mib(device),
        device=str(device),
        hardware=hardware(device) | {"threads": torch.get_num_threads()},
        versions={
            "decision_seq": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            **versions(),
        },
    )


def _references_of_data(
    agent: SequenceAgent, data: Mapping[str, Any], env: str
) -> tuple[float, float] | None:
    """The dataset's own (random, expert) returns, where the environment is that of the data or
    another version of it."""
    differs = difference(agent.spec.env, env) if agent.spec.env else None
    other = differs and differs.kind in ("environment", "arguments", "added arguments")
    return None if other else own_references(data)


def _rule(checkpoint: str, config: RunConfig) -> str:
    """How the checkpoint was chosen, in words."""
    first = config.eval.seed + config.eval.episodes
    return CHECKPOINT_RULES[checkpoint].format(first=first, last=first + config.eval.episodes - 1)


def _candidates(run: Path, checkpoint: str, rolled_out: int | None) -> int:
    """From how many checkpoints this one was chosen."""
    if checkpoint == "validation":
        return sum("validation_loss" in row for row in read_jsonl(run / "metrics.jsonl")) or 1
    return rolled_out or 1 if checkpoint == "best" else 1


def mean_scores(rows: list[Row]) -> dict[str, float]:
    """Means over episodes by name, for TensorBoard: `return/3600`, `score/3600`."""
    means = {}
    for _, group in groupby(rows, key=target_label):
        part = list(group)
        target = target_name(part[0]["target"], part[0]["target_quantile"])
        means[f"return/{target}"] = float(np.mean([row["episode_return"] for row in part]))
        if part[0]["success"] is not None:
            means[f"success/{target}"] = float(np.mean([row["success"] for row in part]))
        if part[0]["normalized_score"] is not None:
            means[f"score/{target}"] = float(np.mean([row["normalized_score"] for row in part]))
    return means
