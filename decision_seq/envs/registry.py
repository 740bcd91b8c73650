"""Environments by name."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from decision_seq.envs.atari import IDS as ATARI_IDS
from decision_seq.envs.atari import OLD_IDS as ATARI_OLD_IDS
from decision_seq.envs.memory import LAGS
from decision_seq.envs.quiet import quiet_mujoco
from decision_seq.errors import UserError

gym.register("decision-seq/PointRun-v0", "decision_seq.envs.toy:PointRun", max_episode_steps=20)
MEMORY_IDS = {lag: f"decision-seq/Memory{lag}-v0" for lag in LAGS}
for _lag, _id in MEMORY_IDS.items():
    gym.register(_id, "decision_seq.envs.memory:Memory", kwargs={"lag": _lag})

# short name -> gymnasium id. Any other registered id with a vector observation works as well.
NAMES: dict[str, str] = {
    "hopper": "Hopper-v5",
    "halfcheetah": "HalfCheetah-v5",
    "walker2d": "Walker2d-v5",
    "ant": "Ant-v5",
    "point-run": "decision-seq/PointRun-v0",
    **{f"memory-{lag}": identifier for lag, identifier in MEMORY_IDS.items()},
    **ATARI_IDS,
}
MUJOCO_IDS = tuple(
    f"{name}-{version}"
    for name in ("Hopper", "HalfCheetah", "Walker2d", "Ant")
    for version in ("v5", "v4")
)


def env_id(name: str) -> str:
    """The gymnasium id that `name` stands for; `module:Id-v0` imports `module` first.

    Raises UserError if there is none.
    """
    module, colon, identifier = name.rpartition(":")
    if colon:  # a user's own package, which registers its environments when it is imported
        try:
            importlib.import_module(module)
        except (ImportError, TypeError, ValueError) as error:  # the latter: no module's name
            raise UserError(
                f"environment {name!r}: {module!r} cannot be imported ({error})"
            ) from None
    identifier = NAMES.get(identifier.lower()) or ATARI_OLD_IDS.get(identifier, identifier)
    if identifier not in gym.registry:
        known = [*NAMES, *MUJOCO_IDS, *gym.registry]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"the nearest is {close[0]}" if close else "see `decision-seq list envs`"
        raise UserError(f"environment {name!r} does not exist; {hint}")
    return identifier


def recorded_id(name: str) -> str:
    """What a dataset records of its environment: the id, behind the module that registers it if
    one was named. Raises UserError if there is none."""
    identifier = env_id(name)
    return name if ":" in name else identifier


def named_by_data(name: str | None) -> str | None:
    """The environment that a dataset says it is from, or None where asking for it would import a
    module: a stranger's file must not choose what is imported; who wants it names it in a command.
    """
    if name is None:
        return None
    module, colon, _ = name.rpartition(":")
    return None if colon and module not in sys.modules else name


def make(name: str, **options: Any) -> gym.Env[Any, Any]:
    """One environment; `options` go to gymnasium. Raises UserError for one that is unknown, gone,
    or not of vector form."""
    identifier = env_id(name)
    try:
        with quiet_mujoco():
            env = gym.make(identifier, disable_env_checker=True, **options)
    except (gym.error.Error, ImportError, AttributeError) as error:
        raise UserError(
            f"environment {identifier} cannot be made ({' '.join(str(error).split())}); "
            f"for MuJoCo use one of {', '.join(MUJOCO_IDS)}"
        ) from None
    space = env.observation_space
    is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1
    supported = is_vector or identifier in ATARI_IDS.values()
    if not supported or not isinstance(env.action_space, spaces.Box | spaces.Discrete):
        raise UserError(
            f"environment {identifier} has {space} and {env.action_space}; vector observations "
            "and Box or Discrete actions are supported, and the games of `list envs`"
        )
    return env


def versions() -> dict[str, str]:
    """Versions of the simulators, for results."""
    from importlib.metadata import version

    simulators = ("gymnasium", "mujoco", "ale-py")
    return {package: version(package) for package in simulators if _installed(package)}


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package.replace("-", "_")) is not None
