"""Behaviour policies: the file format, the numpy forward pass and the embedded actors."""

import itertools
import weakref
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from decision_seq.behaviours.actors import (
    POLICY_DIRECTORY,
    MLPPolicy,
    embedded_policies,
    embedded_tiers,
)
from decision_seq.behaviours.tiers import behaviour_for
from decision_seq.cli.listing import LISTINGS
from decision_seq.data.store import open_store
from decision_seq.data.tools import collect as collecting
from decision_seq.data.tools.check import examine
from decision_seq.data.tools.collect import collect
from decision_seq.envs.reference_scores import normalized_score
from decision_seq.envs.registry import make
from decision_seq.errors import UserError

OBS_SIZE, ACTION_SIZE, HIDDEN = 5, 3, 16
TIERS = embedded_tiers()
TIER_IDS = [f"{env}-{tier}" for env, tier, _ in TIERS]


def random_policy(activation: str = "tanh", squash: str = "clip") -> MLPPolicy:
    rng = np.random.default_rng(0)
    sizes = [OBS_SIZE, HIDDEN, HIDDEN, ACTION_SIZE]
    return MLPPolicy(
        obs_mean=rng.normal(size=OBS_SIZE).astype(np.float32),
        obs_std=rng.uniform(0.5, 2.0, OBS_SIZE).astype(np.float32),
        log_std=rng.normal(-1.0, 0.3, ACTION_SIZE).astype(np.float32),
        weights=tuple(
            rng.normal(0, 0.3, (after, before)).astype(np.float32)
            for before, after in itertools.pairwise(sizes)
        ),
        biases=tuple(rng.normal(0, 0.1, size).astype(np.float32) for size in sizes[1:]),
        activation=activation,
        squash=squash,
        obs_clip=2.0,
    )


def random_obs(batch: int) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 3, (batch, OBS_SIZE))


def torch_mean(policy: MLPPolicy, obs: np.ndarray) -> torch.Tensor:
    activation = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[policy.activation]
    modules: list[torch.nn.Module] = []
    for weight, bias in zip(policy.weights, policy.biases, strict=True):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
        modules += [layer, activation()]
    normalised = (torch.tensor(obs) - torch.tensor(policy.obs_mean)) / torch.tensor(policy.obs_std)
    clipped = normalised.clamp(-policy.obs_clip, policy.obs_clip).float()
    with torch.no_grad():
        return torch.nn.Sequential(*modules[:-1])(clipped)


def test_every_promised_tier_is_there() -> None:
    promised = {
        (env, tier)
        for env in ("hopper", "halfcheetah", "walker2d")
        for tier in ("medium", "expert")
    } | {("hopper", "replay"), ("walker2d", "replay"), ("halfcheetah", "replay")}
    assert {(env, tier) for env, tier, _ in TIERS} == promised


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("squash", ["clip", "tanh"])
def test_forward_equals_torch(activation: str, squash: str) -> None:
    policy, obs = random_policy(activation, squash), random_obs(64)
    squash_torch = {"clip": lambda x: x.clamp(-1, 1), "tanh": torch.tanh}[squash]
    mean = torch_mean(policy, obs)

    actions = policy.act(obs, np.random.default_rng(7), deterministic=True)
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions, squash_torch(mean), atol=1e-5)

    noise = np.random.default_rng(7).standard_normal(mean.shape, dtype=np.float32)
    noisy = mean + torch.tensor(policy.log_std).exp() * torch.tensor(noise)
    actions = policy.act(obs, np.random.default_rng(7))
    np.testing.assert_allclose(actions, squash_torch(noisy), atol=1e-5)


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    policy = random_policy("relu", "tanh")
    path = tmp_path / "policy.safetensors"
    policy.save(path, {"tier": "medium"})
    loaded = MLPPolicy.load(path)

    for name in ("activation", "squash", "obs_clip"):
        assert getattr(loaded, name) == getattr(policy, name)
    obs = random_obs(8)
    np.testing.assert_array_equal(
        loaded.act(obs, np.random.default_rng(0)), policy.act(obs, np.random.default_rng(0))
    )
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["tier"] == "medium"
    assert list(tmp_path.iterdir()) == [path]  # no temporary file stays behind


def test_errors_name_the_problem(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\(4, 6\), expected \[B, 5\]"):
        random_policy().act(np.zeros((4, OBS_SIZE + 1)), np.random.default_rng(0))
    with pytest.raises(UserError, match="hopper-medium"):
        embedded_policies("hopper", "novice")
    with pytest.raises(UserError, match="hopper-medium"):
        embedded_policies("cartpole", "medium")
    other = tmp_path / "other.safetensors"
    save_file({"x": np.zeros(1)}, other)
    with pytest.raises(UserError, match="obs_mean"):
        MLPPolicy.load(other)


@pytest.mark.parametrize(("env_name", "tier", "metadata"), TIERS, ids=TIER_IDS)
def test_embedded_metadata(env_name: str, tier: str, metadata: dict[str, str]) -> None:
    assert set(metadata) >= {
        *("env_id", "tier", "activation", "squash", "obs_clip", "algorithm", "command", "seed"),
        *("train_steps", "mean_return", "std_return", "normalized_score", "noise"),
        *("deterministic_mean_return", "eval_episodes", "eval_seed", "versions"),
    }
    assert metadata["tier"] == tier
    assert metadata["env_id"].lower().startswith(env_name)

    score = float(metadata["normalized_score"])
    paths = sorted(POLICY_DIRECTORY.glob(f"{env_name}-{tier}*.safetensors"))
    assert len(paths) == (5 if tier == "replay" else 1)
    own = []
    for path in paths:
        with safe_open(path, framework="numpy") as file:
            own.append(normalized_score(metadata["env_id"], float(file.metadata()["mean_return"])))
    assert score == pytest.approx(np.mean(own), abs=0.02)
    scores = {(env, name): float(m["normalized_score"]) for env, name, m in TIERS}
    if tier == "medium":
        assert 30 <= score <= 65
    elif tier == "expert":
        assert score > scores[env_name, "medium"]
    else:  # of several stages before medium
        assert own[0] < score < scores[env_name, "medium"] and own[0] < 0.5 * max(own)
    assert scores["hopper", "expert"] >= 90

    assert all(path.stat().st_size < 350_000 for path in paths)


@pytest.mark.parametrize(("env_name", "tier", "metadata"), TIERS, ids=TIER_IDS)
def test_embedded_policy_reaches_half_its_recorded_return(
    env_name: str, tier: str, metadata: dict[str, str]
) -> None:
    policy = embedded_policies(env_name, tier)[-1]
    env = gym.make(metadata["env_id"])
    rng = np.random.default_rng(0)
    returns = np.zeros(2)
    for episode in range(len(returns)):
        obs, _ = env.reset(seed=episode)
        ended = False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(policy.act(obs[None], rng)[0])
            returns[episode] += float(reward)
            ended = terminated or truncated
    env.close()
    assert returns.mean() >= float(metadata["mean_return"]) / 2


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "point-run", "hopper"])
def test_random_actions_are_collected_in_any_environment(env: str) -> None:
    """Uniform over the space, the same from the same seed, and believed by `data check`."""
    behaviour, provenance = behaviour_for(env, "random", None)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        collect(env, behaviour, 300, f"own/{name}-v0", seed, provenance)
    a, b, c = (open_store([f"own/{name}-v0"]) for name in "abc")
    assert a.hash == b.hash != c.hash
    assert examine(["own/a-v0"]).findings == []
    made = make(env)
    low, high = getattr(made.action_space, "low", 0), getattr(made.action_space, "high", 1)
    spread = (a.actions.astype(float) - low) / (high - low)
    assert spread.mean() == pytest.approx(0.5, abs=0.06)
    assert spread.std() == pytest.approx(0.5 if a.discrete else 12**-0.5, abs=0.03)
    made.close()


def test_episodes_of_replay_are_by_policies_of_every_stage() -> None:
    behaviour, provenance = behaviour_for("hopper", "replay", None)
    assert provenance["behaviour"] == "decision-seq hopper-replay"
    for name in "ab":
        collect("hopper", behaviour, 6_000, f"own/{name}-v0", 0, provenance)
    a, b = (open_store([f"own/{name}-v0"]) for name in "ab")
    assert a.hash == b.hash
    medium = float(next(m for e, t, m in TIERS if (e, t) == ("hopper", "medium"))["mean_return"])
    returns = a.episode_returns / medium
    assert (returns < 0.3).any() and ((returns > 0.3) & (returns < 0.6)).any()
    assert (returns > 0.6).any()


def test_all_that_can_be_collected_is_listed() -> None:
    with pytest.raises(UserError, match="'best'; there is: expert, medium, replay, random;"):
        behaviour_for("hopper", "best", None)
    with pytest.raises(UserError, match="'best'; there is: random, medium, expert;"):
        behaviour_for("pong", "best", None)
    with pytest.raises(
        UserError, match=r"'medium'; there is: random; .* tiers` shows those of other"
    ):
        behaviour_for("CartPole-v1", "medium", None)
    lines = [line.split()[:2] for line in LISTINGS["tiers"]()]
    for row in ("hopper medium", "pong random", "breakout expert", "(any) random"):
        assert row.split() in lines


def test_one_episode_at_a_time_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of all episodes need not fit into memory."""
    one, earlier, held = collecting._episode, [], []

    def episode(*arguments: Any) -> dict[str, Any]:
        held.append(sum(array() is not None for array in earlier))
        made = one(*arguments)
        earlier.append(weakref.ref(made["observations"]))
        return made

    monkeypatch.setattr(collecting, "_episode", episode)
    behaviour, provenance = behaviour_for("point-run", "mixed", None)
    summary = collect("point-run", behaviour, 500, "own/held-v0", 0, provenance)
    assert summary["episodes"] == len(held) > 5 and max(held) <= 1
    assert open_store(["own/held-v0"]).episodes == len(held)
