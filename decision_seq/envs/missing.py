"""Why an environment is not to be had, and what to install or write instead."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from decision_seq.envs.identity import Identity

ROBOTICS_MUJOCO = "3.3.7"  # the last that gymnasium-robotics 1.4 and dm_control 1.0 work with


@dataclass(frozen=True)
class Package:
    """A package with environments of its own."""

    ids: str  # pattern of their ids, in lower case
    module: str  # registers them when it is imported
    install: str  # what pip calls it


PACKAGES = (
    Package(
        r"(point|ant)maze_|fetch|handreach|handmanipulate|adroithand|frankakitchen",
        "gymnasium_robotics",
        "'decision-seq[robotics]'",
    ),
    Package(r"minigrid-|babyai-", "minigrid", "'decision-seq[minigrid]'"),
    Package(r"popgym-", "popgym", "'decision-seq[memory]'"),
    Package(r"meta-world/", "metaworld", "metaworld"),
    Package(r"dm_control/", "shimmy", "'shimmy[dm-control]'"),
    Package(r"miniworld-", "miniworld", "miniworld"),
    Package(r"(highway|merge|roundabout|parking|intersection|racetrack)-", "highway_env",
            "highway-env"),
    Package(r"safety", "safety_gymnasium", "safety-gymnasium"),
    Package(
        r"(visual-)?((point|ant|humanoid)maze-(medium|large|giant|teleport)|antsoccer-|cube-|scene-"
        r"|puzzle-|powderworld-)",
        "ogbench",
        "'decision-seq[ogbench]'",
    ),
)  # fmt: skip


def package_of(wanted: Identity) -> Package | None:
    """The known package that has it, installed or not."""
    return next((p for p in PACKAGES if re.match(p.ids, wanted.id.lower())), None)


def advice(wanted: Identity, known: Iterable[str]) -> str:
    """What to do where `wanted` is not registered: the package that has it, else the nearest of the
    `known` names."""
    if package := package_of(wanted):
        write = f"`{package.module}:{wanted}`"
        if wanted.module == package.module:
            return f"{package.module} has no environment of that name in this version"
        if importlib.util.find_spec(package.module):
            return f"it is one of {package.module}'s: write {write}, which imports the module"
        return f"install its package, `pip install {package.install}`, and write {write}"
    close = difflib.get_close_matches(wanted.id, known, n=1)
    nearest = f"the nearest is {close[0]}" if close else "see `decision-seq list envs`"
    if wanted.module is not None:
        return f"{wanted.module} was imported and registers none of that name; {nearest}"
    return f"{nearest}; an environment of another package is written `package:{wanted.id}`"


def module_advice(wanted: Identity, error: Exception) -> str:
    """What to do where importing the module that was named before `wanted` raised `error`: said
    where Python does not find the module itself."""
    if not isinstance(error, ModuleNotFoundError) or error.name != wanted.module:
        return "look for the fault in it"
    if (package := package_of(wanted)) and package.module == wanted.module:
        return f"`pip install {package.install}` has it"
    return "if it is in this folder, `export PYTHONPATH=$PWD` lets Python find it"


def remedy(wanted: Identity, entry_point: object, error: Exception) -> str:
    """What to do where the constructor of a registered environment raised `error`."""
    target = getattr(entry_point, "__module__", None) or str(entry_point)
    said = f"{type(error).__name__} {error}"
    if re.search(r"-v[23]$", wanted.id) and "mujoco" in said:
        return f"write {wanted.id[:-1]}4 or {wanted.id[:-1]}5"
    if isinstance(error, ImportError) or "DependencyNotInstalled" in said:
        return "install what it needs"
    if target.startswith(("gymnasium_robotics", "shimmy")) and _version("mujoco") not in (
        "",
        ROBOTICS_MUJOCO,
    ):
        return (
            f"gymnasium-robotics and dm_control work with mujoco {ROBOTICS_MUJOCO} "
            f"(`pip install mujoco=={ROBOTICS_MUJOCO}`), here is {_version('mujoco')}"
        )
    if isinstance(error, TypeError) and (takes := arguments_of(entry_point)):
        return f"its arguments are written `{wanted.id}?name=value`; it takes {', '.join(takes)}"
    return "look for the fault in the environment or its arguments"


def arguments_of(entry_point: object) -> dict[str, object]:
    """Arguments of an environment's constructor, and what they are by default: `inspect`'s `empty`
    where they must be given. Nothing where that cannot be told."""
    from gymnasium.envs.registration import load_env_creator

    try:
        creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        parameters = inspect.signature(creator).parameters.values()  # type: ignore[arg-type]
    except Exception:  # importing a stranger's module may fail in any way
        return {}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p.default for p in parameters if p.kind in named and p.name != "self"}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
