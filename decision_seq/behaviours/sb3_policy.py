"""Stable-Baselines3 and sb3-contrib policies, read without either and without running a pickle.

A saved model is a zip: `policy.pth` is read with weights_only, `data` is JSON whose plain fields
say the activation, and VecNormalize's pickle goes through a reader that builds numpy arrays only.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.behaviours.actors import FloatArray, MLPPolicy
from decision_seq.errors import UserError
from decision_seq.pickles import load_plain

# where the layers of an actor lie in policy.pth, and how its action is bounded
ON_POLICY = ("mlp_extractor.policy_net.", "action_net", "clip", "tanh")  # PPO, A2C, TRPO
MAX_ENTROPY = ("actor.latent_pi.", "actor.mu", "tanh", "relu")  # SAC, TQC
DETERMINISTIC = ("actor.mu.", None, "tanh", "relu")  # TD3, DDPG
LOG_STD_RANGE = (-20.0, 2.0)  # clip of the state-dependent log std, as SAC trains with


@dataclass(frozen=True)
class StateDependentPolicy(MLPPolicy):
    """A squashed Gaussian whose log standard deviation is a linear read-out, as in SAC."""

    log_std_weight: FloatArray  # [A, H]
    log_std_bias: FloatArray  # [A]

    def noise_log_std(self, features: FloatArray) -> FloatArray:
        """[B, H] -> [B, A]"""
        return np.clip(features @ self.log_std_weight.T + self.log_std_bias, *LOG_STD_RANGE)


class ForeignLayout(UserError):
    """A model file that is whole, but holds another kind of policy than we read ourselves."""


def load_sb3(path: Path) -> MLPPolicy:
    """Read the actor of an MlpPolicy from a model .zip, with VecNormalize statistics beside it.

    Raises:
        UserError: not such a file. ForeignLayout: its policy is none of the MLP actors above.
    """
    state, settings = read_zip(path)
    layout = _layout(path, state)
    prefix, mean_head, squash, default_activation = layout
    weights, biases = _layers(state, prefix)
    if mean_head is not None:
        weights.append(state[f"{mean_head}.weight"])
        biases.append(state[f"{mean_head}.bias"])
    width, actions = weights[0].shape[1], weights[-1].shape[0]
    mean, std, clip = normalization(path, width)
    quiet = np.full(actions, -np.inf, np.float32)  # TD3 and DDPG act without noise
    policy = MLPPolicy(
        obs_mean=mean,
        obs_std=std,
        log_std=state.get("log_std", quiet),
        weights=tuple(weights),
        biases=tuple(biases),
        activation=_activation(path, settings, default_activation),
        squash=squash,
        obs_clip=clip,
    )
    if layout is not MAX_ENTROPY:
        return policy
    fields = {f.name: getattr(policy, f.name) for f in dataclasses.fields(policy)}
    head = (state["actor.log_std.weight"], state["actor.log_std.bias"])
    return StateDependentPolicy(**fields, log_std_weight=head[0], log_std_bias=head[1])


def read_zip(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            weights = io.BytesIO(archive.read("policy.pth"))
            settings = json.loads(archive.read("data"))
        state = torch.load(weights, map_location="cpu", weights_only=True)
        return {name: tensor.numpy() for name, tensor in state.items()}, settings
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the .zip that `model.save` wrote") from None
    except (OSError, KeyError, ValueError, RuntimeError, AttributeError, EOFError,
            zipfile.BadZipFile, pickle.UnpicklingError) as error:  # fmt: skip
        raise UserError(
            f"{path}: is not a Stable-Baselines3 model ({' '.join(str(error).split())}); give the "
            ".zip that `model.save` wrote"
        ) from None


def _layout(path: Path, state: dict[str, np.ndarray]) -> tuple[str, str | None, str, str]:
    needed = {ON_POLICY: "log_std", MAX_ENTROPY: "actor.log_std.weight", DETERMINISTIC: ""}
    plain = not any(name.startswith("lstm") for name in state)
    for layout, noise in needed.items():
        first = state.get(f"{layout[0]}0.weight")
        if plain and first is not None and first.ndim == 2 and (not noise or noise in state):
            if layout is ON_POLICY and state["log_std"].ndim != 1:
                raise ForeignLayout(f"{path}: explores with gSDE")
            return layout
    raise ForeignLayout(
        f"{path}: has no plain MLP actor of PPO, A2C, TRPO, SAC, TQC, TD3 or DDPG (found "
        f"{', '.join(list(state)[:3])}, ...)"
    )


def _layers(state: dict[str, np.ndarray], prefix: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    names = [n for n in state if n.startswith(prefix) and n.endswith(".weight")]
    names.sort(key=lambda name: int(name[len(prefix) :].split(".")[0]))
    return [state[n] for n in names], [state[n[: -len("weight")] + "bias"] for n in names]


def _activation(path: Path, settings: dict[str, Any], default: str) -> str:
    text = str((settings.get("policy_kwargs") or {}).get("activation_fn", default)).lower()
    name = text.rstrip("'>").rpartition(".")[2]
    if name not in ("tanh", "relu"):
        raise ForeignLayout(f"{path}: its activation is {name}, not tanh or relu")
    return name


def normalization(path: Path, width: int) -> tuple[FloatArray, FloatArray, float]:
    """Mean, standard deviation and clip of VecNormalize; the identity if no file lies beside."""
    for file in (path.with_suffix(".vecnormalize.pkl"), path.with_name("vecnormalize.pkl")):
        if not file.exists():
            continue
        try:
            state = load_plain(file.read_bytes(), stand_ins=True).state
            statistics = state["obs_rms"].state
            mean, variance = (np.asarray(statistics[key]) for key in ("mean", "var"))
            std = np.sqrt(variance + state["epsilon"])
            return mean.astype(np.float32), std.astype(np.float32), float(state["clip_obs"])
        except Exception as error:  # a pickle can fail in any way; none of its code has run
            raise UserError(
                f"{file}: is not a VecNormalize file ({type(error).__name__}: {error}); remove it "
                "or save it again"
            ) from None
    return np.zeros(width, np.float32), np.ones(width, np.float32), np.inf
