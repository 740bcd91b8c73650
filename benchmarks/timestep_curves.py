"""Score by gradient step and start of the timestep embedding, of our agents and transformers'.

    python -m benchmarks.timestep_curves docs/results/hopper-medium-expert.jsonl \\
        --transformers transformers.jsonl --out curves.svg

Reads runs of configs/compare-medium-expert.yaml, rolled out as they were after some steps, and the
rows of `benchmarks.timestep_embedding`. Prints a table, mean over training seeds and its 95 %
interval at the higher target, by windows or streams as the rows have it; draws a panel an
environment.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from decision_seq.errors import UserError
from decision_seq.eval.drawing import COLOURS, panels, to_svg
from decision_seq.eval.report.archive import load_runs
from decision_seq.eval.report.runs import find_runs
from decision_seq.eval.report.scores import number
from decision_seq.eval.report.statistics import estimate, mean
from decision_seq.eval.report.tables import ON_THE_WAY
from decision_seq.files import read_jsonl, write_text

AGENTS = {  # as rows name them
    "decision-mamba": ("Decision Mamba", "0"),
    "decision-mamba-published-timestep": ("Decision Mamba", "N(0, 1)"),
    "decision-transformer": ("Decision Transformer", "0"),
    "decision-transformer-published-timestep": ("Decision Transformer", "N(0, 1)"),
    "zero": ("transformers' model", "0"),
    "own": ("transformers' model", "N(0, 0.02)"),
    "published": ("transformers' model", "N(0, 1)"),
}
LINES = {"0": "-", "N(0, 0.02)": ":", "N(0, 1)": "--"}
# environment -> model, start -> step -> training seed -> scores
Curves = dict[str, dict[tuple[str, str], dict[int, dict[int, list[float]]]]]


def read(places: Sequence[Path], transformers: Path | None) -> Curves:
    """Scores at the highest target of each environment."""
    rows = [
        (
            row["env"],
            run.agent,
            row["step"],
            row["train_seed"],
            row["target"],
            row["normalized_score"],
        )
        for run in load_runs(find_runs(places))
        for row in run.others
        if row["checkpoint"] in ON_THE_WAY and run.agent in AGENTS
    ]
    rows += [
        (row["env"], row["start"], row["step"], row["seed"], row["target"], row["score"])
        for row in (read_jsonl(transformers) if transformers else ())
    ]
    if not rows:
        raise UserError("no run was rolled out after some of its steps; train with eval.interval")
    highest: dict[str, float] = {}
    for env, *_, target, _ in rows:
        highest[env] = max(highest.get(env, 0.0), target)
    curves: Curves = defaultdict(
        lambda: defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    )
    for env, agent, step, seed, target, score in rows:
        if target == highest[env]:
            curves[env][AGENTS[agent]][step][seed].append(score)
    return curves


def table(curves: Curves) -> str:
    """Markdown: a row a model and start; last, after all steps, by how much it is ahead of
    N(0, 1) on the same seeds."""
    lines = []
    for env, by_agent in curves.items():
        steps = sorted({step for by_step in by_agent.values() for step in by_step})
        head = [env, "start", *(f"{step:,} steps" for step in steps), "less N(0, 1)"]
        lines += [head, ["---"] * len(head)]
        for (model, start), by_step in by_agent.items():
            other = by_agent.get((model, "N(0, 1)"), {})
            last, published = by_seed(by_step, steps[-1]), by_seed(other, steps[-1])
            ahead = [score - published[seed] for seed, score in last.items() if seed in published]
            cells = [_cell([*by_seed(by_step, step).values()]) for step in steps]
            lines.append([model, start, *cells, "" if other is by_step else _cell(ahead)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_seed(by_step: Mapping[int, dict[int, list[float]]], step: int) -> dict[int, float]:
    return {seed: float(np.mean(scores)) for seed, scores in sorted(by_step.get(step, {}).items())}


def _cell(scores: Sequence[float]) -> str:
    return number(estimate({"": scores}, mean), 1) if scores else ""


def figure(curves: Curves) -> str:
    """SVG: a panel an environment, means over seeds."""
    models = list(dict.fromkeys(model for model, _ in AGENTS.values()))
    drawing, axes = panels(list(curves))
    for ax, env in axes:
        for (model, start), by_step in curves[env].items():
            steps = sorted(by_step)
            ax.plot(
                steps,
                [np.mean([*by_seed(by_step, step).values()]) for step in steps],
                LINES[start],
                color=COLOURS[models.index(model)],
                marker=".",
                label=f"{model}, {start}" if env == axes[-1][1] else None,  # once for all
            )
        ax.set_ylim(bottom=0)
        ax.set_xlabel("gradient step")
        ax.set_ylabel("normalized score, mean over seeds")
    return to_svg(drawing, [ax for ax, _ in axes])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, or files of runs")
    parser.add_argument("--transformers", type=Path, help="rows of benchmarks.timestep_embedding")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        curves = read(arguments.runs, arguments.transformers)
    except UserError as error:
        parser.exit(2, f"benchmarks.timestep_curves: {error}\n")
    print(table(curves))
    write_text(arguments.out, figure(curves))


if __name__ == "__main__":
    main()
