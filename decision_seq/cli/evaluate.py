"""`decision-seq evaluate`."""

from __future__ import annotations

from typing import Annotated, Literal

from tyro.conf import arg

from decision_seq.cli.arguments import Context, Device, OptionalFloat, OptionalInt, OptionalStr, Run
from decision_seq.cli.output import print_result

Targets = Annotated[
    tuple[float, ...] | Literal["auto"] | None,
    arg(metavar="RETURN [RETURN ...] | auto", help_behavior_hint=""),
]
Films = Annotated[
    tuple[Literal["median", "best", "worst"], ...] | None,
    arg(metavar="[{median,best,worst} ...]", help_behavior_hint=""),
]
OptionalSimulator = Annotated[
    Literal["auto", "warp"] | None, arg(metavar="{auto,warp}", help_behavior_hint="")
]


def evaluate(
    run: Run,
    targets: Targets = None,
    target_quantile: OptionalFloat = None,
    episodes: OptionalInt = None,
    context: Context = None,
    checkpoint: Literal["last", "validation", "best", "selection"] = "last",
    env: OptionalStr = None,
    seed: OptionalInt = None,
    max_steps: OptionalInt = None,
    video: Films = None,
    off_policy: OptionalInt = None,
    simulator: OptionalSimulator = None,
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
            kept, chosen by rollouts of their own and reported next to the last; or, for sweeps, the
            last in such rollouts alone (selection).
        env: another environment, version or arguments (Hopper-v5?max_episode_steps=500).
        seed: of the first episode's environment.
        max_steps: cut episodes off there; by default only where the environment names no limit.
        video: film each target's median, best and worst episode, or those named, to RUN/videos.
        off_policy: no environment, but an estimate from the run's data, by so many steps of fitted
            Q evaluation (10000); only targets, checkpoint and seed count beside it.
        simulator: warp simulates Hopper, HalfCheetah, Walker2d or Ant by MuJoCo Warp where the
            agent acts: for a thousand lanes and more on a GPU. Rows name it.
    """
    if off_policy is not None:
        from decision_seq.api.estimates import off_policy as estimate
        from decision_seq.errors import UserError

        if checkpoint == "best" or checkpoint == "selection" or targets == "auto":
            raise UserError("--off-policy takes --checkpoint last or validation, targets by number")
        print_result(estimate(run, targets, off_policy, checkpoint, seed or 0))
        return
    from decision_seq.api import runs

    done = runs.evaluate(
        run, targets, target_quantile, episodes, context, checkpoint, env, seed, max_steps, video,
        simulator, device,
    )  # fmt: skip
    for evaluation in filter(None, (done.last, done)):
        print_result(evaluation)
    if done.videos:
        print(f"videos: {', '.join(map(str, done.videos))}")
