"""Policies in people's own loops: gymnasium, any dtype, Stable-Baselines3's form, run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from small_agents import A, K, S, make

from decision_seq.agents import AgentSpec, SequenceAgent, save_agent
from decision_seq.agents.behaviour_cloning import BehaviourCloningConfig
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.backbones import BackboneConfig
from decision_seq.errors import UserError
from decision_seq.policy import Policy, load_policy
from decision_seq.settings import Context
from decision_seq.spaces import table_of

both_contexts = pytest.mark.parametrize("context", ["window", "stream"])


def pendulum(kind: str = "mamba") -> SequenceAgent:
    torch.manual_seed(0)
    backbone = BackboneConfig.registry[kind](width=16, layers=2)
    config = ReturnConditionedConfig(context_length=4, backbone=backbone)
    agent = config.agent(config, AgentSpec((4,), 1, False, max_timestep=50))
    agent.action_scale.fill_(5)  # of which the environment takes 3
    with torch.no_grad():
        agent.action_head.weight.normal_(std=1.0)
    return agent


@both_contexts
@pytest.mark.parametrize("kind", ["mamba", "lstm"])
def test_single_and_vector_environments_take_the_actions_as_they_are(
    kind: str, context: Context
) -> None:
    """gymnasium gives float64 observations and rewards; actions may be changed in place."""
    agent, env_id = pendulum(kind), "InvertedPendulum-v5"
    single = gym.make(env_id)
    space: Any = single.action_space
    policy = Policy(agent, context, 100.0, action_space=space)
    observation, _ = single.reset(seed=0)
    reward: Any = None
    alone = []
    for _ in range(5):
        action = policy.act(observation, reward)
        assert action.shape == (1,) and space.contains(action)
        alone.append(action.copy())
        observation, reward, *_ = single.step(action)
        action[:] = 99.0
    assert np.abs(alone).max() == 3.0  # clipped, and remembered so
    np.testing.assert_array_equal(np.abs(policy.action).max() <= 3.0, True)

    vector = gym.make_vec(env_id, 2)
    policy = Policy(agent, context, 100.0, 2, action_space=space)
    observations, _ = vector.reset(seed=[0, 1])
    rewards: Any = None
    for t in range(5):
        actions = policy.act(observations, rewards)
        assert actions.shape == (2, 1) and vector.action_space.contains(actions)
        np.testing.assert_allclose(actions[0], alone[t], rtol=1e-4, atol=1e-5)
        observations, rewards, *_ = vector.step(actions)


def test_actions_that_were_applied_are_remembered() -> None:
    agent = make("mamba")
    space = spaces.Box(-0.01, 0.01, (A,), np.float32)
    observations = np.random.default_rng(0).standard_normal((K, S))
    clipped, told = Policy(agent, "stream", 5.0, action_space=space), Policy(agent, "stream", 5.0)
    for observation in observations:
        expected = clipped.act(observation, 0.0)
        acted = told.act(observation, 0.0)
        np.testing.assert_allclose(acted.clip(-0.01, 0.01), expected)
        told.action = acted.clip(-0.01, 0.01)[None]
    assert np.abs(expected).max() <= 0.01


@both_contexts
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_observations_of_any_dtype(context: Context, dtype: type) -> None:
    agent = make("attention")
    rows = np.random.default_rng(0).integers(-3, 3, (K + 2, 1, S))
    policies = [Policy(agent, context, 5.0, engine=e) for e in ("eager", "auto")]  # type: ignore[arg-type]
    for row in rows:
        actions = [policy.act(row.astype(dtype), np.array([0.5])) for policy in policies]
        assert all(action.dtype == np.float32 for action in actions)
        np.testing.assert_allclose(*actions, rtol=1e-4, atol=1e-5)


@both_contexts
@pytest.mark.parametrize("kind", ["attention", "mamba", "conv", "lstm", "hybrid"])
def test_an_agent_in_float64_and_another_default_dtype(kind: str, context: Context) -> None:
    agent = make(kind)
    rows = np.random.default_rng(0).standard_normal((K + 2, 1, S))
    expected = Policy(agent, context, 5.0)
    double = Policy(agent.double(), context, 5.0)
    assert double.engine_name == "eager"
    torch.set_default_dtype(torch.float64)
    try:
        other = Policy(make(kind).float(), context, 5.0, engine="eager")
        for row in rows:
            actions = [policy.act(row, 1.0) for policy in (expected, double, other)]
            assert {action.dtype for action in actions} == {np.dtype(np.float32)}
            np.testing.assert_allclose(actions[1], actions[0], rtol=1e-4, atol=1e-5)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_first_reward_is_a_number_or_none_and_counts_for_nothing() -> None:
    agent, observation = make("mamba"), np.ones(S)
    actions = []
    for first in (None, 0, 7.0, np.array([3.0])):
        policy = Policy(agent, "stream", 5.0)
        policy.act(observation, first)
        actions.append(policy.act(observation, 1.0))
        with pytest.raises(UserError, match=r"needs the reward .* call reset\(\)"):
            policy.act(observation)
        policy.reset()
        policy.act(observation)
    assert all(np.array_equal(action, actions[0]) for action in actions)


@both_contexts
def test_a_number_that_is_not_finite_is_refused_and_changes_nothing(context: Context) -> None:
    agent, good = make("mamba"), np.ones(S)
    policy, undisturbed = Policy(agent, context, 5.0), Policy(agent, context, 5.0)
    assert np.array_equal(policy.act(good), undisturbed.act(good))
    for value, words in ((np.nan, "nan"), (-np.inf, "-inf"), (1e39, r"1e\+39"), (None, "nan")):
        bad = [1.0, value, *good[2:]]
        said = rf"observation is {words} in lane 0 at \[1\]; give numbers finite in float32"
        with pytest.raises(UserError, match=said):
            policy.act(bad, 1.0)
        with pytest.raises(UserError, match=said):  # the lane is not reset either
            policy.predict(bad, None, [True], reward=1.0)
    for reward, words in ((np.inf, "inf;"), (1e39, r"1e\+39;"), ([np.nan], "nan in lane 0;")):
        with pytest.raises(UserError, match=f"reward is {words} give numbers"):
            policy.act(good, reward)
    with pytest.raises(UserError, match=r"observation is array\(.*'x'.*; it must be numbers"):
        policy.act(["x", *good[1:]], 1.0)
    assert np.array_equal(policy.act(good, 1.0), undisturbed.act(good, 1.0))


def test_the_lane_of_a_number_that_is_not_finite_is_named() -> None:
    policy = Policy(make("mamba"), "stream", 5.0, 3)
    observations = np.ones((3, S), np.float32)
    policy.act(observations)
    with pytest.raises(UserError, match="reward is nan in lane 1;"):
        policy.act(observations, [1, np.nan, 1])
    observations[:] = 3e38  # finite, though its square is not
    policy.act(observations, np.ones(3))
    observations[2, 3] = np.inf
    with pytest.raises(UserError, match=r"observation is inf in lane 2 at \[3\];"):
        policy.act(observations, np.ones(3))


def test_numbers_beside_images_must_be_finite() -> None:
    eye, state = spaces.Box(0, 255, (9, 9, 3), np.uint8), spaces.Box(-1, 1, (2,))
    seen = table_of(spaces.Dict(eye=eye, state=state))
    config = BehaviourCloningConfig(context_length=K)
    policy = Policy(config.agent(config, AgentSpec((), A, False, 9, observation_space=seen)))
    good = {"eye": np.zeros((9, 9, 3), np.uint8), "state": np.zeros(2, np.float32)}
    policy.act(good)
    with pytest.raises(UserError, match=r"observation is nan in lane 0 at \[0, 1\];"):
        policy.act(good | {"state": np.array([0, np.nan], np.float32)})


def test_targets_rewards_and_lanes_must_fit() -> None:
    agent, observation = make("mamba"), np.ones(S)
    targets: list[tuple[Any, str]] = [
        ([1.0, 2.0], r"target_return has shape \[2\]; it must be a number, or \[3\]"),
        ("x", "target_return is 'x'; it must be a number, or one for each lane"),
        (np.nan, "target_return is nan;"),
    ]
    for target, words in targets:
        with pytest.raises(UserError, match=words):
            Policy(agent, "window", target, 3)
    counts: list[Any] = [-1, 2.5, "3"]
    for lanes in counts:
        with pytest.raises(UserError, match=f"lanes is {lanes!r}; it must be a whole number"):
            Policy(agent, "window", 1.0, lanes)
    policy = Policy(agent, "window", 1.0)
    policy.act(observation)
    with pytest.raises(UserError, match=r"reward has shape \[2\]; it must be a number, or \[1\]"):
        policy.act(observation, [1, 50])


@both_contexts
def test_predict_is_act_in_the_form_of_stable_baselines3(context: Context) -> None:
    agent = make("mamba", BehaviourCloningConfig, discrete=True, temperature=1.0)
    rows = np.random.default_rng(0).standard_normal((8, 2, S))
    acting, predicting = (Policy(agent, context, lanes=2) for _ in range(2))
    start: Any = np.ones(2, bool)
    for row in rows:
        action, state = predicting.predict(row, None, start)
        assert state is None and np.array_equal(action, acting.act(row))
        start = np.zeros(2, bool)
    again = [acting.predict(row, None, np.ones(2, bool), deterministic=True)[0] for row in rows]
    likeliest = Policy(make("mamba", BehaviourCloningConfig, discrete=True), context, lanes=2)
    for row, action in zip(rows, again, strict=True):
        likeliest.reset()
        assert np.array_equal(likeliest.act(row), action)
    conditioned = Policy(make("mamba"), context, 5.0, 2)
    conditioned.predict(rows[0], None, np.ones(2, bool))
    with pytest.raises(UserError, match="needs the reward"):
        conditioned.predict(rows[1], None, np.zeros(2, bool))
    conditioned.predict(rows[1], None, np.zeros(2, bool), reward=np.ones(2))


def test_no_lanes_at_all() -> None:
    for kind in ("mamba", "lstm"):
        policy = Policy(make(kind), "stream", 5.0, 0)
        assert policy.act(np.zeros((0, S)), np.zeros(0)).shape == (0, A)


def test_a_saved_agent_is_a_policy(tmp_path: Path) -> None:
    agent = make("mamba")
    save_agent(agent, tmp_path / "agent.safetensors")
    loaded = load_policy(tmp_path / "agent.safetensors", "stream", target_return=5.0)
    expected = Policy(agent, "stream", 5.0)
    assert np.array_equal(loaded.act(np.ones(S)), expected.act(np.ones(S)))


def test_misuse_is_one_sentence(tmp_path: Path) -> None:
    agent = make("mamba")
    with pytest.raises(UserError, match="target return"):
        Policy(agent, "window")
    with pytest.raises(UserError, match="widow"):
        Policy(agent, "widow", 1.0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="engine is 'fast'"):
        Policy(agent, "window", 1.0, engine="fast")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"engine native cannot act .* C does not know LSTM"):
        Policy(make("lstm"), "window", 1.0, engine="native")
    policy = Policy(agent, "window", 1.0, 2)
    with pytest.raises(UserError, match=r"shape \[3, 4\]; this policy takes \[2, 4\]"):
        policy.act(np.zeros((3, S)), np.zeros(3))
    with pytest.raises(UserError, match=r"lanes has shape \[3\]; expected \[2\]"):
        policy.reset(np.ones(3, bool))
    with pytest.raises(UserError, match="holds no trained run"):
        load_policy(tmp_path, target_return=1.0)
