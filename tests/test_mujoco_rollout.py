"""Lanes of MuJoCo robots against gymnasium's own environments: equal to the last bit."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from decision_seq.envs.fastest import open_lanes
from decision_seq.envs.lanes import Lanes
from decision_seq.envs.mujoco import MujocoLanes, robot
from decision_seq.envs.registry import MUJOCO_IDS, env_id, make

STEPS = {"HalfCheetah": 40, "Ant": 60}  # the others run to the end of their short episodes


def lanes_of(name: str, count: int, threads: int = 1) -> MujocoLanes:
    return MujocoLanes(env_id(name), make(name), count, threads)


def actions_of(env: gym.Env, steps: int, lanes: int) -> np.ndarray:  # type: ignore[type-arg]
    space = env.action_space
    assert isinstance(space, gym.spaces.Box)
    draw = np.random.default_rng(7).uniform(space.low, space.high, (steps, lanes, *space.shape))
    return draw.astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", MUJOCO_IDS)
def test_every_step_is_gymnasiums_to_the_last_bit(name: str, threads: int) -> None:
    """Random actions; lanes end one after the other and freeze; then a second round of episodes."""
    count, seeds = 8, [3, 0, 11, 5, 2, 8, 6, 1]
    lanes = lanes_of(name, count, threads)
    envs = [make(name) for _ in range(count)]
    steps = STEPS.get(name.split("-")[0], 400)
    actions = actions_of(envs[0], steps, count)
    for episode in range(2):
        seen = lanes.reset([seed + episode for seed in seeds])
        starts = [env.reset(seed=s + episode)[0] for env, s in zip(envs, seeds, strict=True)]
        assert np.array_equal(seen, np.array(starts, np.float32))
        active = np.ones(count, bool)
        for t in range(steps):
            before = seen
            seen, rewards, terminated, truncated = lanes.step(actions[t], active)
            for lane, env in enumerate(envs):
                if not active[lane]:
                    assert np.array_equal(seen[lane], before[lane])
                    assert not (rewards[lane] or terminated[lane] or truncated[lane])
                    continue
                observation, reward, *ends, _ = env.step(actions[t, lane])
                assert np.array_equal(seen[lane], observation.astype(np.float32))
                assert rewards[lane] == reward
                assert [terminated[lane], truncated[lane]] == ends
            active &= ~(terminated | truncated)
            if not active.any():
                break
        if name.startswith(("Hopper", "Walker2d")):
            assert not active.any()  # or the test would not have seen lanes freeze
    lanes.close()


def test_simulators_agree_in_double_precision() -> None:
    """Observations are rounded to float32; what they are computed from must not drift either."""
    lanes, env = lanes_of("ant", 1), make("ant")
    lanes.reset([4])
    env.reset(seed=4)
    for action in actions_of(env, 30, 1):
        lanes.step(action, np.ones(1, bool))
        env.step(action[0])
    ours, theirs = lanes._data[0], env.unwrapped.data  # type: ignore[attr-defined]
    for name in ("qpos", "qvel", "qacc_warmstart", "cfrc_ext"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


def test_time_limit_truncates() -> None:
    env = gym.make("HalfCheetah-v5", max_episode_steps=5, disable_env_checker=True)
    lanes = MujocoLanes("HalfCheetah-v5", env, 2)
    lanes.reset([0, 1])
    actions = np.zeros((2, 6), np.float32)
    ends = [lanes.step(actions, np.ones(2, bool))[3].tolist() for _ in range(4)]
    assert ends == [[False, False]] * 4
    *_, terminated, truncated = lanes.step(actions, np.array([True, False]))
    assert (terminated.tolist(), truncated.tolist()) == ([False, False], [True, False])
    lanes.reset([0, 1])
    assert not lanes.step(actions, np.ones(2, bool))[3].any()


@pytest.mark.parametrize(
    "arguments",
    [
        {"terminate_when_unhealthy": False, "healthy_reward": 0.3, "ctrl_cost_weight": 0.2},
        {"exclude_current_positions_from_observation": False, "forward_reward_weight": 3.7},
        {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.1, "frame_skip": 2},
    ],
    ids=str,
)
def test_an_environments_own_constants_count(arguments: dict) -> None:
    plain = gym.make("Ant-v5", disable_env_checker=True, **arguments)
    lanes = MujocoLanes("Ant-v5", gym.make("Ant-v5", disable_env_checker=True, **arguments), 1)
    assert np.array_equal(lanes.reset([9])[0], plain.reset(seed=9)[0].astype(np.float32))
    for action in actions_of(plain, 40, 1):
        seen, rewards, terminated, _ = lanes.step(action, np.ones(1, bool))
        observation, reward, ended, *_ = plain.step(action[0])
        assert np.array_equal(seen[0], observation.astype(np.float32))
        assert (rewards[0], terminated[0]) == (reward, ended)


def test_other_environments_are_none_of_the_robots() -> None:
    assert robot(make("hopper")) is not None
    assert robot(make("point-run")) is None
    assert robot(make("InvertedPendulum-v5")) is None
    assert robot(gym.wrappers.ClipReward(make("hopper"), 0, 1)) is None
    forces = gym.make("Ant-v4", use_contact_forces=True, disable_env_checker=True)
    assert robot(forces) is None


def test_lanes_are_the_fastest_kind() -> None:
    kinds = [("hopper", 8, MujocoLanes), ("hopper", 1, Lanes), ("CartPole-v1", 8, Lanes)]
    for name, count, kind in kinds:
        lanes = open_lanes(name, count)
        assert type(lanes) is kind
        lanes.close()
