"""Q and V: right where they are known exactly, resumable, and what they add to a loss."""

from __future__ import annotations

import copy
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_episodes, toy_episodes, write_npz
from small_agents import A, S, every, make, predict, random_batch

from decision_seq.agents import AgentConfig, load_agent
from decision_seq.agents.presets import PRESETS
from decision_seq.agents.spec import GuidanceConfig
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.errors import UserError
from decision_seq.run_config import RunConfig, run_config
from decision_seq.run_folder import agent_path
from decision_seq.training.loop import train
from decision_seq.values import critic, fit
from decision_seq.values.critic import Critic, ValuesConfig
from decision_seq.values.fit import discounted_returns, ensure_values, read_diagnostics
from decision_seq.values.guide import LARGEST, Guide, guide_for
from decision_seq.values.transitions import Transitions

CPU = torch.device("cpu")
LONG, GAMMA, EXPECTILE = 4, 0.9, 0.7  # states of a chain


def chain(tmp_path: Path, images: bool = False) -> EpisodeStore:
    """States in a row. Action 0 ends the episode with reward 0.2, action 1 goes on to the next
    state, and from the last one ends it with reward 1. From every state the data do both alike, and
    steps after one that went on are cut off: they are truncated, which ends nothing. A state is a
    vector, or a picture of a column."""
    observations, actions, rewards, terminated, truncated = [], [], [], [], []

    def add(state: int, action: int, reward: float, end: bool, cut: bool = False) -> None:
        vector = np.eye(LONG, dtype=np.float32)[state]
        picture = np.tile((200 * vector.repeat(3)).astype(np.uint8), (12, 1))
        observations.append(picture if images else vector)
        actions.append(action)
        rewards.append(reward)
        terminated.append(end)
        truncated.append(cut)

    for _ in range(20):
        for state in range(LONG):
            add(state, 0, 0.2, True)
            last = state == LONG - 1
            add(state, 1, float(last), last)
            if not last:
                add(state + 1, 0, -7.0, False, cut=True)  # never to be learned from
    path = tmp_path / "chain.npz"
    np.savez(
        path,
        observations=np.array(observations),
        actions=np.array(actions, np.int64),
        rewards=np.array(rewards, np.float32),
        terminations=np.array(terminated),
        truncations=np.array(truncated),
    )
    return open_store([str(path)])


def exact() -> tuple[np.ndarray, np.ndarray]:
    """Q [LONG, 2] and V [LONG] of the chain: the expectile of two values that are as likely."""
    q, v = np.full((LONG, 2), 0.2), np.zeros(LONG)
    for state in reversed(range(LONG)):
        q[state, 1] = 1.0 if state == LONG - 1 else GAMMA * v[state + 1]
        v[state] = EXPECTILE * q[state].max() + (1 - EXPECTILE) * q[state].min()
    return q, v


@pytest.mark.parametrize("images", [False, True])
def test_a_chain_has_the_values_that_it_has(tmp_path: Path, images: bool) -> None:
    store = chain(tmp_path, images)
    config = ValuesConfig(
        steps=200 if images else 1500, batch_size=64 if images else 128,
        learning_rate=1e-3 if images else 3e-3, discount=GAMMA, expectile=EXPECTILE,
        target_rate=0.05, width=32, layer_norm=False,
    )  # fmt: skip
    near = 0.15 if images else 0.05  # few steps of a network that is large for the task
    fitted = ensure_values(tmp_path, store, config, 0, torch.ones(()))
    table = Transitions.of(store, torch.ones(()))
    where = store.observations[:, 0, ::3] if images else store.observations  # [N, LONG]
    first = torch.from_numpy(where.argmax(0))
    states = fitted.features(table.observe(first))
    q, v = exact()
    found = torch.stack([fitted.q(states, torch.full((LONG,), a)).amin(0) for a in (0, 1)], 1)
    np.testing.assert_allclose(found, q, atol=near)
    np.testing.assert_allclose(fitted.value(states), v, atol=near)
    logits = torch.tensor([[0.0, 0.0], [9.0, -9.0], [-9.0, 9.0], [0.0, 0.0]])
    mean = (torch.from_numpy(q).float() * logits.softmax(-1)).sum(-1)
    torch.testing.assert_close(fitted.q.expected(states, logits).amin(0), mean, atol=near, rtol=0)
    found = read_diagnostics(tmp_path)
    assert found["td_error"] < near and abs(found["v_mean"] - v.mean()) < 2 * near
    assert found["correlation"] > 0.9 and abs(found["overestimation"]) < 2 * near
    there = where[table.rows].argmax(-1)
    advantage = q[there, store.actions[table.rows]] - v[there]
    rms = np.sqrt(np.square(advantage).mean())
    np.testing.assert_allclose(found["advantage_rms"], rms, atol=near / 2)


def test_a_step_that_was_cut_off_is_no_transition(tmp_path: Path) -> None:
    store = chain(tmp_path)
    table = Transitions.of(store, torch.ones(()))
    assert len(table.rows) == 20 * 2 * LONG and (store.rewards[table.rows] >= 0).all()
    s, a, r, ended, following = table.draw(np.random.default_rng(0), 500)
    on = (ended == 0).numpy()
    assert (a[on] == 1).all() and not r[on].any()
    assert torch.equal(following[on].argmax(1), s[on].argmax(1) + 1)
    episodes = open_store([str(write_npz(tmp_path / "a.npz", random_episodes([3, 5])))])
    by_hand = [sum(0.9**i * r for i, r in enumerate(episodes.rewards[t:3])) for t in range(3)]
    np.testing.assert_allclose(discounted_returns(episodes, 0.9)[:3], by_hand, rtol=1e-5)


def test_a_truncated_episode_is_learned_to_its_end(tmp_path: Path) -> None:
    """Two states, episodes of one step: action 1 of the first earns 0.5 and is cut off in the
    second. All others end."""
    states, actions = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    known, ended = np.eye(2, dtype=np.float32), np.array([True, False, True, True])
    columns = {
        "observations": known[states],
        "actions": actions,
        "rewards": np.array([0.2, 0.5, 0.2, 1.0], np.float32),
        "terminations": ended,
        "truncations": ~ended,
    }
    path, scale = tmp_path / "two.npz", torch.ones(())
    np.savez(path, **columns)
    without = open_store([str(path)])
    assert Transitions.of(without, scale).rows.tolist() == [0, 2, 3]
    np.savez(path, **columns, final_observations=known[1 - states])
    store = open_store([str(path)])
    assert store.hash == without.hash
    for data in (without, store):
        ensure_values(tmp_path, data, ValuesConfig(steps=1, width=32), 0, scale)
    assert len([*(fit.cache_dir() / "values").iterdir()]) == 2  # the critic of each
    table = Transitions.of(store, scale)
    seen = table.observe(torch.arange(4))
    assert torch.equal(table.observe(table.following), seen.flip(0))  # standardised alike
    config = ValuesConfig(
        steps=600, batch_size=32, learning_rate=3e-3, discount=GAMMA, expectile=EXPECTILE,
        target_rate=0.1, width=32, layer_norm=False,
    )  # fmt: skip
    fitted = ensure_values(tmp_path, store, config, 0, scale)
    v = EXPECTILE * 1.0 + (1 - EXPECTILE) * 0.2
    found = fitted.q(seen, torch.from_numpy(actions)).amin(0)
    np.testing.assert_allclose(found, [0.2, 0.5 + GAMMA * v, 0.2, 1.0], atol=0.05)


def test_fitting_continues_bit_for_bit_and_is_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store([str(write_npz(tmp_path / "a.npz", toy_episodes(20)))])
    config = ValuesConfig(steps=30, batch_size=16, width=16)
    monkeypatch.setattr(fit, "SAVE_EVERY", 10)
    steps, step = [], critic.Learner.step

    def count(self: critic.Learner, batch: Any) -> Any:
        if len(steps) == killed:
            raise KeyboardInterrupt
        if len(steps) == told:
            signal.raise_signal(signal.SIGINT)
        steps.append(1)
        return step(self, batch)

    monkeypatch.setattr(critic.Learner, "step", count)
    killed, told = 25, 28
    with pytest.raises(KeyboardInterrupt):
        ensure_values(tmp_path, store, config, 0, torch.ones(1))
    assert not (tmp_path / "values.safetensors").exists()
    killed = 1000
    with pytest.raises(KeyboardInterrupt, match="24 steps of values are kept"):
        ensure_values(tmp_path, store, config, 0, torch.ones(1))
    told = 34
    with pytest.raises(KeyboardInterrupt, match="all steps of values are kept"):
        ensure_values(tmp_path, store, config, 0, torch.ones(1))
    resumed = ensure_values(tmp_path, store, config, 0, torch.ones(1)).state_dict()
    assert len(steps) == 25 + 10  # from step 20 on, and from 24
    with monkeypatch.context() as patched:  # what is in the cache asks nothing of the data
        patched.setattr(Transitions, "of", None)
        again = ensure_values(tmp_path, store, config, 0, torch.ones(1)).state_dict()
    assert len(steps) == 35
    monkeypatch.setattr(fit, "cache_dir", lambda: tmp_path / "other")
    torch.manual_seed(99)
    whole = ensure_values(tmp_path, store, config, 0, torch.ones(1)).state_dict()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]) and torch.equal(tensor, again[name]), name
    other = ensure_values(tmp_path, store, config, 1, torch.ones(1)).state_dict()
    assert not torch.equal(other["v.layers.0.weight"], whole["v.layers.0.weight"])


def guide_of(config: AgentConfig, discrete: bool = False) -> Guide:
    torch.manual_seed(1)
    fitted = Critic(S, A, discrete, ValuesConfig(width=16)).requires_grad_(False)
    return Guide(
        fitted, config, magnitude=0.5, advantage_rms=0.25, lowest_return=-0.5, best_return=2.0
    )


@every("discrete")
def test_every_agent_is_guided_by_the_formula(
    kind: str, config: type[AgentConfig], discrete: bool
) -> None:
    """In training its loss is the plain agent's less lambda Q of what it predicts."""
    guidance = GuidanceConfig(q_scale=0.02, q_min=0.3, return_star=1.1)
    agent = make(kind, config, discrete, guidance=guidance).train()
    batch = random_batch(3, discrete)
    torch.manual_seed(5)
    plain = agent.per_step_loss(batch)
    agent.guide = guide = guide_of(agent.config, discrete)
    torch.manual_seed(5)
    guided = agent.per_step_loss(batch)
    states = (batch.observations - agent.observation_mean) / agent.observation_std
    q = guide.critic.q
    if config.kind != "max_return":
        predicted = predict(agent, batch)
        each = q.expected(states, predicted) if discrete else q(states, predicted)
        strength = (100 * 0.02 * (1.1 - (batch.episode_returns + 0.5) / 2)).clamp(min=0.3) / 0.5
        expected = plain - strength[:, None] * each.amin(0)
        torch.testing.assert_close(guided, expected)
    assert not torch.equal(guided, plain)
    agent.loss(batch).backward()
    assert agent.action_head.weight.grad is not None
    assert all(p.grad is None for p in guide.critic.parameters())
    agent.eval()
    unguided = copy.deepcopy(agent)
    unguided.guide = None
    assert torch.equal(agent.loss(batch), unguided.loss(batch))
    assert not any("guide" in name for name in agent.state_dict())


def test_the_gradient_is_that_of_finite_differences() -> None:
    agent = make("pointwise", guidance=GuidanceConfig(q_scale=0.03))
    guide, batch = guide_of(agent.config), random_batch()
    values = agent.preprocess(batch.observations, batch.actions, batch.returns_to_go)
    start = torch.rand(3, 5, A, requires_grad=True)
    (one,) = torch.autograd.grad(guide(torch.zeros(3, 5), start, values, batch).sum(), start)

    guide.critic.double()
    states, shortfall = (
        values["observation"].double(),
        1.1 - (batch.episode_returns.double() + 0.5) / 2,
    )

    def term(predicted: torch.Tensor) -> torch.Tensor:
        strength = (3.0 * shortfall).clamp(min=0.0) / 0.5
        return (-strength[:, None] * guide.critic.q(states, predicted).amin(0)).sum()

    precise = start.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(term, (precise,))
    (other,) = torch.autograd.grad(term(precise), precise)
    torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=1e-3)


def test_advantages_weigh_the_error() -> None:
    agent, batch = make("pointwise", advantage_weight=3.0).train(), random_batch()
    plain = agent.per_step_loss(batch)
    agent.guide = guide = guide_of(agent.config)
    values = agent.preprocess(batch.observations, batch.actions, batch.returns_to_go)
    states, actions = values["observation"], values["action"]
    advantage = guide.critic.q(states, actions).amin(0) - guide.critic.value(states)
    weight = (3.0 * advantage / 0.25).exp().clamp(max=LARGEST)
    torch.testing.assert_close(agent.per_step_loss(batch), plain * weight)
    assert weight.max() > 10 * weight.min()


def config_of(toy_file: Path, **agent: Any) -> RunConfig:
    fields = {
        "env": "point-run", "data": {"sources": [str(toy_file)]},
        "agent": {"kind": "return_conditioned", "context_length": 4, "returns": {"scale": 20},
                  "backbone": {"kind": "mamba", "width": 16, "layers": 1}} | agent,
        "train": {"steps": 12, "batch_size": 8, "learning_rate": 3e-3, "warmup_steps": 2,
                  "ema": 0.9},
        "values": {"steps": 40, "batch_size": 16, "width": 16},
    }  # fmt: skip
    return run_config(fields, {}, "test")


def test_returns_below_zero_count_from_the_lowest(tmp_path: Path) -> None:
    episodes = toy_episodes(6)
    episodes.rewards -= 30
    file = write_npz(tmp_path / "below.npz", episodes)
    config, store = config_of(file, guidance={}), open_store([str(file)])
    agent = config.agent.agent.for_dataset(config.agent, store)
    guide = guide_for(agent, store, tmp_path, ValuesConfig(steps=1, width=8), 0)
    assert guide is not None and store.episode_returns.max() < 0
    scaled = store.episode_returns[[store.episode_returns.argmin(), store.episode_returns.argmax()]]
    reached = (scaled / config.agent.returns.scale - guide.lowest_return) / guide.best_return
    np.testing.assert_allclose(reached, [0, 1], atol=1e-6)


def test_no_guidance_is_bit_for_bit_the_plain_agent(toy_file: Path, tmp_path: Path) -> None:
    weights = {}
    for name, agent in {
        "plain": {},
        "zero": {"guidance": {"q_scale": 0.0}},
        "guided": {"guidance": {"q_scale": 0.5}},
        "weighed": {"advantage_weight": 3.0},
    }.items():
        train(config_of(toy_file, **agent), tmp_path / name, CPU)
        weights[name] = load_agent(agent_path(tmp_path / name)).state_dict()
    same = {
        name: all(torch.equal(weights["plain"][k], v) for k, v in own.items())
        for name, own in weights.items()
    }
    assert same == {"plain": True, "zero": True, "guided": False, "weighed": False}
    assert not (tmp_path / "plain" / "values.json").exists()
    assert read_diagnostics(tmp_path / "guided")["q_magnitude"] > 0


def test_presets_ask_for_guidance() -> None:
    for name in ("q-decision-mamba", "q-decision-transformer"):
        fields = {"env": "point-run", "data": {"sources": ["a.npz"]}, "agent": {"preset": name}}
        config = run_config(fields, {}, "test")
        assert config.name == name and config.agent.guidance == GuidanceConfig()
        weaker = {"preset": name, "guidance": {"q_scale": 0.01}}
        assert run_config(fields | {"agent": weaker}, {}, "test").name == name
        assert PRESETS[name]["backbone"] == PRESETS[name.removeprefix("q-")]["backbone"]
    with pytest.raises(UserError, match="expectile is 2"):
        ValuesConfig(expectile=2.0)
