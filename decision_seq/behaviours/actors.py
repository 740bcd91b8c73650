"""Behaviour policies: the small MLP actors that collected the embedded datasets.

``scripts/train_behaviour_policies.py`` trained them. They run on numpy alone, so that collecting
a dataset needs no reinforcement-learning library.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from decision_seq.errors import UserError
from decision_seq.files import atomic_file

FloatArray = NDArray[np.float32]
POLICY_DIRECTORY = Path(__file__).parent / "policies"
_ACTIVATIONS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
}


@dataclass(frozen=True)
class MLPPolicy:
    """A Gaussian MLP policy with a state-independent standard deviation.

    The action is ``squash(mean(observation) + exp(log_std) * noise)``, clipped to [-1, 1].

    Attributes:
        obs_mean, obs_std: ``[S]``, normalise the observation.
        log_std: ``[A]``, logarithm of the exploration noise before squashing.
        weights: one ``[out, in]`` matrix for each layer, the last one giving the mean action.
        biases: one ``[out]`` vector for each layer.
        activation: ``"tanh"`` or ``"relu"``, between layers.
        squash: ``"clip"`` for no squashing but the clip, ``"tanh"`` for a squashed Gaussian.
        obs_clip: bound on the magnitude of a normalised observation.
    """

    obs_mean: FloatArray
    obs_std: FloatArray
    log_std: FloatArray
    weights: tuple[FloatArray, ...]
    biases: tuple[FloatArray, ...]
    activation: str
    squash: str
    obs_clip: float

    def act(
        self, obs: ArrayLike, rng: np.random.Generator, deterministic: bool = False
    ) -> FloatArray:
        """Act on a batch of observations.

        Args:
            obs: ``[B, S]`` raw (not normalised) observations.
            rng: source of the exploration noise; not used when ``deterministic``.
            deterministic: return the squashed mean, without noise.

        Returns:
            ``[B, A]`` float32 actions in [-1, 1].

        Raises:
            UserError: ``obs`` is not of shape ``[B, S]``.
        """
        raw = np.asarray(obs)
        if raw.ndim != 2 or raw.shape[1] != len(self.obs_mean):
            raise UserError(f"obs has shape {raw.shape}, expected [B, {len(self.obs_mean)}]")
        normalised = (raw - self.obs_mean) / self.obs_std
        x = np.clip(normalised, -self.obs_clip, self.obs_clip).astype(np.float32)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = _ACTIVATIONS[self.activation](x @ weight.T + bias)
        action = x @ self.weights[-1].T + self.biases[-1]
        if not deterministic:
            noise = rng.standard_normal(action.shape, dtype=np.float32)
            action = action + np.exp(self.noise_log_std(x)) * noise
        if self.squash == "tanh":
            action = np.tanh(action)
        return np.clip(action, -1.0, 1.0)

    def noise_log_std(self, features: FloatArray) -> FloatArray:
        """Log standard deviation of the noise for features ``[B, H]``: the same everywhere."""
        return self.log_std

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
        """Write the policy to a safetensors file, replacing ``path`` atomically.

        Args:
            path: the file to write.
            metadata: where the policy comes from; its own settings (``activation``, ``squash``,
                ``obs_clip``) are added.
        """
        tensors = {"obs_mean": self.obs_mean, "obs_std": self.obs_std, "log_std": self.log_std}
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            tensors[f"layers.{i}.weight"] = weight
            tensors[f"layers.{i}.bias"] = bias
        own = {"activation": self.activation, "squash": self.squash, "obs_clip": str(self.obs_clip)}
        # safetensors writes the raw buffer, so a transposed view would be stored wrongly.
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        with atomic_file(Path(path)) as temporary:
            save_file(contiguous, temporary, {**metadata, **own})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "MLPPolicy":
        """Read a policy that ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: the file lacks a part of a behaviour policy.
        """
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        depth = sum(name.endswith(".weight") for name in tensors)
        try:
            return cls(
                obs_mean=tensors["obs_mean"],
                obs_std=tensors["obs_std"],
                log_std=tensors["log_std"],
                weights=tuple(tensors[f"layers.{i}.weight"] for i in range(depth)),
                biases=tuple(tensors[f"layers.{i}.bias"] for i in range(depth)),
                activation=metadata["activation"],
                squash=metadata["squash"],
                obs_clip=float(metadata["obs_clip"]),
            )
        except KeyError as error:
            raise UserError(f"{path} is not a behaviour policy: it lacks {error}") from error


def embedded_tiers() -> list[tuple[str, str, dict[str, str]]]:
    """List the embedded tiers as ``(env, tier, metadata)``, sorted by env and tier.

    The metadata of a tier of several policies are the last one's, with the mean of their scores.
    """
    tiers = []
    for (env_name, tier), paths in _files().items():
        metadata = []
        for path in paths:
            with safe_open(path, framework="numpy") as file:
                metadata.append(file.metadata())
        score = np.mean([float(one["normalized_score"]) for one in metadata])
        tiers.append((env_name, tier, metadata[-1] | {"normalized_score": f"{score:.2f}"}))
    return tiers


def embedded_policies(env_name: str, tier: str) -> tuple[MLPPolicy, ...]:
    """Load an embedded tier: one policy, or those of ``replay`` in the order of their training.

    Raises:
        UserError: no policy is embedded under that environment and tier.
    """
    files = _files()
    if (env_name, tier) not in files:
        names = ", ".join(f"{env}-{name}" for env, name in files)
        raise UserError(f"no behaviour policy {env_name}-{tier} is embedded; there are: {names}.")
    return tuple(MLPPolicy.load(path) for path in files[env_name, tier])


def _files() -> dict[tuple[str, str], list[Path]]:
    """By environment and tier: hopper-medium.safetensors, or hopper-replay-1.safetensors and on."""
    files: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(POLICY_DIRECTORY.glob("*.safetensors")):
        env_name, tier, *_ = path.stem.split("-")
        files.setdefault((env_name, tier), []).append(path)
    return files
