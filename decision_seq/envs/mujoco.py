"""Lanes of gymnasium's MuJoCo robots, stepped side by side on all threads, bit for bit the same.

One environment starts every episode; each lane then is nothing but a copy of its simulator state.
A step hands the simulators to threads, which MuJoCo runs outside Python's lock, and computes
observations, rewards and terminations of all lanes at once from gymnasium's own constants.

`mujoco.rollout` steps many worlds as well, but returns neither the solver's warm start, without
which the next step differs in its last bits, nor the contact forces that Ant-v5 observes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import wrappers

from decision_seq.envs.lanes import Lanes

Array = Any  # of numbers: NumPy's, or a tensor
MIN_LANES = 2  # for one, computing with arrays costs more than it saves
LANES_A_THREAD = 4  # fewer are stepped sooner than another thread wakes up


@dataclass(frozen=True)
class Snapshot:
    """Where the simulators of some lanes stand, as arrays or as tensors."""

    x: Array  # [n] how far the robot has come
    qpos: Array  # [n, nq]
    qvel: Array  # [n, nv]
    forces: Array | None  # [n, bodies, 6] external forces, for Ant-v5
    library: Any = np  # whose they are: NumPy, or torch


def _inside(values: Array, bounds: tuple[float, float]) -> Array:
    return (bounds[0] < values) & (values < bounds[1])


def _always(env: Any, now: Snapshot) -> Array:
    return now.library.ones_like(now.x, dtype=bool)


def _upright(env: Any, now: Snapshot) -> Array:
    """Walker2d: torso height and angle in range."""
    z, angle = now.qpos[:, 1], now.qpos[:, 2]
    return _inside(z, env._healthy_z_range) & _inside(angle, env._healthy_angle_range)


def _hopper_healthy(env: Any, now: Snapshot) -> Array:
    state = now.library.concatenate([now.qpos[:, 2:], now.qvel], axis=1)
    return _inside(state, env._healthy_state_range).all(axis=1) & _upright(env, now)


def _ant_healthy(env: Any, now: Snapshot) -> Array:
    low, high = env._healthy_z_range
    z, isfinite = now.qpos[:, 2], now.library.isfinite
    finite = isfinite(now.qpos).all(axis=1) & isfinite(now.qvel).all(axis=1)
    return finite & (low <= z) & (z <= high)


@dataclass(frozen=True)
class Robot:
    """What differs between the environments; the rest is read from an instance's attributes."""

    healthy: Callable[[Any, Snapshot], Array] = _always  # [n] bool
    positions_hidden: int = 1  # leading entries of qpos that are no observation
    velocity_limit: float = np.inf  # observed velocities are clipped to it
    paid_while_running: bool = False  # v4 pays a robot that falls for its last step as well
    torso_moves: bool = False  # the way is that of the torso's centre, not qpos[0]

    def fits(self, env: Any) -> bool:
        """Whether `env` [unwrapped] is configured in a way that the formulas here cover."""
        return not getattr(env, "_use_contact_forces", False)

    def observe(self, env: Any, now: Snapshot) -> Array:
        """[n, S]"""
        xp, hidden = now.library, self.positions_hidden
        hidden *= env._exclude_current_positions_from_observation
        qvel = xp.clip(now.qvel, -self.velocity_limit, self.velocity_limit)
        parts = [now.qpos[:, hidden:], qvel]
        if now.forces is not None and env._include_cfrc_ext_in_observation:
            forces = xp.clip(now.forces, *env._contact_force_range)
            parts.append(forces[:, 1:].reshape(len(forces), -1))
        return xp.concatenate(parts, axis=1)

    def outcome(
        self, env: Any, before: Array, now: Snapshot, actions: Array
    ) -> tuple[Array, Array]:
        """Rewards [n] and terminations [n]; the order of the sums is gymnasium's, to the last bit.

        before: x [n] before the step.
        """
        healthy, xp = self.healthy(env, now), now.library
        forward = getattr(env, "_forward_reward_weight", 1.0) * ((now.x - before) / env.dt)
        costs = env._ctrl_cost_weight * xp.square(actions).sum(axis=1)
        if self.healthy is _always:
            return forward - costs, ~healthy
        mortal = env._terminate_when_unhealthy
        paid = healthy | (mortal and self.paid_while_running)
        if now.forces is not None:
            forces = xp.clip(now.forces, *env._contact_force_range).reshape(len(forward), -1)
            costs = costs + env._contact_cost_weight * xp.square(forces).sum(axis=1)
        return forward + paid * env._healthy_reward - costs, ~healthy & mortal


_HOPPER = Robot(healthy=_hopper_healthy, velocity_limit=10.0)
_WALKER = Robot(healthy=_upright, velocity_limit=10.0)
_ANT = Robot(healthy=_ant_healthy, positions_hidden=2, torso_moves=True)
ROBOTS: dict[str, Robot] = {  # by the class behind a gymnasium id; a subclass may do otherwise
    "hopper_v5.HopperEnv": _HOPPER,
    "hopper_v4.HopperEnv": replace(_HOPPER, paid_while_running=True),
    "half_cheetah_v5.HalfCheetahEnv": Robot(),
    "half_cheetah_v4.HalfCheetahEnv": Robot(),
    "walker2d_v5.Walker2dEnv": _WALKER,
    "walker2d_v4.Walker2dEnv": replace(_WALKER, paid_while_running=True),
    "ant_v5.AntEnv": _ANT,
    "ant_v4.AntEnv": replace(_ANT, paid_while_running=True),
}


def robot(env: gym.Env[Any, Any]) -> Robot | None:
    """Which of the robots `env` is, or None if it is none, or wrapped by more than a time limit."""
    while isinstance(env, gym.Wrapper):
        if type(env) not in (wrappers.OrderEnforcing, wrappers.TimeLimit):
            return None
        env = env.env
    kind = type(env)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("gymnasium.envs.mujoco.")
    known = ROBOTS.get(name)
    return known if known is not None and known.fits(env) else None


class MujocoLanes(Lanes):
    """`count` lanes of a robot, to be used as any others.

    Args:
        identifier: gymnasium id, for results.
        env: one such environment, for which `robot` is not None; it starts every lane's episodes.
        count: number of lanes.
        threads: number of threads; by default as many as PyTorch uses.
    """

    def __init__(
        self, identifier: str, env: gym.Env[Any, Any], count: int, threads: int | None = None
    ) -> None:
        import mujoco

        known = robot(env)
        assert known is not None and env.spec is not None
        self.id, self.envs, self.action_space = identifier, [env], env.action_space
        self._robot, self._env = known, env.unwrapped
        self._limit = env.spec.max_episode_steps
        model = self._env.model  # type: ignore[attr-defined]
        self._data = [mujoco.MjData(model) for _ in range(count)]
        # Arrays that live in a simulator: asking it for one costs as much as copying it.
        self._views = [(d.ctrl, d.qpos, d.qvel, d.xpos, d.cfrc_ext) for d in self._data]
        self._torso = model.body(getattr(self._env, "_main_body", 1)).id
        self._senses_forces = hasattr(self._env, "_include_cfrc_ext_in_observation")
        self._observations = np.zeros((count, *(env.observation_space.shape or ())), np.float32)
        self._x, self._elapsed = np.zeros(count), np.zeros(count, np.int64)
        self._threads = threads or _torch_threads()
        self._pool = ThreadPoolExecutor(self._threads - 1) if self._threads > 1 else None

    @classmethod
    def serves(cls, env: gym.Env[Any, Any], count: int, stack: int = 1) -> bool:
        """Whether `count` lanes of `env` can be had, and pay."""
        return count >= MIN_LANES and robot(env) is not None

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start an episode in every lane, lane i from `seeds[i]`. Returns [lanes, S] float32."""
        import mujoco

        source: Any = self._env
        for lane, seed in enumerate(seeds):
            self._observations[lane] = self.envs[0].reset(seed=int(seed))[0]
            mujoco.mj_copyData(self._data[lane], source.model, source.data)
        self._x = self._snapshot(np.arange(len(self._data))).x
        self._elapsed[:] = 0
        return self._observations.copy()

    def step(
        self, actions: np.ndarray, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step the lanes where `active` [lanes] is True with `actions` [lanes, A].

        Returns observations [lanes, S], rewards [lanes], terminated [lanes], truncated [lanes];
        a frozen lane repeats its last observation with reward 0.
        """
        rewards = np.zeros(len(active), np.float64)
        terminated, truncated = np.zeros((2, len(active)), bool)
        lanes = np.flatnonzero(active)
        if not len(lanes):
            return self._observations.copy(), rewards, terminated, truncated
        for lane in lanes:
            self._views[lane][0][:] = actions[lane]
        self._simulate(lanes)
        now = self._snapshot(lanes)
        rewards[lanes], terminated[lanes] = self._robot.outcome(
            self._env, self._x[lanes], now, actions[lanes]
        )
        self._observations[lanes] = self._robot.observe(self._env, now)
        self._x[lanes] = now.x
        self._elapsed[lanes] += 1
        if self._limit is not None:
            truncated[lanes] = self._elapsed[lanes] >= self._limit
        return self._observations.copy(), rewards, terminated, truncated

    def close(self) -> None:
        """Free the simulators and threads."""
        if self._pool is not None:
            self._pool.shutdown()
        for env in self.envs:
            env.close()

    def _simulate(self, lanes: np.ndarray) -> None:
        parts = max(1, min(self._threads, len(lanes) // LANES_A_THREAD))
        mine, *others = (lanes[part::parts] for part in range(parts))
        assert not others or self._pool is not None
        pending = [self._pool.submit(self._advance, part) for part in others]  # type: ignore[union-attr]
        self._advance(mine)
        for part in pending:
            part.result()

    def _advance(self, lanes: np.ndarray) -> None:
        import mujoco

        env: Any = self._env
        for lane in lanes:
            mujoco.mj_step(env.model, self._data[lane], nstep=env.frame_skip)
            if self._senses_forces:
                mujoco.mj_rnePostConstraint(env.model, self._data[lane])

    def _snapshot(self, lanes: np.ndarray) -> Snapshot:
        """Copies of what the formulas read."""
        _, qpos, qvel, xpos, forces = zip(*(self._views[lane] for lane in lanes), strict=True)
        q = np.array(qpos)
        x = np.array([p[self._torso, 0] for p in xpos]) if self._robot.torso_moves else q[:, 0]
        return Snapshot(x, q, np.array(qvel), np.array(forces) if self._senses_forces else None)


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()
