"""OGBench: seeds that determine episodes, goals that are seen, rewards of single tasks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decision_seq.agents import load_agent
from decision_seq.data.store import open_store
from decision_seq.envs.registry import make
from decision_seq.errors import UserError
from decision_seq.eval.rollout import rollout
from decision_seq.run_config import run_config
from decision_seq.run_folder import agent_path
from decision_seq.training.loop import train

FILE = "pointmaze-medium-navigate-v0.npz"


def written(folder: Path, **more: np.ndarray) -> str:
    """Two trajectories of 101 rows in the layout of OGBench's files."""
    rng = np.random.default_rng(0)
    ends = np.zeros(202, bool)
    ends[100::101] = True
    places = (20 * rng.random((202, 2))).astype(np.float32)
    actions = rng.uniform(-1, 1, (202, 2)).astype(np.float32)
    arrays = {"observations": places, "actions": actions, "terminals": ends, "qpos": places, **more}
    np.savez_compressed(folder / FILE, **arrays)
    return str(folder / FILE)


def test_goals_stand_beside_observations(tmp_path: Path) -> None:
    source = written(tmp_path)
    plain, store = open_store([source]), open_store([f"{source}?goals=true"])
    assert str(store.observation_table) == "desired_goal vector (2,), observation vector (2,)"
    goals, seen = store.observations[:, :2], store.observations[:, 2:]
    np.testing.assert_array_equal(seen, plain.observations)
    np.testing.assert_array_equal(goals[:101], np.tile(seen[100], (101, 1)))  # its own end
    assert plain.hash != store.hash and store.info["env_id"] == "decision-seq/OGBenchGoals-v0"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("goals=maybe", "goals"),
        ("goals=true&task=1", r"write FILE.npz\?goals=true, or FILE.npz\?task=1"),
        ("colour=red", "colour"),
    ],
)
def test_what_cannot_be_asked_for_is_one_sentence(asked: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        open_store([f"{written(tmp_path)}?{asked}"])


def test_a_file_of_another_name_has_no_goals(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / FILE).rename(tmp_path / "mine.npz")
    with pytest.raises(UserError, match="its name says no environment of OGBench"):
        open_store([f"{tmp_path / 'mine.npz'}?goals=true"])


def test_rewards_are_those_of_ogbench(tmp_path: Path) -> None:
    ogbench = pytest.importorskip("ogbench")
    env = make("ogbench:pointmaze-medium-singletask-task2-v0")
    env.reset(seed=0)
    places = np.zeros((202, 2), np.float32)
    places[50:60] = env.unwrapped.cur_goal_xy  # type: ignore[attr-defined]
    env.close()
    source = written(tmp_path, qpos=places)
    (tmp_path / FILE.replace(".npz", "-val.npz")).write_bytes(Path(source).read_bytes())
    store = open_store([f"{source}?task=2"])
    env, theirs, _ = ogbench.make_env_and_datasets(
        "pointmaze-medium-navigate-singletask-task2-v0", dataset_path=source, add_info=True
    )
    env.close()
    kept = np.arange(202) % 101 < 100  # they leave out each trajectory's last row
    np.testing.assert_array_equal(store.rewards[kept], theirs["rewards"])
    assert {-1.0, 0.0} == set(store.rewards.tolist())
    assert store.info["env_id"] == "pointmaze-medium-singletask-task2-v0"
    with pytest.raises(UserError, match="tasks are 1 to 5"):
        open_store([f"{source}?task=9"])


def test_episodes_are_determined_by_their_seeds() -> None:
    pytest.importorskip("ogbench")
    names = ["ogbench:pointmaze-medium-v0", "ogbench-goals", "ogbench-goals?task=antmaze-medium-v0"]
    if importlib.util.find_spec("dm_control"):
        names.append("ogbench-goals?task=cube-single-v0")
    for name in names:
        seen: list[Any] = []
        before = np.random.get_state()[1].copy()  # type: ignore[index]
        for env in (make(name), make(name)):
            first, _ = env.reset(seed=3)
            following = env.step(np.ones(env.action_space.shape, np.float32))[0]
            seen.append(np.concatenate([np.hstack(list(o.values())) if isinstance(o, dict) else o
                                        for o in (first, following)]))  # fmt: skip
            env.close()
        np.testing.assert_array_equal(seen[0], seen[1])
        np.testing.assert_array_equal(before, np.random.get_state()[1])  # type: ignore[index]


def test_a_goal_conditioned_agent_from_file_to_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ogbench")
    config = run_config(
        {
            "env": "ogbench-goals?max_episode_steps=5",
            "data": {"sources": [f"{written(tmp_path)}?goals=true"]},
            "agent": {
                "preset": "goal-decision-mamba", "achieved": "observation",
                "context_length": 3, "backbone": {"width": 8, "layers": 1},
            },
            "train": {"steps": 2, "batch_size": 4, "checkpoint_interval": 2},
        },
        {}, "test",
    )  # fmt: skip
    train(config, tmp_path / "run", torch.device("cpu"))
    agent = load_agent(agent_path(tmp_path / "run"))
    rows = rollout(agent, str(config.env), [], 2, 0, "window")
    assert [row.success for row in rows] == [False, False]
    # tasks take turns from seed to seed, or are the one that is named
    turns = make("ogbench-goals")
    assert "act blind" not in capsys.readouterr().err  # the goal is in sight, not in `info` alone
    assert [turns.reset(seed=i)[1]["task_id"] for i in range(6)] == [1, 2, 3, 4, 5, 1]
    goals = [turns.reset(seed=i)[0]["desired_goal"] for i in (0, 1)]
    assert np.abs(goals[0] - goals[1]).max() > 1
    assert make("ogbench-goals?task_id=4").reset(seed=0)[1]["task_id"] == 4
    with pytest.raises(UserError, match="tasks 1 to 5"):
        make("ogbench-goals?task_id=6")
    with pytest.raises(UserError, match="which has no goals"):
        make("ogbench-goals?task=pointmaze-medium-singletask-v0")
