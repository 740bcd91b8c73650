"""Whether an environment keeps to gymnasium's interface, asked of its first reset and step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import wrappers

from decision_seq.envs.ogbench_goals import is_ogbench
from decision_seq.errors import UserError, say_once
from decision_seq.spaces.steps import StepForm

BY_GYMNASIUM = (wrappers.OrderEnforcing, wrappers.TimeLimit)  # what `gym.make` puts around it
RESET = "def reset(self, *, seed=None, options=None) returns (observation, info)"
STEP = "step(action) returns (observation, reward, terminated, truncated, info)"
GOALS = ("goal", "desired_goal")
GOAL_SEEDS = range(4)


def check(env: gym.Env[Any, Any], name: str) -> None:
    """Reset `env`, take a step, and look at what it returns.

    Raises UserError, in one sentence, where spaces are not read, reset or step fail, or return
    something else than gymnasium asks for.
    """
    form = _form(env, name)
    inner: Any = env
    while type(inner) in BY_GYMNASIUM:  # these take apart what they are given, and fail on it
        inner = inner.env
    begun = _call(name, inner.reset, RESET, seed=0, options=None)
    if not (isinstance(begun, tuple) and len(begun) == 2 and isinstance(begun[1], Mapping)):
        raise UserError(f"environment {name}: reset gave {_described(begun)}; in gymnasium {RESET}")
    _check_observation(env, form, name, "reset", begun[0])
    action_space = copy.deepcopy(env.action_space)  # the environment's own draws stay its own
    action_space.seed(0)
    gone = _call(name, inner.step, STEP, action_space.sample())
    if not (isinstance(gone, tuple) and len(gone) == 5):
        raise UserError(
            f"environment {name}: step gave {_described(gone)}; in gymnasium {STEP}, of which "
            "`terminated` is an end and `truncated` a time limit"
        )
    observation, reward, terminated, truncated, info = gone
    _check_observation(env, form, name, "step", observation)
    if np.ndim(reward) or np.asarray(reward).dtype.kind not in "fiub":
        raise UserError(
            f"environment {name}: step's reward is {_described(reward)}; it must be one number"
        )
    for flag, value in {"terminated": terminated, "truncated": truncated}.items():
        if not isinstance(value, bool | np.bool_ | int | np.integer):
            raise UserError(
                f"environment {name}: step's `{flag}` is {_described(value)}; it must be true or "
                f"false ({STEP})"
            )
    if not isinstance(info, Mapping):
        raise UserError(
            f"environment {name}: step's `info` is {_described(info)}; it must be a dict ({STEP})"
        )
    _look_for_goals(env, inner, name, begun[1])


def _form(env: gym.Env[Any, Any], name: str) -> StepForm:
    try:
        return StepForm(env)
    except UserError as error:
        raise UserError(f"environment {name}: {error}") from None


def _call(name: str, method: Callable[..., Any], form: str, *args: Any, **options: Any) -> Any:
    try:
        return method(*args, **options)
    except UserError:
        raise
    except Exception as error:  # an environment may fail in any way
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"environment {name}: {method.__name__} failed at the first try ({said}); in gymnasium "
            f"{form}"
        ) from None


def _check_observation(
    env: gym.Env[Any, Any], form: StepForm, name: str, where: str, observation: Any
) -> None:
    try:
        seen = form.observe(observation)
        fits = seen.shape == form.shape and (seen.dtype.names or seen.dtype.kind in "fiub")
    except (ValueError, KeyError, TypeError, IndexError):
        fits = False
    if not fits:
        raise UserError(
            f"environment {name}: {where} gave {_described(observation)} as observation, but its "
            f"observation_space is {env.observation_space}; make them the same"
        )


def _of_ogbench(env: gym.Env[Any, Any]) -> bool:
    return env.spec is not None and is_ogbench(env.spec.entry_point)


def _look_for_goals(env: gym.Env[Any, Any], inner: Any, name: str, info: Mapping[str, Any]) -> None:
    """Say so where episodes have goals that only `info` names, and not always the same."""
    seen = env.observation_space
    if isinstance(seen, gym.spaces.Dict) and "desired_goal" in seen.spaces:
        return
    for key in GOALS:
        if key in info:
            told = [inner.reset(seed=seed)[1].get(key) for seed in GOAL_SEEDS]
            if any(not np.array_equal(told[0], other) for other in told[1:]):
                say_once(
                    f"decision-seq: environment {name} tells each episode's goal in `info` alone "
                    f"(`{key}`), which agents do not see: they act blind to it"
                    + (f"; write `ogbench-goals?task={name}`" if _of_ogbench(env) else "")
                )


def _described(value: Any) -> str:
    """What something is, for messages."""
    if isinstance(value, tuple):
        return f"{len(value)} values ({', '.join(type(one).__name__ for one in value)})"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    return f"{type(value).__name__} {value!r:.40}"
