"""Policies: engines and contexts that agree with training, lanes by themselves, sampled actions."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from small_agents import AGENTS, A, K, S, drawn_steps, every, every_pair, make, roll

from decision_seq.agents import AgentConfig, SequenceAgent
from decision_seq.agents.behaviour_cloning import BehaviourCloningConfig
from decision_seq.agents.max_return import MaxReturn
from decision_seq.data.transforms import ReturnSpec
from decision_seq.policy import Policy
from decision_seq.policy.contexts import CONTEXTS
from decision_seq.policy.policy import ENGINES, EngineName, gumbel_noise
from decision_seq.settings import Context

TARGETS = [6.0, 7.0, 8.0]
every_layout = every("tokens")
both_contexts = pytest.mark.parametrize("context", sorted(CONTEXTS))


def engines(agent: SequenceAgent) -> list[EngineName]:
    """Those that can act for `agent` here."""
    return [name for name, engine in ENGINES.items() if not engine.unusable(agent)]  # type: ignore[misc]


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@every("tokens", "discrete")
@both_contexts
def test_acting_predicts_what_training_does(
    kind: str, config: type[AgentConfig], tokens: tuple[str, ...], context: Context, discrete: bool
) -> None:
    """An episode replayed step by step by every engine, against `agent.forward` on its windows; a
    stream agrees while t < K."""
    agent, steps = make(kind, config, discrete, tokens=tokens), K + 3 if context == "window" else K
    returns: list[np.ndarray] = []
    if isinstance(agent, MaxReturn):  # it asks for the return that it predicts
        head = agent.predict_return
        agent.predict_return = lambda x: returns.append(head(x)) or returns[-1]  # type: ignore
    draw = np.random.default_rng(4)
    observations = draw.standard_normal((1, steps, S), np.float32)
    rewards = draw.random(steps, np.float32)
    actions = (
        draw.integers(0, A, (1, steps)) if discrete else draw.random((1, steps, A), np.float32)
    )
    asked = np.array([[9.0 - rewards[:t].sum() for t in range(steps)]], np.float32) / 10
    for engine in engines(agent):
        returns.clear()
        policy = Policy(agent, context, [9.0], engine=engine)
        for t in range(steps):
            if t:
                policy.action = actions[:, t - 1]
            policy._count(rewards[t - 1])
            predicted = policy.engine.start(policy._inputs(observations[:, t]))()
            policy.timestep += 1
            if returns:
                asked[0, t] = returns[-1].item()
            window = slice(max(0, t - K + 1), t + 1)
            parts = (torch.from_numpy(x[:, window]) for x in (observations, actions, asked))
            with torch.no_grad():
                values = agent.preprocess(*parts)
                expected = agent(values, torch.arange(window.start, t + 1)[None])[:, -1]
            close(predicted, expected)


@every_layout
def test_contexts_agree_within_the_window(
    kind: str, config: type[AgentConfig], tokens: tuple[str, ...]
) -> None:
    agent = make(kind, config, tokens=tokens)
    window, stream = roll(agent, "window", 2 * K), roll(agent, "stream", 2 * K)
    close(stream[:K], window[:K])
    if kind == "pointwise":
        close(stream, window)


@every("discrete")
@both_contexts
def test_engines_agree_over_episodes_that_begin_and_end(
    kind: str, config: type[AgentConfig], context: Context, discrete: bool
) -> None:
    """Three lanes; one begins again, later another, then one is dropped."""
    agent = make(kind, config, discrete)
    agent.action_scale.copy_(agent.action_scale * 2)
    policies = [Policy(agent, context, TARGETS, 3, engine=name) for name in engines(agent)]
    lanes, draw = np.arange(3), np.random.default_rng(5)
    for t, (observation, reward) in enumerate(drawn_steps(4 * K, 3, draw)):
        for policy in policies:
            if t in (4, 2 * K):
                policy.reset([t % 2])
            if t == 3 * K:
                policy.keep(np.array([True, False, True]))
        lanes = np.array([0, 2]) if t == 3 * K else lanes
        actions = [policy.act(observation[lanes], reward[lanes]) for policy in policies]
        for action in actions:
            close(action, actions[0])


@every("tokens", "discrete")
def test_a_lane_acts_as_it_does_among_many(
    kind: str, config: type[AgentConfig], tokens: tuple[str, ...], discrete: bool
) -> None:
    agent = make(kind, config, discrete, tokens=tokens, temperature=float(discrete))
    if not discrete:
        agent.action_scale.copy_(torch.tensor([1.0, 2.0, 0.5]))
    steps = list(drawn_steps(7, 1, np.random.default_rng(8)))

    def run(lanes: int) -> np.ndarray:
        policy = Policy(agent, "stream", 6.0, lanes, np.zeros(lanes, np.int64))
        acted = [policy.act(o.repeat(lanes, 0), r.repeat(lanes)) for o, r in steps]
        return np.stack(acted)[:, :1]

    close(run(1), run(100))


@every_pair
@both_contexts
def test_a_reset_lane_acts_as_new(kind: str, config: type[AgentConfig], context: Context) -> None:
    agent, (steps, lanes) = make(kind, config), (9, 2)
    seen = list(drawn_steps(steps, lanes, np.random.default_rng(5)))
    kept, reset, fresh = (Policy(agent, context, TARGETS[:2], lanes) for _ in range(3))
    for t, step in enumerate(seen):
        if t == 4:
            reset.reset([0])
        a, b = kept.act(*step), reset.act(*step)
        close(b[1], a[1])
        if t >= 4:
            close(b[0], fresh.act(*step)[0])


@every_pair
@both_contexts
def test_lanes_that_are_kept_go_on_as_before(
    kind: str, config: type[AgentConfig], context: Context
) -> None:
    agent, lanes = make(kind, config), [0, 2]
    all_of_them, few = (Policy(agent, context, TARGETS, 3) for _ in range(2))
    for t, (observation, reward) in enumerate(drawn_steps(9, 3, np.random.default_rng(5))):
        expected = all_of_them.act(observation, reward)
        if t < 4:
            close(few.act(observation, reward), expected)
            continue
        if t == 4:
            few.keep(lanes)
        close(few.act(observation[lanes], reward[lanes]), expected[lanes])


@pytest.mark.parametrize("config", AGENTS)
@both_contexts
def test_a_policy_is_a_snapshot(config: type[AgentConfig], context: Context) -> None:
    agent = make("mamba", config)
    agent.train()
    steps = list(drawn_steps(2 * K, 1, np.random.default_rng(0)))
    policies = [Policy(agent, context, 5.0, engine=name) for name in ("auto", "eager")]
    expected = [[policy.act(*step) for step in steps] for policy in policies]
    policies = [Policy(agent, context, 5.0, engine=name) for name in ("auto", "eager")]
    with torch.no_grad():
        for tensor in agent.state_dict().values():
            tensor.add_(1)
    for policy, before in zip(policies, expected, strict=True):
        close([policy.act(*step) for step in steps], before)
    assert agent.training


@both_contexts
def test_a_patched_agent_acts_as_patched(context: Context, capsys: Any) -> None:
    agent = make("mamba")
    plain = roll(agent, context, 3)
    agent.action_head.register_forward_hook(lambda module, inputs, output: output + 1)
    hooked = roll(agent, context, 3)
    assert np.abs(hooked - plain).max() > 0.1 and "hooks or patches" in capsys.readouterr().err
    other = make("mamba")
    other.predict = lambda features: torch.zeros(*features.shape[:-1], A)  # type: ignore
    assert not roll(other, context, 3).any()

    class Still(type(other)):  # type: ignore[misc]
        def predict(self, features: torch.Tensor) -> torch.Tensor:
            return torch.zeros(*features.shape[:-1], A)

    assert not roll(Still(agent.config, agent.spec), context, 3).any()


def test_return_to_go_drops_by_the_reward_unless_delayed() -> None:
    for delayed, expected in ((False, (7.0 - 2.0) / 10), (True, 0.7)):
        agent = make("mamba", returns=ReturnSpec(scale=10.0, delayed=delayed))
        policy = Policy(agent, "stream", 7.0)
        policy.act(np.zeros((1, S)), 2.0)
        assert policy.return_to_go.item() == pytest.approx(0.7)
        policy.act(np.zeros((1, S)), 2.0)
        assert policy.return_to_go.item() == pytest.approx(expected)


def drawn(seeds: list[int], context: Context = "stream", steps: int = 60) -> np.ndarray:
    """Actions [steps, lanes] at temperature 2, every lane meeting the same."""
    agent = make("mamba", BehaviourCloningConfig, discrete=True, temperature=2.0)
    observations = np.random.default_rng(6).standard_normal((steps, 1, S))
    policy = Policy(agent, context, lanes=len(seeds), seed=seeds)
    return np.stack([policy.act(row.repeat(len(seeds), 0)) for row in observations])


def test_sampled_actions_depend_on_their_lane_alone() -> None:
    actions = drawn([3, 8, 3, 5])
    assert np.array_equal(actions, drawn([3, 8, 3, 5]))
    assert np.array_equal(actions[:, 0], actions[:, 2])
    assert np.array_equal(actions[:, 1:2], drawn([8]))
    assert (actions[:, 0] != actions[:, 1]).any() and (actions[:, 1] != actions[:, 3]).any()
    assert np.array_equal(drawn([3], "window", K), actions[:K, :1])

    seeds, timesteps = np.divmod(np.arange(36), 6)
    noise = gumbel_noise(seeds, timesteps, A)
    assert len(np.unique(noise, axis=0)) == 36  # nor shifted in time


def test_sampling_follows_the_softmax() -> None:
    lanes, logits = 4000, np.array([0.3, -0.2, 0.6], np.float32)
    policy = Policy(make("mamba", discrete=True, temperature=0.5), "stream", 0.0, lanes)
    predicted = np.broadcast_to(logits, (lanes, A))
    counts = np.bincount(policy._decode_action(predicted, greedy=False), minlength=A)
    expected = lanes * torch.from_numpy(logits / 0.5).softmax(0).numpy()
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected)).all()
    assert (policy._decode_action(predicted, greedy=True) == 2).all()
    greedy = Policy(make("mamba", discrete=True), "stream", 0.0, lanes)
    assert (greedy._decode_action(predicted, greedy=False) == 2).all()


def test_weights_in_any_layout_are_packed() -> None:
    agent = make("hybrid")
    expected = roll(copy.deepcopy(agent), "stream", K)
    with torch.no_grad():
        for parameter in agent.parameters():
            if parameter.ndim == 2:
                parameter.data = parameter.data.t().contiguous().t()
        agent.observation_std = torch.full((1,), 2.0).expand(S)
    close(roll(agent, "stream", K), expected)
