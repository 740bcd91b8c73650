"""Train the behaviour policies that collect the embedded datasets, and export them.

    python scripts/train_behaviour_policies.py hopper --seed 0

trains one actor and takes snapshots of it on the way. Each snapshot is measured acting as it will
when it collects data: with exploration noise. One snapshot becomes the ``medium`` tier and the
best one becomes the ``expert`` tier. Both are measured again on seeds that played no part in the
choice, so that the recorded figures carry no selection bias. With

    python scripts/train_behaviour_policies.py hopper --replay

it trains for as many steps as the ``medium`` tier took, and the snapshots on the way, evenly
spaced, are the ``replay`` tier: an episode is by one of them. D4RL's medium-replay is what an agent
saw until it was medium. Needs the ``policies`` extra.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import stable_baselines3
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from sb3_contrib import TQC, TRPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from decision_seq.behaviours.actors import POLICY_DIRECTORY, MLPPolicy
from decision_seq.envs.reference_scores import normalized_score
from decision_seq.files import write_text


@dataclass(frozen=True)
class Recipe:
    """How one environment's actor is trained, and the noise it collects data with."""

    env_id: str
    algorithm: type[BaseAlgorithm]
    settings: dict[str, Any]
    n_envs: int
    medium_return: float  # of a score of 40 to 50
    train_steps: int
    snapshot_every: int
    # Exploration noise while collecting: a multiple of TRPO's learned standard deviation, or, for
    # TQC, whose learned one depends on the state, the standard deviation itself.
    noise: float


TRPO_SETTINGS = dict(
    n_steps=1024, batch_size=128, gamma=0.99, gae_lambda=0.95, cg_damping=0.1, cg_max_steps=25,
    n_critic_updates=20, learning_rate=1e-3, sub_sampling_factor=1,
)  # fmt: skip
TQC_SETTINGS = dict(
    learning_rate=7e-4, learning_starts=10_000, train_freq=2, gradient_steps=1,
    top_quantiles_to_drop_per_net=0, policy_kwargs=dict(n_quantiles=10, net_arch=[256, 256]),
)  # fmt: skip

RECIPES = {
    "hopper": Recipe("Hopper-v5", TRPO, TRPO_SETTINGS, 2, 1600, 700_000, 25_000, 0.5),
    "walker2d": Recipe("Walker2d-v5", TRPO, TRPO_SETTINGS, 2, 2300, 1_000_000, 25_000, 0.5),
    "halfcheetah": Recipe("HalfCheetah-v5", TQC, TQC_SETTINGS, 1, 4700, 500_000, 10_000, 0.15),
}

FINALISTS, REPLAYED = 5, 5
# Separate blocks of seeds, so that no figure is measured on the seeds that chose its policy.
SNAPSHOT_EPISODES, SNAPSHOT_SEED = 10, 10_000
FINALIST_EPISODES, FINALIST_SEED = 40, 20_000
REPORT_EPISODES, REPORT_SEED = 100, 30_000

REPORT_PATH = Path(__file__).parents[1] / "docs" / "behaviour-policies.md"
REPORT_INTRODUCTION = """\
# Behaviour policies

The actors that collect the embedded datasets, as `scripts/train_behaviour_policies.py` trained
them on one core (Intel Sapphire Rapids; `replay` and the expert of HalfCheetah: AMD Zen 3, where
the same command gives another medium tier). *Steps* counts the environment steps before the
snapshot. *Return* (mean ± standard deviation) and *score* (D4RL's: 0 is random, 100 its expert)
are those of the policy as it collects data, with exploration noise; *deterministic* is the return
of its mean action. All are over 100 episodes on seeds that did not choose the snapshot. An episode
of a `replay` dataset is by one of the five policies of that tier.
"""


def export_actor(model: BaseAlgorithm, noise: float) -> MLPPolicy:
    """Copy the actor of a stable-baselines3 model, with its observation normalisation."""
    policy: Any = model.policy
    off_policy = isinstance(model, OffPolicyAlgorithm)
    if off_policy:
        modules = [*policy.actor.latent_pi, policy.actor.mu]
        learned_log_std = np.zeros(policy.actor.mu.out_features, np.float32)
    else:
        modules = [*policy.mlp_extractor.policy_net, policy.action_net]
        learned_log_std = policy.log_std.detach().numpy()
    layers = [module for module in modules if isinstance(module, torch.nn.Linear)]

    obs_mean = np.zeros(layers[0].in_features)
    obs_std = np.ones_like(obs_mean)
    obs_clip = np.inf
    normaliser: Any = model.get_vec_normalize_env()
    if normaliser is not None:
        obs_mean, obs_clip = normaliser.obs_rms.mean, normaliser.clip_obs
        obs_std = np.sqrt(normaliser.obs_rms.var + normaliser.epsilon)
    return MLPPolicy(
        obs_mean=obs_mean.astype(np.float32),
        obs_std=obs_std.astype(np.float32),
        log_std=learned_log_std + np.log(noise, dtype=np.float32),
        weights=tuple(layer.weight.detach().numpy().copy() for layer in layers),
        biases=tuple(layer.bias.detach().numpy().copy() for layer in layers),
        activation=type(modules[1]).__name__.lower(),
        squash="tanh" if off_policy else "clip",
        obs_clip=float(obs_clip),
    )


def measure(
    policy: MLPPolicy, env_id: str, episodes: int, seed: int, deterministic: bool = False
) -> NDArray[np.float64]:
    """Run whole episodes and return their undiscounted returns, ``[episodes]``."""
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
            policy = export_actor(self.model, self.recipe.noise)
            returns = measure(policy, self.recipe.env_id, SNAPSHOT_EPISODES, SNAPSHOT_SEED)
            metadata = {
                "train_steps": str(self.num_timesteps),
                "mean_return": f"{returns.mean():.2f}",
                "std_return": f"{returns.std():.2f}",
            }
            policy.save(self.directory / f"{self.num_timesteps:08d}.safetensors", metadata)
            print(metadata, flush=True)
        return True


def train(recipe: Recipe, seed: int, directory: Path) -> list[Path]:
    """Train one actor and leave its snapshots in ``directory``. Returns them in order."""
    env: VecEnv = make_vec_env(recipe.env_id, n_envs=recipe.n_envs, seed=seed)
    if recipe.algorithm is TRPO:
        env = VecNormalize(env, gamma=recipe.settings["gamma"])
    model = recipe.algorithm("MlpPolicy", env, seed=seed, device="cpu", **recipe.settings)
    model.learn(recipe.train_steps, callback=SnapshotCallback(recipe, directory))
    return sorted(directory.glob("*.safetensors"))


def read_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def choose(recipe: Recipe, tier: str, directory: Path) -> Path:
    """Choose a tier's snapshot: make a shortlist on few episodes, then decide on more."""

    def cost(mean: float, std: float) -> float:
        # Medium is a steady gait halfway up: its spread counts as much as the miss of its target.
        return -mean if tier == "expert" else abs(mean - recipe.medium_return) + std

    def first_cost(path: Path) -> float:
        metadata = read_metadata(path)
        return cost(float(metadata["mean_return"]), float(metadata["std_return"]))

    def final_cost(path: Path) -> float:
        returns = measure(MLPPolicy.load(path), recipe.env_id, FINALIST_EPISODES, FINALIST_SEED)
        return cost(returns.mean(), returns.std())

    return min(sorted(directory.glob("*.safetensors"), key=first_cost)[:FINALISTS], key=final_cost)


def replay_recipe(env_name: str) -> Recipe:
    """As long as the medium tier was trained, with ``REPLAYED`` snapshots."""
    steps = int(read_metadata(POLICY_DIRECTORY / f"{env_name}-medium.safetensors")["train_steps"])
    return replace(RECIPES[env_name], train_steps=steps, snapshot_every=steps // REPLAYED)


def export_tier(env_name: str, tier: str, seed: int, snapshot: Path, number: str = "") -> None:
    """Measure a snapshot on fresh seeds and embed it with its provenance."""
    recipe = RECIPES[env_name]
    policy = MLPPolicy.load(snapshot)
    returns = measure(policy, recipe.env_id, REPORT_EPISODES, REPORT_SEED)
    deterministic = measure(policy, recipe.env_id, REPORT_EPISODES, REPORT_SEED, deterministic=True)
    metadata = {
        "env_id": recipe.env_id,
        "tier": tier,
        "algorithm": recipe.algorithm.__name__,
        "command": f"python scripts/train_behaviour_policies.py {env_name} --seed {seed}"
        + " --replay" * (tier == "replay"),
        "seed": str(seed),
        "train_steps": read_metadata(snapshot)["train_steps"],
        "mean_return": f"{returns.mean():.2f}",
        "std_return": f"{returns.std():.2f}",
        "normalized_score": f"{normalized_score(recipe.env_id, returns.mean()):.2f}",
        "deterministic_mean_return": f"{deterministic.mean():.2f}",
        "noise": str(recipe.noise),
        "eval_episodes": str(REPORT_EPISODES),
        "eval_seed": str(REPORT_SEED),
        "versions": f"gymnasium {gymnasium.__version__}, mujoco {mujoco.__version__}, "
        f"stable-baselines3 {stable_baselines3.__version__}",
    }
    print(metadata, flush=True)
    policy.save(POLICY_DIRECTORY / f"{env_name}-{tier}{number}.safetensors", metadata)


def write_report() -> None:
    """Write the documentation page from the metadata of all embedded policies."""
    rows = [
        "| env | tier | algorithm | steps | seed | return | score | deterministic | command |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(POLICY_DIRECTORY.glob("*.safetensors")):
        m, (_, tier, *number) = read_metadata(path), path.stem.split("-")
        spread = f"{float(m['mean_return']):.0f} ± {float(m['std_return']):.0f}"
        cells = [
            m["env_id"],
            " ".join([tier, *number]),
            m["algorithm"],
            f"{int(m['train_steps']):,}",
            m["seed"],
            spread,
        ]
        cells += [m["normalized_score"], m["deterministic_mean_return"], f"`{m['command']}`"]
        rows.append(f"| {' | '.join(cells)} |")
    write_text(REPORT_PATH, REPORT_INTRODUCTION + "\n" + "\n".join(rows) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and export behaviour policies.")
    parser.add_argument("env", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", action="store_true", help="make the replay tier instead")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the networks are tiny; one thread also makes the run repeatable
    kind = f"{args.env}-seed{args.seed}" + "-replay" * args.replay
    directory = Path("runs/behaviour") / kind
    directory.mkdir(parents=True, exist_ok=True)
    if args.replay:
        snapshots = train(replay_recipe(args.env), args.seed, directory)
        for number, snapshot in enumerate(snapshots, 1):
            export_tier(args.env, "replay", args.seed, snapshot, f"-{number}")
    else:
        train(RECIPES[args.env], args.seed, directory)
        for tier in ("medium", "expert"):
            export_tier(args.env, tier, args.seed, choose(RECIPES[args.env], tier, directory))
    write_report()


if __name__ == "__main__":
    main()
