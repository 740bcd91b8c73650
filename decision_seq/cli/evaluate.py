"""`decision-seq evaluate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from decision_seq.cli.arguments import Device, torch_device


def evaluate(
    run: Positional[Path],
    targets: tuple[float, ...] | Literal["auto"] | None = None,
    target_quantile: float | None = None,
    episodes: int | None = None,
    context: Literal["window", "stream"] | None = None,
    checkpoint: Literal["last", "validation", "best"] = "last",
    env: str | None = None,
    seed: int | None = None,
    max_steps: int | None = None,
    video: tuple[Literal["median", "best", "worst"], ...] | None = None,
    device: Device = "auto",
) -> None:
    """Roll a trained agent out and keep one row an episode in the run folder.

    What is left out is taken from the run's config.

    Args:
        run: run folder.
        targets: returns to ask for, in the environment's units; or auto: each episode is asked for
            what the data make probable from its first observation.
        target_quantile: of the data's returns from there, for auto.
        episodes: episodes a target.
        context: window recomputes the last K steps (as the papers do); stream carries state.
        checkpoint: the last; the one with the lowest validation loss; or the best of all that were
            kept, chosen by rollouts of their own and reported next to the last.
        env: another environment, version or arguments (Hopper-v5?max_episode_steps=500).
        seed: of the first episode's environment.
        max_steps: cut episodes off there; by default only where the environment names no limit.
        video: film each target's median, best and worst episode, or those named, to RUN/videos.
    """
    from decision_seq.agents import load_agent
    from decision_seq.eval.rollout.protocol import (
        evaluate_agent,
        evaluate_best,
        evaluation_config,
        mean_scores,
        summary_table,
    )
    from decision_seq.progress import progress_bar
    from decision_seq.run_folder import agent_at, read_index, saved_steps
    from decision_seq.training.log import log_result

    index, on = read_index(run), torch_device(device)
    config = evaluation_config(
        run, env, targets=targets, target_quantile=target_quantile, episodes=episodes,
        context=context, seed=seed, max_steps=max_steps,
    )  # fmt: skip
    actions: list[Any] | None = None
    if video is not None:
        from decision_seq.eval.rollout.video import PICKS, check_video, write_videos

        os.environ |= check_video(str(config.env))
        actions = []
    with progress_bar() as bar:
        task = bar.add_task("evaluating", total=None, note="finished episodes")

        def on_step(done: int, lanes: int) -> None:
            bar.update(task, completed=done, total=lanes)

        if checkpoint == "best":
            files = {step: agent_at(run, step) for step in saved_steps(run)}
            last, rows = evaluate_best(run, files, config, on, on_step, actions)
        else:
            step = index[checkpoint]["step"]
            agent = load_agent(agent_at(run, step), on)
            rows = evaluate_agent(agent, config, run, step, checkpoint, on_step, actions)
    if checkpoint == "best":
        summary_table(last)
    summary_table(rows)
    log_result(run, config, rows[0]["step"], mean_scores(rows))
    if actions is not None:
        with progress_bar() as bar:
            task = bar.add_task("filming", total=None, note="frames")
            written = write_videos(
                run,
                rows,
                actions,
                video or PICKS,
                lambda done, frames: bar.update(task, completed=done, total=frames),
            )
        print(f"videos: {', '.join(map(str, written))}")
