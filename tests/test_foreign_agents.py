"""Other people's Decision Transformers and Decision Mambas act as they did: transformers' real
classes, and the official codes' names."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decision_seq.agents.decision_transformer import load_decision_transformer
from decision_seq.errors import UserError
from decision_seq.policy import Policy

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
S, A, K, STEPS = 5, 3, 6, 14
MEAN, STD = np.linspace(-1, 1, S), np.linspace(0.5, 2, S)


def published(**changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"state_dim": S, "act_dim": A, "hidden_size": 32, "n_layer": 2, "max_ep_len": 40}
    config = transformers.DecisionTransformerConfig(**(sizes | {"n_head": 2} | changes))
    model = transformers.DecisionTransformerModel(config).eval()
    with torch.no_grad():  # so that every part matters
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@torch.no_grad()
def rolled(model: Any, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """Actions [STEPS, A] by the published loop: the last K steps, the return-to-go counted down."""
    states = torch.from_numpy((observations - MEAN) / STD).float()
    actions, to_go = torch.zeros(STEPS, A), torch.zeros(STEPS)
    for t in range(STEPS):
        to_go[t] = 3.6 if t == 0 else to_go[t - 1] - float(rewards[t]) / 1000
        own = slice(max(0, t - K + 1), t + 1)
        predicted = model(
            states=states[None, own],
            actions=actions[None, own],
            rewards=None,
            returns_to_go=to_go[None, own, None],
            timesteps=torch.arange(STEPS)[None, own],
        ).action_preds
        actions[t] = predicted[0, -1]
    return actions.numpy()


def acted(agent: Any, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    policy = Policy(agent, "window", 3600.0)
    pairs = zip(observations, rewards, strict=True)
    return np.stack([policy.act(seen, reward) for seen, reward in pairs])


def inputs() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.standard_normal((STEPS, S)), 100 * draw.random(STEPS)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_folders_of_transformers(activation: str, tmp_path: Path) -> None:
    model = published(activation_function=activation)
    model.save_pretrained(tmp_path)
    agent = load_decision_transformer(tmp_path, MEAN, STD, context_length=K)
    np.testing.assert_allclose(acted(agent, *inputs()), rolled(model, *inputs()), atol=1e-5)


def test_state_dicts_of_the_official_code(tmp_path: Path) -> None:
    """Its names are the older ones of the same model, without positions."""
    model = published()
    with torch.no_grad():
        model.encoder.wpe.weight.zero_()
    named = {n.replace("encoder.", "transformer."): t for n, t in model.state_dict().items()}
    torch.save({n: t for n, t in named.items() if "wpe" not in n}, tmp_path / "dt.pt")
    agent = load_decision_transformer(tmp_path / "dt.pt", MEAN, STD, context_length=K, heads=2)
    np.testing.assert_allclose(acted(agent, *inputs()), rolled(model, *inputs()), atol=1e-5)


class Layer(torch.nn.Module):
    """A layer of the official Decision Mamba, whose mixer is transformers' own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        config = transformers.MambaConfig(hidden_size=width, state_size=16, use_mambapy=False)
        self.norm_mamba, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.mamba = transformers.models.mamba.modeling_mamba.MambaMixer(config, 0)
        inner, outer = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)
        self.mlp_channels = torch.nn.Sequential(inner, torch.nn.GELU(), outer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mamba(self.norm_mamba(x))
        return x + self.mlp_channels(self.ln_2(x))


class DecisionMamba(torch.nn.Module):
    """With the names of the official code's gym model."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        make = torch.nn.Linear
        self.transformer = torch.nn.Module()
        self.transformer.h = torch.nn.ModuleList([Layer(width), Layer(width)])
        self.transformer.ln_f, self.embed_ln = (torch.nn.LayerNorm(width) for _ in range(2))
        self.embed_timestep = torch.nn.Embedding(40, width)
        self.embed_return, self.embed_state = make(1, width), make(S, width)
        self.embed_action = make(A, width)
        self.predict_action = torch.nn.Sequential(make(width, A), torch.nn.Tanh())

    def forward(
        self, states: Any, actions: Any, rewards: Any, returns_to_go: Any, timesteps: Any
    ) -> Any:
        kinds = [self.embed_return(returns_to_go), self.embed_state(states)]
        kinds.append(self.embed_action(actions))
        tokens = torch.stack([kind + self.embed_timestep(timesteps) for kind in kinds], dim=2)
        x = self.embed_ln(tokens.flatten(1, 2))
        for layer in self.transformer.h:
            x = layer(x)
        return types.SimpleNamespace(
            action_preds=self.predict_action(self.transformer.ln_f(x)[:, 1::3])
        )


def test_state_dicts_of_the_official_decision_mamba(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DecisionMamba().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    torch.save(model.state_dict(), tmp_path / "dm.pt")
    agent = load_decision_transformer(tmp_path / "dm.pt", MEAN, STD, context_length=K)
    np.testing.assert_allclose(acted(agent, *inputs()), rolled(model, *inputs()), atol=1e-5)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give observation_mean"):
        load_decision_transformer(tmp_path)
    with pytest.raises(UserError, match="cannot be read as a Decision Transformer"):
        load_decision_transformer(tmp_path, MEAN, STD)
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="is no Decision Transformer: it lacks"):
        load_decision_transformer(tmp_path / "a.pt", MEAN, STD)
    published(activation_function="gelu_new").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="activation_function is gelu_new"):
        load_decision_transformer(tmp_path, MEAN, STD)
