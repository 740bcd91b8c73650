"""The max-return agent: its expectile, what it sees, and that it acts without a target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_agents import KINDS, A, K, S, make, random_batch

from decision_seq.agents import AgentSpec, SequenceAgent
from decision_seq.agents.max_return import MaxReturn, MaxReturnConfig, expectile_errors
from decision_seq.backbones import BackboneConfig
from decision_seq.data.store import open_store
from decision_seq.data.transforms import ReturnSpec
from decision_seq.data.windows import WindowSampler
from decision_seq.errors import UserError
from decision_seq.eval.rollout.episodes import rollout
from decision_seq.policy import Policy
from decision_seq.settings import Context

every_backbone = pytest.mark.parametrize("kind", [k for k in KINDS if k != "pointwise"])


def agent_of(kind: str, **fields: object) -> MaxReturn:
    agent = make(kind, MaxReturnConfig, **fields)
    assert isinstance(agent, MaxReturn)
    return agent


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=9),
    expectile=st.floats(0.01, 0.99),
)
def test_the_loss_is_least_at_the_expectile(values: list[float], expectile: float) -> None:
    """The expectile e balances the shortfalls: tau E[(x - e)+] = (1 - tau) E[(e - x)+]."""
    x = torch.tensor(values, dtype=torch.float64)
    low, high = x.min(), x.max()
    for _ in range(80):  # bisection on the balance
        e = (low + high) / 2
        surplus = (
            expectile * (x - e).clamp(min=0).mean() - (1 - expectile) * (e - x).clamp(min=0).mean()
        )
        low, high = (e, high) if surplus > 0 else (low, e)
    best = expectile_errors(e, x, expectile).mean()
    for other in (e - 0.1, e + 0.1):
        assert expectile_errors(other, x, expectile).mean() > best
    median = expectile_errors(x.mean(), x, 0.5)
    torch.testing.assert_close(median, 0.5 * (x - x.mean()).square())


def returns_predicted(agent: MaxReturn, batch: object) -> torch.Tensor:
    values = agent.preprocess(batch.observations, batch.actions, batch.returns_to_go)  # type: ignore[attr-defined]
    features = agent.backbone(agent.embedding(values, batch.timesteps))  # type: ignore[attr-defined]
    return agent.predict_return(features[:, :: len(agent.config.tokens)])  # [B, K]


@every_backbone
@pytest.mark.parametrize("t", [0, 2, K - 1])
def test_a_predicted_return_does_not_see_its_own(kind: str, t: int) -> None:
    agent, batch = agent_of(kind), random_batch()
    before = returns_predicted(agent, batch)[:, t]
    batch.returns_to_go[:, t:] += 1
    batch.actions[:, t:] *= -1
    torch.testing.assert_close(returns_predicted(agent, batch)[:, t], before, rtol=0, atol=1e-6)
    batch.observations[:, t] += 1
    assert (returns_predicted(agent, batch)[:, t] - before).abs().max() > 1e-4


@every_backbone
def test_the_loss_is_the_actions_and_the_returns(kind: str) -> None:
    agent, batch = agent_of(kind, expectile=0.8), random_batch(lengths=[2, K, 4])
    values = agent.preprocess(batch.observations, batch.actions, batch.returns_to_go)
    action = (agent(values, batch.timesteps) - batch.actions).square().mean(-1)[batch.mask].mean()
    short = (batch.returns_to_go - returns_predicted(agent, batch))[batch.mask]
    best = torch.where(short > 0, 0.8 * short**2, 0.2 * short**2).mean()
    torch.testing.assert_close(agent.loss(batch), action + best)


@every_backbone
@pytest.mark.parametrize("context", ["window", "stream"])
def test_acting_asks_for_the_return_it_predicts(kind: str, context: Context) -> None:
    """Replaying what it asked for through the training windows gives the same, step by step."""
    agent = agent_of(kind)
    generator = torch.Generator().manual_seed(4)
    observations = torch.randn(2, K, S, generator=generator)
    head, asked_for = agent.predict_return, []
    agent.predict_return = lambda x: asked_for.append(head(x)) or asked_for[-1]  # type: ignore
    policy = Policy(agent, context, lanes=2)
    acted = [policy.act(observations[:, t].numpy(), torch.rand(2).numpy()) for t in range(K)]
    actions, asked = torch.from_numpy(np.stack(acted, axis=1)), torch.stack(asked_for, dim=1)
    agent.predict_return = head  # type: ignore[method-assign]
    batch = random_batch(2)
    batch.observations, batch.actions, batch.returns_to_go = observations, actions, asked
    batch.timesteps = torch.arange(K).expand(2, K)
    values = agent.preprocess(observations, actions, asked)
    torch.testing.assert_close(agent(values, batch.timesteps), actions, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(returns_predicted(agent, batch), asked, rtol=1e-4, atol=1e-5)
    assert asked.std() > 1e-4


def test_it_learns_to_do_better_than_the_data_without_being_told(toy_file: Path) -> None:
    """The data run at one random speed an episode; the best speed is the fastest seen."""
    store = open_store([str(toy_file)])
    torch.manual_seed(0)
    backbone = BackboneConfig.registry["attention"](width=32, layers=1, dropout=0.0)
    config = MaxReturnConfig(context_length=5, returns=ReturnSpec(scale=20.0), backbone=backbone)
    agent = SequenceAgent.for_dataset(config, store)
    sampler = WindowSampler(store, torch.arange(60).numpy(), 5, config.returns, seed=0)
    optimizer = torch.optim.AdamW(agent.parameters(), lr=5e-3)
    for step in range(150):
        loss = agent.loss(sampler.batch(step, 64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rows = rollout(agent.eval(), "point-run", [], 10, 0, "stream")
    assert [row.target for row in rows] == [None] * 10
    mean = sum(row.episode_return for row in rows) / 10
    assert mean > 16 > store.episode_returns.mean() + 4  # the fastest run 20


def test_what_it_cannot_use_is_one_sentence() -> None:
    with pytest.raises(UserError, match="never see the observation"):
        make("pointwise", MaxReturnConfig)
    with pytest.raises(UserError, match="expectile is 1"):
        MaxReturnConfig(expectile=1.0)
    with pytest.raises(UserError, match=r"max_return takes \[observation, return_to_go, action\]"):
        MaxReturnConfig(tokens=("observation", "action"))
    assert not MaxReturnConfig().follows_target
    assert isinstance(
        MaxReturnConfig().agent(MaxReturnConfig(), AgentSpec((S,), A, False, 9)), MaxReturn
    )
