"""Environments by name: short names, gymnasium ids, `module:Id-v0`, each with `?argument=value`."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from decision_seq.envs import interface, missing
from decision_seq.envs.atari import IDS as ATARI_IDS
from decision_seq.envs.atari import OLD_IDS as ATARI_OLD_IDS
from decision_seq.envs.identity import Identity, plain
from decision_seq.envs.memory import LAGS
from decision_seq.envs.ogbench_goals import OwnNumbers, is_ogbench
from decision_seq.envs.quiet import quiet_mujoco
from decision_seq.envs.t_maze import STEPS
from decision_seq.errors import UserError

D4RL_ANT = "decision-seq/D4RLAnt-v2"
MEMORY_IDS = {lag: f"decision-seq/Memory{lag}-v0" for lag in LAGS}
T_MAZE_IDS = {steps: f"decision-seq/TMaze{steps}-v0" for steps in STEPS}
gym.register("decision-seq/PointRun-v0", "decision_seq.envs.toy:PointRun", max_episode_steps=20)
gym.register("decision-seq/OGBenchGoals-v0", "decision_seq.envs.ogbench_goals:OGBenchGoals")
gym.register("decision-seq/MiniGridPixels-v0", "decision_seq.envs.minigrid_pixels:MiniGridPixels")
gym.register(D4RL_ANT, "decision_seq.envs.d4rl_ant:D4RLAnt", max_episode_steps=1000)
for _lag, _id in MEMORY_IDS.items():
    gym.register(_id, "decision_seq.envs.memory:Memory", kwargs={"lag": _lag})
for _steps, _id in T_MAZE_IDS.items():
    _kwargs, _entry = {"steps": _steps}, "decision_seq.envs.t_maze:TMaze"
    gym.register(_id, _entry, kwargs=_kwargs, max_episode_steps=_steps)

# short name -> gymnasium id. Any other registered id with a vector observation works as well.
NAMES: dict[str, str] = {
    "hopper": "Hopper-v5",
    "halfcheetah": "HalfCheetah-v5",
    "walker2d": "Walker2d-v5",
    "ant": "Ant-v5",
    "d4rl-ant": D4RL_ANT,
    "point-run": "decision-seq/PointRun-v0",
    "minigrid-pixels": "decision-seq/MiniGridPixels-v0",
    "ogbench-goals": "decision-seq/OGBenchGoals-v0",
    **{f"memory-{lag}": identifier for lag, identifier in MEMORY_IDS.items()},
    **{f"t-maze-{steps}": identifier for steps, identifier in T_MAZE_IDS.items()},
    **ATARI_IDS,
}
MUJOCO_IDS = tuple(
    f"{name}-{version}"
    for name in ("Hopper", "HalfCheetah", "Walker2d", "Ant")
    for version in ("v5", "v4")
)
LIMIT = "max_episode_steps"  # of gymnasium's time limit, -1 for none: an argument as any other
# what ALE's own environments are made with, as the data of Minari record it: the same as ours
ALE: dict[str, Any] = {
    "frameskip": 4,
    "full_action_space": False,
    "repeat_action_probability": 0.25,
}
ALE |= {"max_num_frames_per_episode": 108_000, "obs_type": "rgb"}
# arguments on which neither observations nor rewards depend
DRAWING = {"render_mode", "render_fps", "width", "height", "screen_size", "max_geom"}
DRAWING |= {"camera_id", "camera_name", "default_camera_config", "visual_options"}


def resolve(name: str) -> Identity:
    """The environment that `name` stands for; `module:Id-v0` imports `module` first. Arguments that
    say what holds anyway are left out.

    Raises UserError if there is none.
    """
    typed = Identity.parse(name)
    if (
        typed.module is not None
    ):  # a user's own package, which registers its environments when it is imported
        try:
            importlib.import_module(typed.module)
        except Exception as error:  # a package may fail in any way
            raise UserError(
                f"environment {name!r}: {typed.module!r} cannot be imported "
                f"({' '.join(str(error).split())}); {missing.module_advice(typed, error)}"
            ) from None
    found = canonical(typed)
    if found is None:
        known = [*NAMES, *MUJOCO_IDS, *gym.registry]
        raise UserError(f"environment {name!r} does not exist; {missing.advice(typed, known)}")
    return found


def canonical(typed: Identity) -> Identity | None:
    """The same by its gymnasium id and without arguments that say what holds anyway; None where it
    is not registered here. Nothing is imported but what registered it."""
    identifier = NAMES.get(typed.id.lower()) or ATARI_OLD_IDS.get(typed.id, typed.id)
    if identifier not in gym.registry:
        return None
    spec = gym.registry[identifier]
    given = {k: plain(v) for k, v in typed.arguments.items() if k not in DRAWING}
    if typed.id in ATARI_OLD_IDS:
        given = {k: v for k, v in given.items() if ALE.get(k) != v}
    if given:
        holds: dict[str, Any] = {
            name: plain(value)
            for name, value in missing.arguments_of(spec.entry_point).items()
            if value is not inspect.Parameter.empty
        }
        holds |= {**plain(spec.kwargs), LIMIT: spec.max_episode_steps or -1}
        given = {k: v for k, v in given.items() if k not in holds or holds[k] != v}
    return Identity(identifier, given, typed.module)


def env_id(name: str) -> str:
    """`resolve` as text, without a module: what rows and datasets call the environment."""
    return str(resolve(name))


def recorded_id(name: str) -> str:
    """What a dataset that a person names the environment of records: `env_id`, behind the module if
    one was named. Raises UserError if there is none."""
    found = resolve(name)
    return str(found) if found.module is None else f"{found.module}:{found}"


def typed(name: str) -> str:
    """An environment that data record, as commands take it: behind the module of the known package
    that registers it. Nothing is imported."""
    found = Identity.parse(name)
    package = missing.package_of(found)
    return name if found.module or package is None else f"{package.module}:{name}"


def identity_of(spec: EnvSpec) -> Identity:
    """The environment that `spec` describes, whether it exists here or not."""
    limit = -1 if spec.max_episode_steps is None else spec.max_episode_steps
    kept = {k: plain(v) for k, v in spec.kwargs.items() if k not in DRAWING}
    written = Identity(spec.id, kept | {LIMIT: limit})
    return canonical(written) or written


def writable(spec: EnvSpec) -> EnvSpec:
    """The same in a form that can be written as JSON: classes and other objects as text."""
    point = spec.entry_point
    if point is not None and not isinstance(point, str):
        point = f"{point.__module__}:{getattr(point, '__qualname__', point)}"
    return dataclasses.replace(spec, entry_point=point, kwargs=plain(spec.kwargs))


def named_by_data(name: str | None) -> str | None:
    """The environment that a dataset says it is from, or None where making it would import a module
    or open a file: a stranger's dataset must not choose these; who wants it names it in a command.
    """
    if name is None:
        return None
    try:
        found = Identity.parse(name)
    except UserError:
        return None
    if found.module is not None and found.module not in sys.modules:
        return None
    return name if _harmless(found.arguments) else None


def _harmless(value: Any) -> bool:
    """Whether no text in `value` could be the name of a file or module."""
    if isinstance(value, Mapping):
        return all(_harmless(one) for one in value.values())
    if isinstance(value, list):
        return all(_harmless(one) for one in value)
    return not isinstance(value, str) or value.replace("_", "").replace("-", "").isalnum()


def make(name: str, **options: Any) -> gym.Env[Any, Any]:
    """One environment; `options` go to gymnasium. The first of its kind is reset and stepped once
    before, to see that it keeps to the interface.

    Raises UserError for one that is unknown, cannot be made, has other spaces than vectors, or does
    not keep to gymnasium's interface.
    """
    wanted = resolve(name)
    with quiet_mujoco():
        kind = str(wanted), gym.registry[wanted.id].entry_point
        if kind not in _seen:
            first = _construct(wanted)
            try:
                interface.check(first, str(wanted))
            finally:
                first.close()
            _seen.add(kind)
        return _construct(wanted, **options)


_seen: set[Any] = set()  # environments that kept to the interface, and what makes them


def _construct(wanted: Identity, **options: Any) -> gym.Env[Any, Any]:
    arguments: dict[str, Any] = {**wanted.arguments, **options}
    try:
        made = gym.make(wanted.id, disable_env_checker=True, **arguments)
        return OwnNumbers(made) if is_ogbench(gym.registry[wanted.id].entry_point) else made
    except UserError:
        raise
    except Exception as error:  # a constructor may fail in any way
        said = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
        advice = missing.remedy(wanted, gym.registry[wanted.id].entry_point, error)
        raise UserError(f"environment {wanted} cannot be made ({said}); {advice}") from None


def versions() -> dict[str, str]:
    """Versions of the simulators, for results."""
    from importlib.metadata import version

    simulators = ("gymnasium", "mujoco", "ale-py", "mujoco-warp")
    return {package: version(package) for package in simulators if _installed(package)}


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package.replace("-", "_")) is not None
