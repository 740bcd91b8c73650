"""Training and evaluating from Python, and what comes of them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import compress, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from decision_seq.api.shown import Shown
from decision_seq.digits import decimals
from decision_seq.eval.report import figures as drawn
from decision_seq.eval.report.parts import Table
from decision_seq.eval.report.runs import Run, load_settings
from decision_seq.eval.rows import Row, target_label

if TYPE_CHECKING:
    from decision_seq.agents import SequenceAgent
    from decision_seq.run_config import RunConfig

Place = str | os.PathLike[str]
Settings = Mapping[str, Any] | Sequence[str]


class Trained(Shown):
    """Runs that were trained, one a seed: their loss curves. It is taken wherever the folder of a
    run is.

    Args:
        folders: run folders.
        finished: False if they were stopped before the end; their states are saved then.
    """

    def __init__(self, folders: Sequence[Path], finished: bool = True) -> None:
        self.folders, self.finished = tuple(folders), finished

    @property
    def folder(self) -> Path:
        """The run folder, of the first seed if there are several."""
        return self.folders[0]

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Trained({', '.join(map(str, self.folders))})"

    @cached_property
    def runs(self) -> list[Run]:
        """The runs as reports see them: config, dataset, metrics."""
        return [_run(folder, []) for folder in self.folders]

    def title(self) -> str:
        """Where it is."""
        stopped = "" if self.finished else " (stopped and saved; resume=True goes on)"
        return f"{', '.join(map(str, self.folders))}{stopped}"

    def table(self) -> Table:
        """A line a seed: steps, losses, seconds."""
        rows = []
        for run in self.runs:
            losses, seconds = run.curve("loss")[1], run.training_seconds
            rows.append(
                [run.agent, run.dataset["name"], str(run.config.seed), str(run.reported_step),
                 f"{losses[-1]:.4g}" if losses else "-",
                 f"{run.validation['validation_loss']:.4g}" if run.validation else "-",
                 "-" if seconds is None else f"{seconds:.0f}"]
            )  # fmt: skip
        columns = ("agent", "dataset", "seed", "step", "loss", "validation loss", "seconds")
        return Table(columns, rows, 2)

    def figures(self) -> Sequence[str]:
        """Losses by step."""
        first = self.runs[0]
        style = drawn.style_of([first.agent])
        return [drawn.losses(self.runs, first.dataset["name"], style)]


class Evaluation(Shown):
    """Episodes of a trained run, a row each.

    Args:
        folder: run folder.
        rows: of these rollouts, as in episodes.jsonl.
        videos: files, if episodes were filmed.
        last: that of the last checkpoint, where the best was chosen.
    """

    def __init__(
        self,
        folder: Path,
        rows: list[Row],
        videos: Sequence[Path] = (),
        last: Evaluation | None = None,
    ) -> None:
        self.folder, self.rows, self.videos, self.last = folder, rows, tuple(videos), last

    def __repr__(self) -> str:
        returns = [row["episode_return"] for row in self.rows]
        return f"{self.title()}: {len(returns)} episodes, return {_mean_std(returns)}"

    def title(self) -> str:
        """What was rolled out."""
        first = self.rows[0]
        return (
            f"{first['run']}: {first['env']}, {first['checkpoint']} checkpoint (step "
            f"{first['step']}), context {first['context']}"
        )

    def table(self) -> Table:
        """Mean and standard deviation over episodes, a line a target."""
        columns = ("target", "episodes", "return", "normalized score", "success", "length",
                   "ms a step", "OOD")  # fmt: skip
        parts = [(label, list(part)) for label, part in groupby(self.rows, key=target_label)]
        lines = [_line(label, part) for label, part in parts]
        said = [any(line[i] != "-" for line in lines) for i in range(len(columns))]
        return Table(tuple(compress(columns, said)), [list(compress(x, said)) for x in lines], 0)

    def notes(self) -> Sequence[str]:
        """What to know about these numbers."""
        return _notes(self.rows)

    def figures(self) -> Sequence[str]:
        """Achieved against asked return, where returns were asked for."""
        if all(row["target"] is None for row in self.rows):
            return ()
        run = _run(self.folder, self.rows)
        return [drawn.target_return([run], run.dataset["name"], drawn.style_of([run.agent]))]


def train(
    config: Place,
    out: Place,
    set: Settings = (),
    resume: bool = False,
    device: str = "auto",
    seeds: Sequence[int] = (),
) -> Trained:
    """Train an agent: `train`. Ctrl-C saves and stops; `resume` goes on from there.

    Args:
        config: YAML file, or the name of a shipped config, such as hopper-decision-mamba.
        out: run folder to make.
        set: config keys to override: {"train.steps": 300}, or ["train.steps=300"].
        resume: continue the run in `out`, if there is one.
        device: auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.
        seeds: train all of these as one, for a GPU; into run folders out/seed0, out/seed1, ..., or
            `out` itself with the seed in place of {seed}.

    Raises:
        UserError: a setting, the data or the folder is not as it must be.
    """
    from decision_seq.hardware import torch_device
    from decision_seq.run_config import load_run_config
    from decision_seq.training.loop import train
    from decision_seq.training.stacked import folders, train_seeds

    run, place = load_run_config(Path(config), assignments(set)), Path(out)
    on = torch_device(device)
    if seeds:
        finished = train_seeds(run, seeds, place, on, resume, _rollouts_on_the_way)
        return Trained(folders(place, seeds), finished)
    return Trained([place], train(run, place, on, resume, _rollouts_on_the_way(run, place)))


def evaluate(
    run: Place,
    targets: Sequence[float] | Literal["auto"] | None = None,
    target_quantile: float | None = None,
    episodes: int | None = None,
    context: Literal["window", "stream"] | None = None,
    checkpoint: Literal["last", "validation", "best", "selection"] = "last",
    env: str | None = None,
    seed: int | None = None,
    max_steps: int | None = None,
    video: Sequence[Literal["median", "best", "worst"]] | None = None,
    simulator: Literal["auto", "warp"] | None = None,
    device: str = "auto",
) -> Evaluation:
    """Roll a trained agent out and keep one row an episode in the run folder: `evaluate`.

    What is left out is taken from the run's config.

    Args:
        run: run folder, or what `train` returned.
        targets: returns to ask for, in the environment's units; or auto: each episode is asked for
            what the data make probable from its first observation.
        target_quantile: of the data's returns from there, for auto.
        episodes: episodes a target.
        context: window recomputes the last K steps (as the papers do); stream carries state.
        checkpoint: the last; the one with the lowest validation loss; or the best of all that were
            kept, chosen by rollouts of their own; or, for sweeps, the last in such rollouts alone.
        env: another environment, version or arguments (Hopper-v5?max_episode_steps=500).
        seed: of the first episode's environment.
        max_steps: cut episodes off there; by default only where the environment names no limit.
        video: film each target's median, best and worst episode, or those named, to run/videos.
        simulator: warp simulates a MuJoCo robot by MuJoCo Warp, where the agent acts.
        device: as of `train`.

    Raises:
        UserError: there is no such run, or it does not fit the environment.
    """
    from decision_seq.agents import load_agent
    from decision_seq.eval.rollout.protocol import (
        evaluate_agent,
        evaluate_best,
        evaluation_config,
        judging,
        mean_scores,
    )
    from decision_seq.hardware import torch_device
    from decision_seq.progress import progress_bar
    from decision_seq.run_folder import agent_at, read_index, saved_steps
    from decision_seq.shipped import run_at
    from decision_seq.training.log import log_result

    folder = run_at(run, to_write=True)
    index, on = read_index(folder), torch_device(device)
    asked = tuple(targets) if targets is not None and not isinstance(targets, str) else targets
    config = evaluation_config(
        folder, env, targets=asked, target_quantile=target_quantile, episodes=episodes,
        context=context, seed=seed, max_steps=max_steps, simulator=simulator,
    )  # fmt: skip
    if video is not None and config.eval.simulator != "auto":
        from decision_seq.errors import UserError

        raise UserError("--video films what the environment's own simulator did; leave one out")
    last: list[Row] | None = None
    actions: list[np.ndarray] | None = None
    with contextlib.ExitStack() as stack:
        if video is not None:
            from decision_seq.eval.rollout.video import check_video, drawing

            stack.enter_context(drawing(check_video(str(config.env))))
            actions = []
        with progress_bar() as bar:
            task = bar.add_task("evaluating", total=None, note="finished episodes")

            def on_step(done: int, lanes: int) -> None:
                bar.update(task, completed=done, total=lanes)

            if checkpoint == "best":
                files = {step: agent_at(folder, step) for step in saved_steps(folder)}
                last, rows = evaluate_best(folder, files, config, on, on_step, actions)
            else:
                if checkpoint == "selection":
                    config = judging(config)
                step = index["last" if checkpoint == "selection" else checkpoint]["step"]
                agent = load_agent(agent_at(folder, step), on)
                rows = evaluate_agent(agent, config, folder, step, checkpoint, on_step, actions)
        if checkpoint != "selection":  # which judges, and is no result
            log_result(folder, config, rows[0]["step"], mean_scores(rows))
        videos = [] if actions is None else _film(folder, rows, actions, video)
    return Evaluation(folder, rows, videos, Evaluation(folder, last) if last else None)


def assignments(settings: Settings) -> list[str]:
    """`{"train.steps": 300}` as the command line has it: `["train.steps=300"]`."""
    if not isinstance(settings, Mapping):
        return list(settings)
    return [f"{key}={json.dumps(value, default=str)}" for key, value in settings.items()]


def _film(
    folder: Path, rows: list[Row], actions: list[np.ndarray], picks: Sequence[Any] | None
) -> list[Path]:
    from decision_seq.eval.rollout.video import PICKS, write_videos
    from decision_seq.progress import progress_bar

    with progress_bar() as bar:
        task = bar.add_task("filming", total=None, note="frames")

        def on_frame(done: int, frames: int) -> None:
            bar.update(task, completed=done, total=frames)

        return list(write_videos(folder, rows, actions, tuple(picks or PICKS), on_frame))


def _run(folder: Path, rows: list[Row]) -> Run:
    """The run as reports see it, evaluated or not."""
    from decision_seq.data.tools.info import read_summary

    settings = load_settings(folder / "config.yaml")
    return Run(folder, settings, read_summary(folder / "dataset.json"), rows, settings.name, None)


def _rollouts_on_the_way(config: RunConfig, out: Path) -> Any:
    """What `eval.interval` asks for: rollouts during training, counted as online evaluations."""
    from decision_seq.eval.rollout.protocol import evaluate_agent

    def roll(agent: SequenceAgent, step: int) -> dict[str, float]:
        rows = evaluate_agent(agent, config, out, step, "interval")
        returns = [row["episode_return"] for row in rows]
        return {"return_mean": sum(returns) / len(returns)}

    return roll


def _line(label: str, part: list[Row]) -> list[str]:
    scores = [row["normalized_score"] for row in part]
    distances = [row["ood_mean"] for row in part]
    told = [row["success"] for row in part if row["success"] is not None]
    if part[0]["target_rule"] == "auto":
        label += f": {_mean_std([row['target'] for row in part])}"
    return [
        label,
        str(len(part)),
        _mean_std([row["episode_return"] for row in part]),
        "-" if None in scores else f"{np.mean(scores):.1f} ± {np.std(scores):.1f}",
        f"{100 * np.mean(told):.0f} %" if told else "-",
        f"{np.mean([row['length'] for row in part]):.0f}",
        f"{np.mean([row['milliseconds_per_step'] for row in part]):.2f}",
        "-" if None in distances else f"{np.mean(distances):.2f}",
    ]


def _notes(rows: list[Row]) -> list[str]:
    first, notes = rows[0], []
    if first["ood_mean"] is not None:
        notes.append(
            "OOD: how far visited states lie from the data's (mean 0), in standard deviations"
        )
    longest, trained = max(row["length"] for row in rows), first["trained_steps"]
    if longest > trained:
        notes.append(
            f"Episodes took up to {longest} steps, the longest in training {trained}: all steps "
            "beyond share the last timestep's embedding."
        )
    cut_off = sum(row["length"] == row["max_steps"] for row in rows)
    if cut_off:
        notes.append(
            f"{cut_off} of {len(rows)} episodes were cut off after {first['max_steps']} steps."
        )
    if first["env"].startswith("Walker2d-v5"):
        notes.append(
            "Walker2d-v5 has other foot friction than v2 to v4: these are not D4RL-v2 scores."
        )
    return notes


def _mean_std(values: list[float]) -> str:
    digits = decimals(values)
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}"
