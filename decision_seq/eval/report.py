"""The comparison report: one self-contained HTML file, made from rows alone."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.data.inspect import read_summary
from decision_seq.errors import UserError
from decision_seq.eval import figures, stats
from decision_seq.eval.inspect_run import read_inspection
from decision_seq.eval.results import Row, asked, read_rows
from decision_seq.files import read_jsonl, write_text
from decision_seq.run_config import RunConfig, load_run_config

FAR = 30  # tokens back, of which the report gives the influence
TEMPLATES = Path(__file__).parent / "templates"


@dataclass
class Run:
    """A run folder as the report sees it: the rows of its last checkpoint's final evaluation."""

    folder: Path
    config: RunConfig
    dataset: dict[str, Any]
    rows: list[Row]
    agent: str  # what the report calls it
    inspection: dict[str, Any] | None  # what `decision-seq inspect` left in the folder

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl."""
        return read_jsonl(self.folder / "metrics.jsonl")

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one scalar."""
        rows = [row for row in self.metrics if name in row]
        return [row["step"] for row in rows], [row[name] for row in rows]


@dataclass(frozen=True)
class Score:
    """A line of the score table."""

    dataset: str
    env: str
    target: str  # as `results.asked` names it
    mean_target: float | None
    context: str
    agent: str
    seeds: list[tuple[int, float]]  # (training seed, mean over its episodes)
    mean: float
    spread: float  # standard deviation over seeds
    interval: stats.Interval | None  # 95 %, over seeds; None where they are too few
    mean_return: float
    episodes: int
    best: bool  # highest mean for its dataset, target and context
    unit: str  # "normalized" or "return"


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Run folders among `folders` and up to two levels below. Raises UserError if one has none."""
    runs: list[Path] = []
    for folder in folders:
        patterns = ("config.yaml", "*/config.yaml", "*/*/config.yaml")
        found = sorted(p.parent for pattern in patterns for p in folder.glob(pattern))
        if not found:
            raise UserError(f"{folder}: holds no run; give a folder made by `train` or `compare`")
        runs += found
    return list({run.resolve(): run for run in runs}.values())


def load_run(folder: Path) -> Run:
    """Read what the report needs. Raises UserError if the run was never evaluated."""
    dataset = read_summary(folder / "dataset.json")
    rows = [row for row in read_rows(folder) if row["checkpoint"] == "last"]
    if not rows:
        raise UserError(f"{folder}: has no evaluation; run `decision-seq evaluate {folder}` first")
    last = max(row["step"] for row in rows)
    rows = [row for row in rows if row["step"] == last]
    config = load_run_config(folder / "config.yaml")
    inspection = read_inspection(folder / "inspect.json")
    return Run(folder, config, dataset, rows, config.name, inspection)


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Every run under a name of its own: runs of the same agent, data and training seed (other
    settings differ) carry their folder's name, and datasets of the same name their hash."""
    runs = [load_run(folder) for folder in folders]
    if not runs:
        raise UserError("there is no run to report on; give folders made by `train` or `compare`")
    names = Counter(name for name, _ in {(r.dataset["name"], r.dataset["hash"]) for r in runs})
    twins = Counter((r.agent, r.dataset["hash"], r.config.seed) for r in runs)
    for run in runs:
        if twins[run.agent, run.dataset["hash"], run.config.seed] > 1:
            run.agent += f" ({run.folder.name})"
        if names[run.dataset["name"]] > 1:
            run.dataset["name"] += f" ({run.dataset['hash'][:6]})"
    return runs


def score_table(runs: list[Run]) -> list[Score]:
    """One line for each dataset, target, context and agent; every training seed is shown."""
    groups: dict[tuple[Any, ...], dict[int, list[Row]]] = {}
    for run in runs:
        for row in run.rows:
            key = (run.dataset["name"], row["env"], asked(row), row["context"], run.agent)
            groups.setdefault(key, {}).setdefault(row["train_seed"], []).append(row)
    lines = []
    for (dataset, env, target, context, agent), by_seed in groups.items():
        rows = [row for group in by_seed.values() for row in group]
        normalized = all(row["normalized_score"] is not None for row in rows)
        field = "normalized_score" if normalized else "episode_return"
        seeds = [(s, float(np.mean([r[field] for r in g]))) for s, g in sorted(by_seed.items())]
        means = [mean for _, mean in seeds]
        targets = [row["target"] for row in rows]
        lines.append(
            Score(
                dataset=dataset,
                env=env,
                target=target,
                mean_target=None if None in targets else float(np.mean(targets)),
                context=context,
                agent=agent,
                seeds=seeds,
                mean=float(np.mean(means)),
                spread=float(np.std(means)),
                interval=stats.estimate({dataset: means}, stats.mean).interval,
                mean_return=float(np.mean([row["episode_return"] for row in rows])),
                episodes=len(rows),
                best=False,
                unit="normalized" if normalized else "return",
            )
        )
    lines.sort(key=lambda s: (s.dataset, s.env, s.context, -(s.mean_target or 0), s.agent))
    return [_marked(line, lines) for line in lines]


def summary(scores: list[Score], runs: list[Run]) -> list[str]:
    """What the table says, in plain words, with how much to trust it."""
    sentences = []
    for dataset in sorted({s.dataset for s in scores}):
        own = [s for s in scores if s.dataset == dataset]
        top = max(own, key=lambda s: s.mean)
        goal = "" if top.mean_target is None else f" when asked for {top.mean_target:.0f}"
        data = next(r.dataset for r in runs if r.dataset["name"] == dataset)
        sentences.append(
            f"On {dataset}, the highest mean is {top.agent}'s: return {top.mean_return:.0f}{goal} "
            f"({top.mean:.1f} {top.unit}); the data's mean return is {data['return_mean']:.0f}."
        )
    fewest = min(len(s.seeds) for s in scores)
    if fewest < stats.FEWEST:
        sentences.append(
            f"With {fewest} training seed{'s' if fewest > 1 else ''} these differences can be "
            f"chance: no interval is given below {stats.FEWEST} seeds, and none should be imagined."
        )
    return sentences


def write_report(folders: Sequence[Path], out: Path, failed: dict[str, str] | None = None) -> None:
    """Write the report of the runs in `folders` to `out`, atomically: one self-contained HTML
    file, or only the table and protocol where `out` ends in .md.

    Args:
        folders: run folders, each with evaluation rows.
        out: file to write.
        failed: by name, why other runs of the comparison failed; the report says so.
    """
    from jinja2 import Environment

    runs = load_runs(folders)
    inspected = [run for run in runs if run.inspection is not None]
    scores = score_table(runs)
    markdown = out.suffix == ".md"
    environment = Environment(autoescape=not markdown, trim_blocks=True, lstrip_blocks=True)
    template = TEMPLATES / ("report.md" if markdown else "report.html")
    text = environment.from_string(template.read_text(encoding="utf-8")).render(
        title=f"decision-seq: {', '.join(sorted({run.agent for run in runs}))}",
        summary=summary(scores, runs),
        scores=scores,
        learning_curves="" if markdown else figures.learning_curves(runs),
        target_return="" if markdown else figures.target_return(runs),
        looks_back=[looks_back(run, run.inspection) for run in runs if run.inspection is not None],
        influence=figures.influence(inspected) if inspected and not markdown else "",
        protocol=protocol(runs),
        commands=[f"decision-seq train {run.folder / 'config.yaml'} --out NEW" for run in runs],
        failed=failed or {},
        far=FAR,
        walker=any(row["env"] == "Walker2d-v5" for run in runs for row in run.rows),
    )
    write_text(out, text)


@dataclass(frozen=True)
class LooksBack:
    """A line of the table of what `inspect` measured."""

    dataset: str
    agent: str
    seed: int
    checkpoint: str
    context_length: int  # steps of the windows looked at
    half_life: dict[str, int] | None  # in tokens and steps; None where the past has no influence
    far: float | None  # influence FAR tokens back over that of the token acted at; None: not seen


def looks_back(run: Run, inspection: dict[str, Any]) -> LooksBack:
    """What the report says of one run's inspection."""
    by_lag = [row["mean"] for row in inspection["influence"]["by_lag"]]
    return LooksBack(
        dataset=run.dataset["name"],
        agent=run.agent,
        seed=run.config.seed,
        checkpoint=f"{inspection['checkpoint']} ({inspection['step']})",
        context_length=inspection["context_length"],
        half_life=inspection["influence"]["half_life"],
        far=by_lag[FAR] / by_lag[0] if len(by_lag) > FAR and by_lag[0] else None,
    )


def protocol(runs: list[Run]) -> list[tuple[str, str]]:
    """How the numbers came about."""
    rows = [row for run in runs for row in run.rows]

    def every(values: Any) -> str:
        return ", ".join(sorted({str(v) for v in values}))

    datasets = {f"{r.dataset['name']} ({r.dataset['hash']})": None for r in runs}
    return [
        ("datasets (hash of the episodes)", ", ".join(datasets)),
        ("environment", every(row["env"] for row in rows)),
        ("targets", every(map(_who_chose, rows))),
        ("checkpoint", f"last (gradient step {every(row['step'] for row in rows)})"),
        ("context", every(f"{row['context']}, K = {row['context_length']}" for row in rows)),
        ("training seeds", every(run.config.seed for run in runs)),
        ("environment seeds", _span([row["env_seed"] for row in rows])),
        ("batch size", every(run.config.train.batch_size for run in runs)),
        ("learning rate", every(run.config.train.learning_rate for run in runs)),
        ("versions", every(", ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in rows)),
        ("hardware of this report", f"{platform.machine()}, {_processor()}"),
    ]


def _marked(line: Score, lines: list[Score]) -> Score:
    rivals = [
        s.mean
        for s in lines
        if (s.dataset, s.env, s.target, s.context)
        == (line.dataset, line.env, line.target, line.context)
    ]
    return Score(**{**vars(line), "best": len(rivals) > 1 and line.mean == max(rivals)})


def _who_chose(row: Row) -> str:
    """How the row's target came about."""
    if row["target"] is None:
        return "none asked for"
    if row["target_rule"] == "given":
        return "named by hand"
    return (
        f"auto: quantile {row['target_quantile']:g} of the data's returns given an episode's first "
        "observation"
    )


def _span(seeds: list[int]) -> str:
    return f"{min(seeds)} to {max(seeds)}, the same for every agent and target"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        return f"{len(names)} x {names[0]}"
    except (OSError, IndexError):
        return platform.processor() or "unknown processor"
