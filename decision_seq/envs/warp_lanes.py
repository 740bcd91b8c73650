"""Lanes of gymnasium's MuJoCo robots by MuJoCo Warp: thousands of them step at once on a GPU.

Each episode starts where gymnasium starts it. The physics is MuJoCo's in float32, so that episodes
drift apart from MuJoCo's own; observations, rewards and ends are computed by the same formulas as
those of `MujocoLanes`, on the device. Below about a thousand lanes processor cores are faster.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from decision_seq.envs.lanes import Lanes
from decision_seq.envs.mujoco import Snapshot, robot
from decision_seq.errors import UserError
from decision_seq.hardware import all_to_device

Outcome = tuple[Tensor, Tensor, Tensor, Tensor]  # observations, rewards, terminated, truncated


class WarpLanes(Lanes):
    """`count` lanes of a robot, to be used as any others; `advance` is the same for tensors.

    Args:
        identifier: gymnasium id, for results.
        env: one such environment; it starts every lane's episodes.
        count: number of lanes.
        device: where they are; by default the CPU, which is for trying it out.

    Raises:
        UserError: `env` is none of the robots, or MuJoCo Warp is not installed.
    """

    def __init__(
        self,
        identifier: str,
        env: gym.Env[Any, Any],
        count: int,
        device: torch.device | None = None,
    ) -> None:
        known = robot(env)
        if known is None or env.spec is None:
            raise UserError(
                f"simulator warp: {identifier} is none of Hopper, HalfCheetah, Walker2d and Ant as "
                "gymnasium makes them; leave out --simulator"
            )
        try:
            mujoco_warp: Any = importlib.import_module("mujoco_warp")
            warp: Any = importlib.import_module("warp")
        except ImportError:
            raise UserError(
                "simulator warp: needs mujoco-warp; install it with pip install "
                "'decision-seq[warp]'"
            ) from None
        self.id, self.envs, self.action_space = identifier, [env], env.action_space
        self._robot, self._env, self._limit = known, env.unwrapped, env.spec.max_episode_steps
        device = device or torch.device("cpu")
        self._warp, self._physics, self._device = warp, mujoco_warp, device
        source: Any = self._env
        warp.config.quiet = True
        warp.init()
        self._where = warp.device_from_torch(device)
        contacts = 2 * source.model.ngeom + 8  # a capsule touches the floor at two points
        with warp.ScopedDevice(self._where):
            self._model = mujoco_warp.put_model(source.model)
            self._data = mujoco_warp.put_data(
                source.model,
                source.data,
                nworld=count,
                nconmax=contacts,
                njmax=4 * contacts + source.model.njnt,
            )
        from decision_seq.envs.warp_contacts import as_mujoco

        self._model.callback.contactfilter = as_mujoco
        names = ("ctrl", "qpos", "qvel", "qacc_warmstart", "xpos", "cfrc_ext")
        self._views = {name: warp.to_torch(getattr(self._data, name)) for name in names}
        self._torso = source.model.body(getattr(source, "_main_body", 1)).id
        self._senses_forces = hasattr(source, "_include_cfrc_ext_in_observation")
        self._graph: Any = None
        width = (env.observation_space.shape or ())[0]
        self._shown = torch.zeros(count, width, device=device)
        self._x, self._elapsed = torch.zeros(2, count, device=device)

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start an episode in every lane, lane i from `seeds[i]`. Returns [lanes, S] float32."""
        source: Any = self._env
        begun: dict[str, list[np.ndarray]] = {
            name: [] for name in ("qpos", "qvel", "qacc_warmstart", "xpos", "cfrc_ext")
        }
        observations = np.zeros(self._shown.shape, np.float32)
        for lane, seed in enumerate(seeds):
            observations[lane] = self.envs[0].reset(seed=int(seed))[0]
            for name, rows in begun.items():
                rows.append(getattr(source.data, name).copy())
        for name, rows in begun.items():
            self._views[name].copy_(torch.from_numpy(np.stack(rows)))
        self._shown.copy_(torch.from_numpy(observations))
        self._x.copy_(self._snapshot().x)
        self._elapsed.zero_()
        return observations

    def step(
        self, actions: np.ndarray, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """See `Lanes`."""
        moved = all_to_device([np.asarray(actions, np.float32), active], self._device)
        seen, rewards, terminated, truncated = (t.cpu().numpy() for t in self.advance(*moved))
        return seen, rewards.astype(np.float64), terminated, truncated

    def advance(self, actions: Tensor, active: Tensor) -> Outcome:
        """Step the lanes where `active` [lanes] bool is True with `actions` [lanes, A]. All tensors
        are on the device, which is not waited for.

        Returns observations [lanes, S] float32, rewards [lanes], terminated [lanes], truncated
        [lanes]; a frozen lane repeats its last observation with reward 0.
        """
        self._views["ctrl"].copy_(actions)
        self._simulate()
        now = self._snapshot()
        rewards, terminated = self._robot.outcome(self._env, self._x, now, actions)
        self._shown = torch.where(
            active.unsqueeze(1), self._robot.observe(self._env, now), self._shown
        )
        self._x.copy_(now.x)
        self._elapsed += active
        over = self._elapsed >= (self._limit or torch.inf)
        rewards = rewards.masked_fill(~active, 0)  # a fallen robot may have come to NaN
        return self._shown.clone(), rewards, terminated & active, over & active

    def close(self) -> None:
        """Free the simulators."""
        for env in self.envs:
            env.close()

    def _simulate(self) -> None:
        warp, gpu = self._warp, self._device.type == "cuda"
        stream = warp.stream_from_torch(torch.cuda.current_stream(self._device)) if gpu else None
        with warp.ScopedDevice(self._where), warp.ScopedStream(stream) if gpu else nullcontext():
            if not gpu:
                self._steps()
                return
            if self._graph is None:  # kernels are loaded first, on a copy's behalf
                with warp.ScopedCapture(force_module_load=True) as capture:
                    self._steps()
                self._graph = capture.graph
            warp.capture_launch(self._graph)

    def _steps(self) -> None:
        source: Any = self._env
        for _ in range(source.frame_skip):
            self._physics.step(self._model, self._data)
        if self._senses_forces:
            self._physics.rne_postconstraint(self._model, self._data)

    def _snapshot(self) -> Snapshot:
        """Of what the simulators hold, not copied."""
        qpos, xpos = self._views["qpos"], self._views["xpos"]
        x = xpos[:, self._torso, 0] if self._robot.torso_moves else qpos[:, 0]
        forces = self._views["cfrc_ext"] if self._senses_forces else None
        return Snapshot(x, qpos, self._views["qvel"], forces, torch)
