"""Agents: causality down to a_t itself, padding, what they learn from, checkpoints that act."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_episodes, write_npz
from small_agents import (
    AGENTS,
    A,
    K,
    S,
    every,
    every_backbone,
    every_pair,
    make,
    predict,
    random_batch,
    roll,
)

from decision_seq.agents import AgentConfig, AgentSpec, SequenceAgent, load_agent, save_agent
from decision_seq.agents.behaviour_cloning import BehaviourCloningConfig
from decision_seq.agents.max_return import MaxReturnConfig
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.backbones import BackboneConfig
from decision_seq.backbones.mamba import STARTS, Mamba
from decision_seq.data.store import open_store
from decision_seq.errors import UserError
from decision_seq.ops.dispatch import BACKENDS


@every_pair
@pytest.mark.parametrize("t", [0, 2, K - 1])
def test_a_prediction_sees_neither_its_own_action_nor_anything_later(
    kind: str, config: type[AgentConfig], t: int
) -> None:
    agent, batch = make(kind, config), random_batch()
    before = predict(agent, batch)[:, t]
    changed = dataclasses.replace(
        batch,
        observations=batch.observations.clone(),
        actions=batch.actions.clone(),
        returns_to_go=batch.returns_to_go.clone(),
    )
    changed.actions[:, t:] = -changed.actions[:, t:]
    changed.observations[:, t + 1 :] += 1
    changed.returns_to_go[:, t + 1 :] += 1
    torch.testing.assert_close(predict(agent, changed)[:, t], before, rtol=0, atol=1e-6)
    changed.observations[:, t] += 1  # and it does see the observation it acts on
    assert (predict(agent, changed)[:, t] - before).abs().max() > 1e-4


def test_at_the_start_a_token_is_what_it_stands_for() -> None:
    agent, batch = make("mamba", timestep_init="zero"), random_batch()
    values = agent.preprocess(batch.observations, batch.actions, batch.returns_to_go)
    later = batch.timesteps + 3
    here = agent.embedding(values, batch.timesteps)
    assert torch.equal(agent.embedding(values, later), here)
    published = make("mamba", timestep_init="published").embedding
    apart = published(values, later) - published(values, batch.timesteps)
    assert apart.abs().mean() > 0.1


def test_without_a_timestep_embedding_nothing_depends_on_the_timestep() -> None:
    agent, batch = make("mamba", timestep_init="none"), random_batch()
    assert not any("timestep" in name for name, _ in agent.named_parameters())
    later = dataclasses.replace(batch, timesteps=batch.timesteps + 3)
    assert torch.equal(predict(agent, later), predict(agent, batch))


@every_backbone
def test_padding_changes_neither_predictions_nor_loss(kind: str) -> None:
    agent, batch = make(kind), random_batch(lengths=[2, K, 4])
    noisy = dataclasses.replace(
        batch, observations=batch.observations.clone(), actions=batch.actions.clone()
    )
    noisy.observations[~batch.mask] = 100.0
    noisy.actions[~batch.mask] = 1.0
    difference = (predict(agent, noisy) - predict(agent, batch))[batch.mask]
    assert difference.abs().max() < 1e-6
    torch.testing.assert_close(agent.loss(noisy), agent.loss(batch))
    rows = [
        dataclasses.replace(
            batch, **{f.name: getattr(batch, f.name)[i : i + 1] for f in dataclasses.fields(batch)}
        )
        for i in range(3)
    ]
    total = sum(agent.loss(row) * row.mask.sum() for row in rows)
    torch.testing.assert_close(total / batch.mask.sum(), agent.loss(batch))


@every("discrete")
def test_every_parameter_gets_a_gradient(
    kind: str, config: type[AgentConfig], discrete: bool
) -> None:
    agent = make(kind, config, discrete)
    agent.loss(random_batch(discrete=discrete)).backward()
    for name, parameter in agent.named_parameters():
        if kind == "pointwise" and name.startswith(
            ("embedding.embed.action", "embedding.embed.return")
        ):
            continue  # nothing reads them
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("config", AGENTS)
def test_dt_is_in_range_once_an_agent_is_built(config: type[AgentConfig]) -> None:
    agent = config().agent(config(), AgentSpec((S,), A, False, 20))
    mixers = [m for m in agent.modules() if isinstance(m, Mamba)]
    assert len(mixers) == 3
    for mixer in mixers:
        dt = F.softplus(mixer.dt_proj.bias)
        least, most, _ = STARTS["mamba"]
        assert dt.min() >= least * 0.999 and dt.max() <= most * 1.001


def test_timesteps_beyond_the_longest_episode_share_its_embedding() -> None:
    embedding = make("mamba").embedding
    values = {
        "return_to_go": torch.ones(1, 2),
        "observation": torch.ones(1, 2, S),
        "action": torch.ones(1, 2, A),
    }
    late = embedding(values, torch.tensor([[20, 900]])).unflatten(1, (2, 3))
    assert torch.equal(late[:, 0], late[:, 1])


def test_discrete_actions_are_indices_and_learned() -> None:
    agent = make("mamba", discrete=True)
    actions = roll(agent, "stream", 4)
    assert actions.dtype == np.int64 and actions.min() >= 0 and actions.max() < A
    batch = random_batch(discrete=True, lengths=[2, K, 4])
    logits = predict(agent, batch)
    wanted = F.cross_entropy(logits[batch.mask], batch.actions[batch.mask])
    torch.testing.assert_close(agent.loss(batch), wanted)


def test_training_takes_the_loss_that_was_asked_for_and_validation_the_squared_error() -> None:
    agent, batch = make("mamba", loss="l1"), random_batch(lengths=[2, K, 4])
    apart = (predict(agent, batch) - batch.actions)[batch.mask]
    torch.testing.assert_close(agent.loss(batch), apart.square().mean())
    torch.testing.assert_close(agent.train().loss(batch), apart.abs().mean())
    torch.testing.assert_close(make("mamba").train().loss(batch), apart.square().mean())


@pytest.mark.parametrize(("loss", "wanted"), [("mse", 0.4), ("l1", 0.8)])
def test_the_squared_error_learns_the_mean_and_the_absolute_one_the_median(
    loss: str, wanted: float
) -> None:
    agent, batch = make("pointwise", loss=loss, tokens=("observation",),
                        config=BehaviourCloningConfig).train(), random_batch(4)  # fmt: skip
    done = torch.tensor([0.8, 0.8, 0.8, -0.8])[:, None, None].expand(4, K, A)
    batch = dataclasses.replace(batch, observations=torch.zeros(4, K, S), actions=done)
    optimizer = torch.optim.Adam(agent.parameters(), 3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        agent.loss(batch).backward()
        optimizer.step()
    torch.testing.assert_close(predict(agent, batch).mean().item(), wanted, atol=0.03, rtol=0)


def test_statistics_come_from_the_data(tmp_path: Path) -> None:
    episodes = random_episodes([30, 20], width=S, action_dim=A)
    episodes.actions[:, 1] *= 4.0
    store = open_store([str(write_npz(tmp_path / "a.npz", episodes))])
    agent = SequenceAgent.for_dataset(ReturnConditionedConfig(), store)
    np.testing.assert_allclose(
        agent.observation_mean.numpy(), episodes.observations.mean(0), atol=1e-5
    )
    largest = np.abs(episodes.actions[:, 1]).max()
    np.testing.assert_allclose(agent.action_scale.numpy(), [1, largest, 1], rtol=1e-6)
    assert agent.spec == AgentSpec((S,), A, False, max_timestep=29, env="Hopper-v5")
    assert np.abs(roll(agent.eval(), "stream", 3))[..., 1].max() <= largest


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("attention", "torch"),
        ("mamba", "c"),
        pytest.param("mamba", "torch", marks=pytest.mark.slow),  # test_ops compiles its scan
    ],
)
def test_a_training_loss_compiles_as_one_graph(
    kind: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := BACKENDS[path].unusable():
        pytest.skip(reason)
    monkeypatch.setenv("DECISION_SEQ_SCAN", path)
    backbone = BackboneConfig.registry[kind](width=16, layers=1, dropout=0.3)
    agent, batch = make(kind, backbone=backbone).train(), random_batch()
    torch._dynamo.reset()
    compiled = torch.compile(agent.loss, backend="aot_eager", fullgraph=True)
    results = []
    for loss in (agent.loss, compiled):
        torch.manual_seed(0)  # of the dropout masks
        agent.zero_grad()
        value = loss(batch)
        value.backward()
        grads = [p.grad for p in agent.parameters() if p.grad is not None]
        results.append([value.detach(), *(grad.clone() for grad in grads)])
    for eager, own in zip(*results, strict=True):
        torch.testing.assert_close(own, eager, rtol=1e-5, atol=1e-6)


@every_pair
def test_a_checkpoint_acts_by_itself(kind: str, config: type[AgentConfig], tmp_path: Path) -> None:
    agent = make(kind, config)
    save_agent(agent, tmp_path / "agent.safetensors")
    loaded = load_agent(tmp_path / "agent.safetensors")
    assert loaded.config == agent.config and loaded.spec == agent.spec
    assert np.array_equal(roll(loaded, "stream", 6), roll(agent, "stream", 6))


def test_equal_agents_are_equal_files(tmp_path: Path) -> None:
    """So that `sha256sum` tells whether two runs gave the same."""
    agent, paths = make("mamba"), [tmp_path / f"{m}.safetensors" for m in range(6)]
    for path in paths:
        save_agent(agent, path)
    assert len({path.read_bytes() for path in paths}) == 1
    assert load_agent(paths[0]).config == agent.config


@pytest.mark.parametrize("keep", [0, 4, 0.5, 0.99])
def test_a_checkpoint_cut_in_half_is_one_sentence(keep: float, tmp_path: Path) -> None:
    path = tmp_path / "agent.safetensors"
    save_agent(make("mamba"), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(UserError, match="cut off") as error:
        load_agent(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_misuse_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"temperature is 1\.0, but the data's actions are"):
        make("mamba", temperature=1.0)
    with pytest.raises(UserError, match=r"loss is l1, but the data's actions are discrete"):
        make("mamba", discrete=True, loss="l1")


@pytest.mark.parametrize(
    ("config", "tokens", "words"),
    [
        (ReturnConditionedConfig, ("observation", "action"), r"takes \[return_to_go, observation"),
        (ReturnConditionedConfig, ("action", "return_to_go", "observation"), "return_conditioned"),
        (BehaviourCloningConfig, ("return_to_go", "observation"), r"\[observation, action\] or"),
        (BehaviourCloningConfig, ("observation", "reward"), r"\[observation, reward\]; behav"),
        (MaxReturnConfig, ("observation",), "max_return takes"),
    ],
)
def test_a_layout_the_agent_cannot_use_is_one_sentence(
    config: type[AgentConfig], tokens: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        make("mamba", config, tokens=tokens)
    assert "\n" not in str(error.value)
