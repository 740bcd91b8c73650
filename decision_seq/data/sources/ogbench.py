"""OGBench's .npz files (arXiv:2410.20092): observations, actions, terminals, and no rewards.

`terminals` mark a trajectory's last step, at which its time ran out: nothing ends an episode. The
name says which environment it is: pointmaze-medium-navigate-v0, or ...-v0-val.npz. More is asked
for behind the name:

    FILE.npz?goals=true    observations have a `desired_goal` beside them: where their trajectory
                           ended; agents of kind goal_conditioned put others in its place
    FILE.npz?task=2        rewards of a single task, as OGBench's own relabelling gives them from
                           `qpos` and `button_states`: 0 once it is done, else below (needs ogbench)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.config import build
from decision_seq.data.episodes import Episodes
from decision_seq.data.sources.keys import NO_REWARDS
from decision_seq.envs.identity import Identity, arguments_in
from decision_seq.errors import UserError
from decision_seq.spaces.kinds.vector import VectorLeaf
from decision_seq.spaces.table import Table, to_json

# behaviour in a dataset's name, which its environment's has not
_NAME = re.compile(
    r"((?:visual-)?(?:point|ant|humanoid)maze-\w+|(?:visual-)?antsoccer-\w+|(?:visual-)?cube-\w+"
    r"|(?:visual-)?scene|(?:visual-)?puzzle-\w+|powderworld-\w+)"
    r"-(?:navigate|stitch|explore|play|noisy)-v(\d+)(?:-val)?"
)
STATES = ("qpos", "button_states")  # of the simulator, by which rewards are computed
GOALS_ENV = "decision-seq/OGBenchGoals-v0"


@dataclass(frozen=True)
class Choice:
    """What is asked for behind a file's name."""

    goals: bool = False
    task: int | None = None


def choice(source: str, text: str) -> Choice:
    """Of `goals=true` or `task=2`. Raises UserError for anything else."""
    chosen = build(Choice, arguments_in(text, source), source)
    if chosen.goals == (chosen.task is not None):
        raise UserError(f"{source}: write FILE.npz?goals=true, or FILE.npz?task=1")
    return chosen


def environment(path: Path) -> dict[str, str]:
    """`env_id` of the file's environment, as far as its name tells."""
    found = _NAME.fullmatch(path.stem)
    return {"env_id": f"{found[1]}-v{found[2]}"} if found else {}


def chosen(path: Path, plain: Episodes, asked: Choice) -> Episodes:
    """The episodes of a file with what was `asked` for. Raises UserError where it cannot be had."""
    known = environment(path).get("env_id")
    if known is None:
        raise UserError(
            f"{path}: its name says no environment of OGBench; give it its own, such as "
            "antmaze-medium-navigate-v0.npz"
        )
    return _with_goals(path, plain, known) if asked.goals else _with_rewards(path, plain, asked)


def _with_goals(path: Path, plain: Episodes, known: str) -> Episodes:
    """[N, 2 S]: desired_goal, observation."""
    seen = plain.observations
    if seen.ndim != 2:
        raise UserError(f"{path}: its observations are images; goals are read of vectors alone")
    last = np.repeat(plain.offsets[1:] - 1, plain.lengths)
    width = seen.shape[1:]
    leaves = (VectorLeaf("desired_goal", width), VectorLeaf("observation", width))
    table = Table(leaves, {"desired_goal": 0, "observation": 1})
    env = str(Identity(GOALS_ENV, {"task": known} if known != "pointmaze-medium-v0" else {}))
    return replace(
        plain,
        observations=np.concatenate([seen[last], seen], axis=1),
        final_observations=None,
        info=plain.info | {"env_id": env, "observation_space": to_json(table)},
    )


def _with_rewards(path: Path, plain: Episodes, asked: Choice) -> Episodes:
    env_id = _single_task(environment(path)["env_id"], int(asked.task or 0))
    states = _states(path)
    rewards = _relabelled(path, env_id, states)
    without = {k: v for k, v in plain.info.items() if k != "rewards"}
    findings = tuple(f for f in plain.findings if f != NO_REWARDS)
    return replace(plain, rewards=rewards, info=without | {"env_id": env_id}, findings=findings)


def _single_task(env_id: str, task: int) -> str:
    """antmaze-medium-v0 -> antmaze-medium-singletask-task2-v0"""
    head, _, version = env_id.rpartition("-")
    return f"{head}-singletask-task{task}-{version}"


def _states(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        found = {key: file[key] for key in STATES if key in file.files}
    if "qpos" not in found:
        raise UserError(f"{path}: has no `qpos`, by which rewards are computed; fetch it again")
    return found


def _relabelled(path: Path, env_id: str, states: dict[str, Any]) -> np.ndarray:
    """[N] rewards by `ogbench.relabel_utils`."""
    import gymnasium as gym

    try:
        import ogbench  # noqa: F401  # registers the environments
        from ogbench.relabel_utils import relabel_dataset
    except ImportError:
        raise UserError(
            f"{path}: rewards of a task need ogbench; pip install 'decision-seq[ogbench]'"
        ) from None
    if env_id not in gym.registry:
        raise UserError(f"{path}: ogbench has no environment {env_id}; tasks are 1 to 5")
    env = gym.make(env_id, disable_env_checker=True)
    try:
        relabel_dataset(env_id, env, states)
    finally:
        env.close()
    return states["rewards"]
