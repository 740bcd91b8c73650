"""MuJoCo Warp: its lanes beside gymnasium, what goes around them, and what they cannot take."""

from __future__ import annotations

import importlib.util
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from small_agents import evaluated, trained_toy

from decision_seq.behaviours.tiers import behaviour_for
from decision_seq.data.tools.collect import _one_by_one, _side_by_side
from decision_seq.envs import fastest
from decision_seq.envs.fastest import open_lanes
from decision_seq.envs.lanes import Lanes
from decision_seq.envs.mujoco import MujocoLanes, Snapshot, robot
from decision_seq.envs.registry import make
from decision_seq.envs.warp_lanes import WarpLanes
from decision_seq.errors import UserError
from decision_seq.eval.report.protocol import commands
from decision_seq.eval.report.runs import load_run
from decision_seq.eval.rows import read_rows

TOLERANCE = 1e-3  # of a step's observations and rewards; float32 rounds every one of its substeps
ROBOTS = ("Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Ant-v5")
with_warp = pytest.mark.skipif(
    importlib.util.find_spec("mujoco_warp") is None, reason="mujoco-warp is not installed"
)


@pytest.mark.parametrize("name", [*ROBOTS, "Hopper-v4", "Ant-v4"])
def test_formulas_of_tensors_are_those_of_arrays(name: str) -> None:
    env, draw = make(name), np.random.default_rng(0)
    known, model = robot(env), env.unwrapped.model  # type: ignore[attr-defined]
    assert known is not None
    lanes = 200  # around where the robot stands, so that some have fallen
    qpos = env.unwrapped.init_qpos + draw.normal(0, 0.3, (lanes, model.nq))  # type: ignore[attr-defined]
    qvel = draw.normal(0, 6, (lanes, model.nv))
    forces = draw.normal(0, 1, (lanes, model.nbody, 6)) if name == "Ant-v5" else None
    before, actions = draw.random(lanes), draw.random((lanes, model.nu)).astype(np.float32)
    arrays = Snapshot(qpos[:, 0], qpos, qvel, forces)
    sent = [None if a is None else torch.from_numpy(a) for a in (qpos, qvel, forces)]
    tensors = Snapshot(sent[0][:, 0], *sent, library=torch)  # type: ignore[index, arg-type]
    expected = (known.observe(env.unwrapped, arrays),
                *known.outcome(env.unwrapped, before, arrays, actions))  # fmt: skip
    moved = torch.from_numpy(before), tensors, torch.from_numpy(actions)
    found = known.observe(env.unwrapped, tensors), *known.outcome(env.unwrapped, *moved)
    for tensor, array in zip(found, expected, strict=True):
        assert tensor.numpy().dtype == array.dtype
        np.testing.assert_allclose(tensor.numpy(), array, rtol=1e-6, atol=1e-6)
    assert "HalfCheetah" in name or 0 < expected[2].sum() < lanes


def test_what_it_cannot_take_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="CartPole-v1 is none of Hopper, HalfCheetah, Walker2d and"):
        open_lanes("CartPole-v1", 2, simulator="warp")
    monkeypatch.setitem(sys.modules, "mujoco_warp", None)
    with pytest.raises(UserError, match=r"pip install 'decision-seq\[warp\]'"):
        open_lanes("hopper", 2, simulator="warp")


def test_episodes_side_by_side_are_those_one_by_one() -> None:
    behaviour, _ = behaviour_for("hopper", "random", None, False)
    lanes = MujocoLanes("Hopper-v5", make("hopper"), 3)
    many = _side_by_side(lanes, 3, behaviour, seed=5)
    alone = _one_by_one(make("hopper"), behaviour, seed=5, limit=1000)
    for here, there in islice(zip(many, alone, strict=False), 7):  # of three rounds
        assert here.keys() == there.keys()
        for key, value in there.items():
            np.testing.assert_allclose(here[key], value, rtol=1e-6, atol=1e-6, err_msg=key)
            assert np.asarray(here[key]).dtype == np.asarray(value).dtype


def test_rows_name_the_simulator(
    tmp_path: Path, toy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They replace no others, reports keep them apart, and say how they come about."""
    run = trained_toy(tmp_path, toy_file)
    evaluated(run, episodes=2)
    asked = []

    def lanes(name: str, count: int, stack: int, simulator: str, device: torch.device) -> Lanes:
        asked.append((simulator, device.type))
        return fastest.open_lanes(name, count, stack)

    monkeypatch.setattr("decision_seq.eval.rollout.episodes.open_lanes", lanes)
    evaluated(run, episodes=2, simulator="warp")
    assert asked == [("warp", "cpu")]
    names = [(row["env"], row["simulator"]) for row in read_rows(run)]
    assert len(set(names)) == 2 and len(names) == 2 * names.count(names[0])
    assert names[-1] == (f"{names[0][0]} (warp)", "warp")
    told = [line for line in commands([load_run(run)]) if line.startswith("decision-seq evaluate")]
    assert ["--simulator warp" in line for line in told] == [False, True]
    assert not any("--env" in line for line in told)


def gymnasiums(lanes: WarpLanes, envs: list) -> None:  # type: ignore[type-arg]
    """Put the lanes where the environments are."""
    data = [env.unwrapped.data for env in envs]
    for name in ("qpos", "qvel", "qacc_warmstart", "xpos"):
        lanes._views[name].copy_(torch.from_numpy(np.stack([getattr(d, name) for d in data])))
    lanes._x.copy_(lanes._snapshot().x)


@pytest.mark.slow
@with_warp
@pytest.mark.parametrize("name", ROBOTS)
def test_steps_are_gymnasiums(name: str) -> None:
    """From the same states, with float32's rounding over the simulator's steps between; compiling
    the kernels takes minutes the first time."""
    envs = [make(name) for _ in range(5)]
    lanes, draw = WarpLanes(name, envs.pop(), 4), np.random.default_rng(0)
    active = np.array([True, True, True, False])
    starts = [env.reset(seed=7 + i)[0] for i, env in enumerate(envs)]
    np.testing.assert_array_equal(lanes.reset(range(7, 11)), np.float32(starts))
    frozen, ended = np.float32(starts[3]), 0
    for step in range(50):
        gymnasiums(lanes, envs)
        actions = draw.uniform(-1, 1, (4, lanes.action_space.shape[0])).astype(np.float32)  # type: ignore[index]
        seen, rewards, terminated, truncated = lanes.step(actions, active)
        assert np.array_equal(seen[3], frozen) and not (rewards[3] or terminated[3])
        for i, env in enumerate(envs[:3]):
            observation, reward, ends, *_ = env.step(actions[i])
            np.testing.assert_allclose(seen[i], observation, rtol=TOLERANCE, atol=TOLERANCE)
            np.testing.assert_allclose(rewards[i], reward, rtol=TOLERANCE, atol=TOLERANCE)
            assert terminated[i] == ends and not truncated[i]
            ended += ends
            if ends:
                env.reset(seed=100 + step)
    assert ended or "HalfCheetah" in name or "Ant" in name
