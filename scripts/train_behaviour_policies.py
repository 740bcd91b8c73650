"""Train the behaviour policies that collect the embedded datasets, and export them.

    python scripts/train_behaviour_policies.py hopper --seed 0

trains one actor with stable-baselines3 and takes snapshots of it on the way. Each snapshot is
measured acting as it will when it collects data: with exploration noise. One snapshot becomes the
``medium`` tier and the best one becomes the ``expert`` tier. Both are measured again on seeds that
played no part in the choice, so that the recorded figures are free of selection bias.

Needs the ``mujoco`` extra of gymnasium, stable-baselines3 and sb3-contrib.
"""

import argparse
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import stable_baselines3
import torch
from sb3_contrib import TRPO
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from decision_seq.envs.behaviour import POLICY_DIRECTORY, MLPPolicy


@dataclass(frozen=True)
class Recipe:
    """How one environment's actor is trained, and the noise it collects data with."""

    env_id: str
    reference_returns: tuple[float, float]  # D4RL's random and expert returns: scores 0 and 100
    algorithm: type[BaseAlgorithm]
    train_steps: int
    snapshot_every: int
    n_envs: int
    settings: dict[str, Any]
    # Exploration noise while collecting. None keeps the learned one, which SAC does not have: its
    # noise depends on the state.
    noise_std: float | None = None

    def score(self, mean_return: float) -> float:
        low, high = self.reference_returns
        return 100 * (mean_return - low) / (high - low)


TRPO_SETTINGS = {
    "n_steps": 1024,
    "batch_size": 128,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "cg_damping": 0.1,
    "cg_max_steps": 25,
    "n_critic_updates": 20,
    "learning_rate": 1e-3,
    "sub_sampling_factor": 1,
}

RECIPES = {
    "hopper": Recipe(
        env_id="Hopper-v5",
        reference_returns=(-20.272305, 3234.3),
        algorithm=TRPO,
        train_steps=1_000_000,
        snapshot_every=25_000,
        n_envs=2,
        settings=TRPO_SETTINGS,
    ),
    "walker2d": Recipe(
        env_id="Walker2d-v5",
        reference_returns=(1.629008, 4592.3),
        algorithm=TRPO,
        train_steps=1_000_000,
        snapshot_every=25_000,
        n_envs=2,
        settings=TRPO_SETTINGS,
    ),
    "halfcheetah": Recipe(
        env_id="HalfCheetah-v5",
        reference_returns=(-280.178953, 12135.0),
        algorithm=SAC,
        train_steps=400_000,
        snapshot_every=10_000,
        n_envs=1,
        settings={"learning_starts": 10_000},
        noise_std=0.15,
    ),
}

MEDIUM_RANGE = (30.0, 65.0)
SNAPSHOT_EPISODES, SNAPSHOT_SEED = 10, 10_000
FINAL_EPISODES, FINAL_SEED = 100, 20_000


def export_actor(model: BaseAlgorithm, noise_std: float | None) -> MLPPolicy:
    """Copy the actor of a stable-baselines3 model, with its observation normalisation."""
    policy: Any = model.policy
    if isinstance(model, SAC):
        modules = [*policy.actor.latent_pi, policy.actor.mu]
        log_std = np.full(policy.actor.mu.out_features, np.log(noise_std), np.float32)
    else:
        modules = [*policy.mlp_extractor.policy_net, policy.action_net]
        log_std = policy.log_std.detach().numpy().copy()
    layers = [module for module in modules if isinstance(module, torch.nn.Linear)]
    activation = next(type(m).__name__.lower() for m in modules if m not in layers)

    obs_mean = np.zeros(layers[0].in_features, np.float32)
    obs_std = np.ones_like(obs_mean)
    obs_clip = np.inf
    normaliser = model.get_vec_normalize_env()
    if normaliser is not None:
        obs_mean = normaliser.obs_rms.mean.astype(np.float32)
        obs_std = np.sqrt(normaliser.obs_rms.var + normaliser.epsilon).astype(np.float32)
        obs_clip = normaliser.clip_obs
    return MLPPolicy(
        obs_mean=obs_mean,
        obs_std=obs_std,
        log_std=log_std,
        weights=tuple(layer.weight.detach().numpy().copy() for layer in layers),
        biases=tuple(layer.bias.detach().numpy().copy() for layer in layers),
        activation=activation,
        squash="tanh" if isinstance(model, SAC) else "clip",
        obs_clip=float(obs_clip),
    )


def measure(
    policy: MLPPolicy, env_id: str, episodes: int, seed: int, deterministic: bool = False
) -> np.ndarray:
    """Return the returns of ``episodes`` episodes, as ``[episodes]``."""
    env = gymnasium.make(env_id)
    rng = np.random.default_rng(seed)
    returns = np.zeros(episodes)
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed + episode)
        ended = False
        while not ended:
            action = policy.act(obs[None], rng, deterministic)[0]
            obs, reward, terminated, truncated, _ = env.step(action)
            returns[episode] += float(reward)
            ended = terminated or truncated
    env.close()
    return returns


class SnapshotCallback(BaseCallback):
    """Writes and measures the actor every ``recipe.snapshot_every`` environment steps."""

    def __init__(self, recipe: Recipe, directory: Path) -> None:
        super().__init__()
        self.recipe = recipe
        self.directory = directory

    def _on_step(self) -> bool:
        if self.num_timesteps % self.recipe.snapshot_every < self.recipe.n_envs:
            policy = export_actor(self.model, self.recipe.noise_std)
            returns = measure(policy, self.recipe.env_id, SNAPSHOT_EPISODES, SNAPSHOT_SEED)
            metadata = {
                "train_steps": str(self.num_timesteps),
                "mean_return": f"{returns.mean():.2f}",
                "std_return": f"{returns.std():.2f}",
            }
            policy.save(self.directory / f"{self.num_timesteps:08d}.safetensors", metadata)
            print(metadata, f"score {self.recipe.score(returns.mean()):.1f}", flush=True)
        return True


def train(recipe: Recipe, seed: int, directory: Path) -> None:
    """Train one actor and leave its snapshots in ``directory``."""
    env = make_vec_env(recipe.env_id, n_envs=recipe.n_envs, seed=seed)
    if recipe.algorithm is not SAC:
        env = VecNormalize(env, gamma=recipe.settings["gamma"])
    model = recipe.algorithm("MlpPolicy", env, seed=seed, device="cpu", **recipe.settings)
    model.learn(recipe.train_steps, callback=SnapshotCallback(recipe, directory))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--snapshots", type=Path, default=Path("runs/behaviour"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    directory = args.snapshots / f"{args.env}-seed{args.seed}"
    directory.mkdir(parents=True, exist_ok=True)
    train(RECIPES[args.env], args.seed, directory)


if __name__ == "__main__":
    main()
