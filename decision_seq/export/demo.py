"""A trained robot as a page: a static folder in which a browser simulates it and its policy.

MuJoCo's WebAssembly build steps gymnasium's model, onnxruntime-web the exported policy. What
gymnasium computes around the simulator are a few formulas (page/robot.js), whose numbers are read
from a real environment here.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from decision_seq.agents import SequenceAgent
from decision_seq.data.tools.info import read_summary
from decision_seq.envs.mujoco import Robot, robot
from decision_seq.envs.quiet import quiet_mujoco
from decision_seq.envs.registry import make
from decision_seq.errors import UserError
from decision_seq.export.bundle import export_policy
from decision_seq.export.npm import npm_files
from decision_seq.files import atomic_folder
from decision_seq.run_config import RunConfig
from decision_seq.settings import Context

PAGE = Path(__file__).parent / "page"
STARTS = 20  # episodes that differ, before they come again


@quiet_mujoco()
def make_demo(
    agent: SequenceAgent,
    config: RunConfig,
    out: Path,
    origin: dict[str, Any],
    run: Path,
    packages: Path | None = None,
) -> float:
    """Write the page of a trained agent to the new folder `out`.

    Args:
        agent: the trained agent.
        config: the run's, for its environment, targets and first seed.
        out: must not exist.
        origin: see `export_policy`.
        run: folder of the run, for what its data returned.
        packages: see `npm_files`.

    Returns:
        The size of the folder in MB.

    Raises:
        UserError: `out` exists, the environment is none of the robots, npm's files are not to be
            had, or the agent cannot be exported.
    """
    if out.exists():
        raise UserError(f"{out}: exists; choose another --out, or remove it")
    if config.env is None:
        raise UserError(f"{out}: the run names no environment to play in")
    env = make(config.env)
    try:
        known = robot(env)
        if known is None or known.torso_moves:
            raise UserError(f"{config.env}: demo shows Hopper, Walker2d and HalfCheetah only")
        model = Path(env.unwrapped.fullpath).read_text(encoding="utf-8")  # type: ignore[attr-defined]
        described = _task(env, known, config.eval.seed)
    finally:
        env.close()
    libraries = npm_files(packages)
    with atomic_folder(out) as folder:
        for context in get_args(Context):
            place = folder / context
            export_policy(agent, config, "onnx", place, context, None, origin, run)
        policy = json.loads((place / "policy.json").read_text("utf-8"))
        described |= {
            "agent": config.name,
            "targets": _targets(policy["target_return"], config, run),
        }
        for file in PAGE.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / "robot.xml").write_text(model, encoding="utf-8")
        (folder / "demo.json").write_text(json.dumps(described) + "\n", encoding="utf-8")
        (folder / "lib").mkdir()
        for name, content in libraries.items():
            if name.endswith(".wasm"):  # a quarter of the size; the page unpacks it
                name, content = f"{name}.gz", gzip.compress(content, 6, mtime=0)
            (folder / "lib" / name).write_bytes(content)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return size / 1e6


def _task(env: Any, known: Robot, seed: int) -> dict[str, Any]:
    """What page/robot.js has to know of an environment. Infinite numbers are null."""
    inner, limit = env.unwrapped, env.spec.max_episode_steps
    hides = inner._exclude_current_positions_from_observation
    return {
        "env": env.spec.id,
        "frame_skip": inner.frame_skip,
        "dt": inner.dt,  # seconds a step of the environment
        "hidden_positions": known.positions_hidden * hides,
        "velocity_limit": _finite(known.velocity_limit),
        "forward_reward_weight": inner._forward_reward_weight,
        "ctrl_cost_weight": inner._ctrl_cost_weight,
        "healthy_reward": getattr(inner, "_healthy_reward", 0.0),
        "healthy_bounds": _healthy_bounds(inner),
        "terminate_when_unhealthy": getattr(inner, "_terminate_when_unhealthy", False),
        "paid_while_running": known.paid_while_running,
        "max_steps": limit,
        "starts": [_start(env, seed + i) for i in range(STARTS)],
    }


def _healthy_bounds(inner: Any) -> list[list[float | None]]:
    """[index in (qpos, qvel), above, below]: an episode goes on while all are inside. HalfCheetah
    has none."""
    if not hasattr(inner, "_healthy_z_range"):
        return []
    bounds: list[tuple[int, Sequence[float]]] = [
        (1, inner._healthy_z_range),
        (2, inner._healthy_angle_range),
    ]
    if hasattr(inner, "_healthy_state_range"):  # Hopper
        rest = range(2, inner.model.nq + inner.model.nv)
        bounds += [(index, inner._healthy_state_range) for index in rest]
    return [[index, _finite(low), _finite(high)] for index, (low, high) in bounds]


def _start(env: Any, seed: int) -> dict[str, Any]:
    env.reset(seed=seed)
    data = env.unwrapped.data
    return {"seed": seed, "qpos": data.qpos.tolist(), "qvel": data.qvel.tolist()}


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _targets(target: float | None, config: RunConfig, run: Path) -> dict[str, float] | None:
    """The slider: from nothing, or the lowest, to a tenth above the best there is; None for agents
    that follow no target."""
    if target is None:
        return None
    named = config.eval.targets if config.eval.targets != "auto" else []
    known = [0.0, target, *named, *read_summary(run / "dataset.json")["returns"]]
    low, high = min(known), max(known)
    step = 10.0 ** math.floor(math.log10(max(high - low, 1.0)) - 1)  # some ten to a hundred notches
    return {
        "low": math.floor(low / step) * step,
        "high": math.ceil(1.1 * high / step) * step,
        "step": step,
        "first": target,
    }
