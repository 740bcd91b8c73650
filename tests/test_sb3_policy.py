"""Stable-Baselines3 models are read exactly, and never by running their pickles."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from decision_seq.behaviours.sb3_policy import load_sb3
from decision_seq.errors import UserError

S, A = 5, 2
SHARED = Path(__file__).parents[2] / "shared" / "policies"


def mlp(activation: type[nn.Module], out: int | None) -> nn.Sequential:
    layers = [nn.Linear(S, 8), activation(), nn.Linear(8, 6), activation()]
    return nn.Sequential(*layers, *([nn.Linear(6, out)] if out else []))


def save(path: Path, state: dict[str, torch.Tensor], data: dict | None = None) -> Path:
    """A zip in Stable-Baselines3's layout."""
    weights = io.BytesIO()
    torch.save(state, weights)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps(data or {"policy_kwargs": {}}))
        archive.writestr("policy.pth", weights.getvalue())
    return path


def prefixed(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_on_policy_actor(activation: type[nn.Module], tmp_path: Path) -> None:
    trunk, head, log_std = mlp(activation, None), nn.Linear(6, A), torch.tensor([-1.0, 0.5])
    state = prefixed("mlp_extractor.policy_net", trunk) | prefixed("action_net", head)
    kwargs = {"activation_fn": str(activation)} if activation is nn.ReLU else {}
    path = save(tmp_path / "m.zip", state | {"log_std": log_std}, {"policy_kwargs": kwargs})
    policy = load_sb3(path)
    x = torch.randn(7, S)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        expected = head(trunk(x)).clamp(-1, 1).numpy()
    np.testing.assert_allclose(policy.act(x.numpy(), rng, deterministic=True), expected, atol=1e-6)
    np.testing.assert_allclose(policy.noise_log_std(np.zeros((1, 6), np.float32)), log_std.numpy())


def test_max_entropy_actor_has_noise_that_depends_on_the_state(tmp_path: Path) -> None:
    trunk, mean, log_std = mlp(nn.ReLU, None), nn.Linear(6, A), nn.Linear(6, A)
    state = prefixed("actor.latent_pi", trunk) | prefixed("actor.mu", mean)
    policy = load_sb3(save(tmp_path / "m.zip", state | prefixed("actor.log_std", log_std)))
    x = torch.randn(7, S)
    noise = np.random.default_rng(3).standard_normal((7, A), dtype=np.float32)
    with torch.no_grad():
        features = trunk(x)
        raw = mean(features) + log_std(features).exp() * torch.from_numpy(noise)
    acted = policy.act(x.numpy(), np.random.default_rng(3))
    np.testing.assert_allclose(acted, raw.tanh().numpy(), atol=1e-6)


def test_deterministic_actor(tmp_path: Path) -> None:
    actor = nn.Sequential(*mlp(nn.ReLU, A), nn.Tanh())
    policy = load_sb3(save(tmp_path / "m.zip", prefixed("actor.mu", actor)))
    x = torch.randn(7, S)
    with torch.no_grad():
        expected = actor(x).numpy()
    np.testing.assert_allclose(policy.act(x.numpy(), np.random.default_rng(0)), expected, atol=1e-6)


class RunningMeanStd:
    """Pickled under a foreign name, as Stable-Baselines3's is."""

    def __init__(self, mean: np.ndarray, var: np.ndarray) -> None:
        self.mean, self.var, self.count = mean, var, 10.0


class VecNormalize:
    """Likewise."""

    def __init__(self, rms: RunningMeanStd) -> None:
        self.obs_rms, self.clip_obs, self.epsilon, self.venv = rms, 10.0, 1e-8, None


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_vecnormalize_statistics_are_applied(protocol: int, tmp_path: Path) -> None:
    trunk, head = mlp(nn.Tanh, None), nn.Linear(6, A)
    state = prefixed("mlp_extractor.policy_net", trunk) | prefixed("action_net", head)
    path = save(tmp_path / "m.zip", state | {"log_std": torch.zeros(A)})
    mean, var = np.arange(S, dtype=np.float64), np.full(S, 4.0)
    content = pickle.dumps(VecNormalize(RunningMeanStd(mean, var)), protocol=protocol)
    (tmp_path / "m.vecnormalize.pkl").write_bytes(content)
    policy = load_sb3(path)
    np.testing.assert_allclose(policy.obs_mean, mean)
    np.testing.assert_allclose(policy.obs_std, 2.0)
    assert policy.obs_clip == 10.0


class Malicious:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("pwned"),))


def test_a_malicious_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = prefixed("actor.mu", mlp(nn.ReLU, A))
    path = save(tmp_path / "m.zip", state)
    (tmp_path / "m.vecnormalize.pkl").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match=r"m\.vecnormalize\.pkl: is not a VecNormalize file"):
        load_sb3(path)
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("data", "{}")
        archive.writestr("policy.pth", pickle.dumps(Malicious()))
    with pytest.raises(UserError, match="is not a Stable-Baselines3 model"):
        load_sb3(tmp_path / "evil.zip")
    assert not (tmp_path / "pwned").exists()


def test_what_is_not_an_mlp_policy_is_one_sentence(tmp_path: Path) -> None:
    images = save(
        tmp_path / "cnn.zip", {"features_extractor.cnn.0.weight": torch.zeros(1, 1, 3, 3)}
    )
    (tmp_path / "text.zip").write_text("hello")
    for path, word in (
        (images, "no plain MLP actor"),
        (tmp_path / "text.zip", "is not a Stable-Baselines3 model"),
        (tmp_path / "none.zip", "no such file"),
    ):
        with pytest.raises(UserError, match=word) as error:
            load_sb3(path)
        assert path.name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif(
    not SHARED.is_dir(), reason="no collection of trained policies beside this checkout"
)
@pytest.mark.parametrize("name", ["ppo", "trpo", "tqc"])
def test_published_hopper_policies_still_hop(name: str) -> None:
    from decision_seq.envs.registry import make

    policy, env = load_sb3(SHARED / name / "Hopper-v3.zip"), make("hopper")
    observation, _ = env.reset(seed=0)
    total, ended = 0.0, False
    while not ended:
        action = policy.act(observation[None], np.random.default_rng(0), deterministic=True)[0]
        observation, reward, terminated, truncated, _ = env.step(action)
        total, ended = total + float(reward), terminated or truncated
    assert total > 1500
