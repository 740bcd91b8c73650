"""Policies whose layout we do not read ourselves (recurrent, gSDE, CrossQ, discrete actions...),
rolled out by Stable-Baselines3 and sb3-contrib, which run code that such a file may hold."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from decision_seq.behaviours.sb3_policy import normalization, read_zip
from decision_seq.envs.atari import FRAME_STACK
from decision_seq.errors import UserError

# where a policy class lives -> the algorithm that saved it
ALGORITHMS = {
    "common": "PPO",  # A2C and TRPO save the same policy
    "dqn": "DQN",
    "sac": "SAC",
    "td3": "TD3",
    "ars": "ARS",
    "crossq": "CrossQ",
    "maskable": "MaskablePPO",
    "qrdqn": "QRDQN",
    "recurrent": "RecurrentPPO",
    "tqc": "TQC",
}


def library_behaviour(
    path: Path, env: gym.Env[Any, Any], reason: str
) -> Callable[[np.random.Generator], Callable[[np.ndarray], np.ndarray]]:
    """The policy in `path` as a behaviour: called with a generator at the start of an episode.

    Args:
        path: model .zip, with VecNormalize statistics beside it.
        env: the environment it is to act in.
        reason: why we do not read it ourselves, said before its code may run.

    Raises:
        UserError: the extra `policies` is not installed, or the library cannot load the file.
    """
    try:
        import sb3_contrib
        import stable_baselines3
    except ImportError:
        raise UserError(
            f"{reason}; install the extra, `pip install 'decision-seq[policies]'`, and "
            "Stable-Baselines3 rolls it out"
        ) from None
    print(f"{reason}; Stable-Baselines3 loads it, and runs code it may hold", file=sys.stderr)
    policy_class = read_zip(path)[1].get("policy_class") or {}
    key = str(policy_class.get("__module__", "common")).split(".")[-2:][0]
    name = ALGORITHMS.get(key, "PPO")
    algorithm = getattr(stable_baselines3, name, None) or getattr(sb3_contrib, name)
    shape = env.observation_space.shape or ()
    frames = len(shape) == 2  # these libraries' agents see stacks of them, as ours do
    seen_space = spaces.Box(0, 255, (FRAME_STACK, *shape), np.uint8)
    unpicklable = {  # of no use for acting, and what old files cannot restore
        "observation_space": seen_space if frames else env.observation_space,
        "action_space": env.action_space,
        "learning_rate": 0.0,
        "lr_schedule": lambda _: 0.0,
        "clip_range": lambda _: 0.0,
    }
    try:
        model = algorithm.load(path, device="cpu", custom_objects=unpicklable)
    except Exception as error:  # another library's loader fails in its own ways
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"{path}: Stable-Baselines3 cannot load it as {name} for {env.spec and env.spec.id} "
            f"({type(error).__name__}: {first}); choose the environment it was trained in"
        ) from None
    mean, std, clip = normalization(path, int(np.prod(shape)))

    def start(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
        model.set_random_seed(int(rng.integers(2**31)))
        if getattr(model, "use_sde", False):
            model.policy.reset_noise()
        memory: dict[str, Any] = {"state": None, "first": np.ones(1, bool)}
        stack = deque([np.zeros(shape, np.uint8)] * FRAME_STACK, FRAME_STACK)

        def act(observation: np.ndarray) -> np.ndarray:
            if frames:
                stack.append(observation)
                seen = np.stack(stack)
            else:
                seen = np.clip((observation - mean) / std, -clip, clip).astype(np.float32)
            action, memory["state"] = model.predict(
                seen, memory["state"], memory["first"], deterministic=False
            )
            memory["first"] = np.zeros(1, bool)
            return action

        return act

    return start
