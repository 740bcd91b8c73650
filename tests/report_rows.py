"""Runs whose rows are known, for reports, and what a report makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from decision_seq.eval.report import page as report
from decision_seq.eval.report.data import Data
from decision_seq.eval.report.runs import Run, Settings
from decision_seq.eval.report.sections import sections
from decision_seq.eval.rows import OLDER, Row
from decision_seq.settings import EvalConfig, TrainConfig

STEPS = 30


def row(agent: str, seed: int, episode: int, score: float, **changes: Any) -> Row:
    """An episode row as `evaluate` writes it."""
    return OLDER | {
        "run": f"{agent}-{seed}", "agent": agent, "train_seed": seed, "env": "Hopper-v5",
        "dataset": {"name": "hopper", "hash": "abc"}, "checkpoint": "last",
        "checkpoint_rule": "last", "candidates": 1, "step": STEPS, "context": "window",
        "context_length": 20, "target": None if agent == "bc" else 3600.0, "env_seed": episode,
        "episode_return": 32.5 * score, "normalized_score": score, "length": 100, "lanes": 2,
        "milliseconds_per_step": 2.0, "versions": {"decision_seq": "1", "torch": "2"},
        "hardware": {"cpu": "Abacus", "cores": 2, "gpu": None, "threads": 1}, "parameters": 7000,
        "score_reference": "d4rl", "peak_memory_mib": 300.0,
    } | changes  # fmt: skip


def make_run(folder: Path, agent: str, seed: int, rows: list[Row], dataset: str = "hopper") -> Run:
    summary = {"name": dataset, "hash": f"{dataset}-hash", "return_mean": 900.0,
               "returns": [500.0, 900.0, 1300.0]}  # fmt: skip
    last = [r for r in rows if r["checkpoint"] == "last" and r["step"] == STEPS]
    others = [r for r in rows if r not in last]
    (folder / "runs" / f"{agent}-{seed}").mkdir(parents=True, exist_ok=True)
    plan = EvalConfig(targets=(3600.0,), episodes=2)
    config = Settings("hopper", agent, seed, TrainConfig(steps=STEPS), plan)
    return Run(folder / "runs" / f"{agent}-{seed}", config, summary, last, agent, None, others)


def runs_of(folder: Path, means: dict[str, list[float]], dataset: str = "hopper") -> list[Run]:
    """For each agent a run for each training seed, of two episodes around the seed's mean."""
    return [
        make_run(
            folder, agent, seed,
            [row(agent, seed, i, mean + shift) for i, shift in enumerate((-1.0, 1.0))], dataset,
        )
        for agent, by_seed in means.items()
        for seed, mean in enumerate(by_seed)
    ]  # fmt: skip


CLOSE = {"mamba": [50.0, 61, 42, 55, 47], "attention": [48.0, 60, 43, 52, 46]}
FAR = {"mamba": [80.0, 81, 82, 83, 84], "attention": [48.0, 60, 43, 52, 46], "bc": [20.0] * 5}


def section(data: Data, title: str) -> Any:
    return next(s for s in sections(data) if s.title == title)


def with_other_checkpoints(runs: list[Run]) -> list[Run]:
    """Steps 10 and 20 kept; 20 is best by 5, and every policy's luck in selection is the same."""
    for run in runs:
        for step, shift in ((10, -8.0), (20, 5.0), (STEPS, 0.0)):
            for r in run.rows:
                score = r["normalized_score"] + shift
                other = r | {"step": step, "normalized_score": score, "candidates": 3}
                run.others.append(other | {"checkpoint": "candidate"})
                chooses = {"checkpoint": "selection", "env_seed": r["env_seed"] + 2}
                run.others.append(other | chooses)
                if step == 20:
                    rule = "highest mean return in rollouts from environment seeds 2 to 3"
                    best = {"checkpoint": "best", "checkpoint_rule": rule}
                    run.others.append(other | best)
    return runs


def form(suffix: str, data: Data) -> str:
    """The report in one of its forms."""
    return report.FORMS[suffix](data, sections(data), Path("report.html"))
