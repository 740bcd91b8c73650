"""The fastest lanes that there are for an environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decision_seq.envs.atari import FRAME_STACK
from decision_seq.envs.atari_lanes import AtariLanes
from decision_seq.envs.lanes import Lanes
from decision_seq.envs.mujoco import MujocoLanes
from decision_seq.envs.registry import env_id, make
from decision_seq.settings import Simulator

if TYPE_CHECKING:
    import torch


def open_lanes(
    name: str,
    count: int,
    stack: int = FRAME_STACK,
    simulator: Simulator = "auto",
    device: torch.device | None = None,
) -> Lanes:
    """`count` lanes of the environment `name`, of the fastest kind that serves it; of images each
    shows the last `stack`. Other simulators than an environment's own run on `device`."""
    env = make(name)
    if simulator == "warp":
        from decision_seq.envs.warp_lanes import WarpLanes

        return WarpLanes(env_id(name), env, count, device)
    for kind in (AtariLanes, MujocoLanes):
        if kind.serves(env, count, stack):
            return kind(env_id(name), env, count)
    env.close()
    return Lanes(name, count, stack)
