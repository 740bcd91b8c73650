"""Agents that act: contexts that agree, lanes by themselves, sampled actions, streams."""

from __future__ import annotations

import pytest
import torch
from ops_inputs import needs_c
from small_agents import AGENTS, PAIRS, A, K, S, every_backbone, every_pair, make, roll
from torch import Tensor

from decision_seq.agents import AgentConfig, SequenceAgent
from decision_seq.agents.base import Context, gumbel_noise
from decision_seq.agents.behaviour_cloning import BehaviourCloningConfig
from decision_seq.agents.context import CONTEXTS
from decision_seq.data.transforms import ReturnSpec

every_layout = pytest.mark.parametrize(
    ("kind", "config", "tokens"),
    [
        pytest.param(*pair.values, tokens, id=f"{pair.id}-{len(tokens)}")
        for pair in PAIRS
        for tokens in pair.values[1].layouts  # type: ignore[union-attr]
    ],
)


@every_layout
def test_contexts_agree_within_the_window(
    kind: str, config: type[AgentConfig], tokens: tuple[str, ...]
) -> None:
    agent = make(kind, config, tokens=tokens)
    window, stream = roll(agent, "window", 2 * K), roll(agent, "stream", 2 * K)
    torch.testing.assert_close(stream[:K], window[:K], rtol=1e-4, atol=1e-5)
    if kind == "none":
        torch.testing.assert_close(stream, window, rtol=1e-4, atol=1e-5)


@every_layout
@pytest.mark.parametrize("discrete", [False, True])
def test_a_lane_acts_as_it_does_among_many(
    kind: str, config: type[AgentConfig], tokens: tuple[str, ...], discrete: bool
) -> None:
    """A few lanes stream by calls of their own; many by PyTorch's products."""
    agent = make(kind, config, discrete, tokens=tokens, temperature=float(discrete))
    if not discrete:
        agent.action_scale.copy_(torch.tensor([1.0, 2.0, 0.5]))
    generator = torch.Generator().manual_seed(8)
    observations = torch.randn(7, 1, S, generator=generator)
    rewards = torch.rand(7, 1, generator=generator)

    def run(lanes: int) -> list[Tensor]:
        seeds = torch.zeros(lanes, dtype=torch.int64)
        state = agent.init_state(lanes, "stream", torch.full((lanes,), 6.0), seeds)
        action = torch.zeros(lanes, dtype=torch.int64) if discrete else torch.zeros(lanes, A)
        actions = []
        for observation, reward in zip(observations, rewards, strict=True):
            action, state = agent.act(
                observation.expand(lanes, S), action, reward.expand(lanes), state
            )
            actions.append(action[:1])
        return actions

    torch.testing.assert_close(run(1), run(100), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["loaded", "trained", "assigned", "data"])
def test_weights_that_change_between_steps_are_seen(how: str) -> None:
    agent, other = make("mamba"), make("mamba")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    state, inputs = agent.init_state(1, "stream", torch.tensor([5.0])), (torch.ones(1, S),)
    _, state = agent.act(*inputs, torch.zeros(1, A), torch.ones(1), state)
    before, _ = agent.act(*inputs, torch.zeros(1, A), torch.ones(1), state)
    if how == "trained":
        optimizer = torch.optim.SGD(agent.parameters(), lr=1.0)
        for mine, its in zip(agent.parameters(), other.parameters(), strict=True):
            mine.grad = (mine - its).detach()
        optimizer.step()
    elif how == "data":
        for mine, its in zip(agent.parameters(), other.parameters(), strict=True):
            mine.data = its.data
    else:
        agent.load_state_dict(other.state_dict(), assign=how == "assigned")
    after, _ = agent.act(*inputs, torch.zeros(1, A), torch.ones(1), state)
    expected, _ = other.act(*inputs, torch.zeros(1, A), torch.ones(1), state)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, expected)


@pytest.mark.parametrize("config", AGENTS)
@pytest.mark.parametrize("lanes", [1, 3])
def test_acting_leaves_the_state_as_it_was(config: type[AgentConfig], lanes: int) -> None:
    agent = make("mamba", config)
    state = agent.init_state(lanes, "stream", torch.full((lanes,), 6.0))
    inputs = torch.ones(lanes, S), torch.full((lanes, A), 0.5), torch.ones(lanes)
    for _ in range(3):
        first, after = agent.act(*inputs, state)
        again, _ = agent.act(*inputs, state)
        assert torch.equal(first, again)
        state = after


@needs_c
def test_what_does_not_fit_is_refused_before_it_is_read() -> None:
    agent = make("mamba", discrete=True)
    state = agent.init_state(1, "stream", torch.tensor([5.0]))
    _, state = agent.act(torch.ones(1, S), torch.tensor([0]), torch.ones(1), state)
    with pytest.raises(RuntimeError, match="must match"):
        agent.act(torch.ones(1, S - 1), torch.tensor([0]), torch.ones(1), state)
    for action in (-1, A):
        with pytest.raises(IndexError, match="index"):
            agent.act(torch.ones(1, S), torch.tensor([action]), torch.ones(1), state)


@every_backbone
def test_acting_sees_the_very_tokens_of_training(kind: str) -> None:
    """Replaying an episode step by step predicts what the training windows predict."""
    agent, steps = make(kind), K + 3
    generator = torch.Generator().manual_seed(4)
    observations = torch.randn(steps, S, generator=generator)
    rewards = torch.rand(steps, generator=generator)
    actions = torch.rand(steps, A, generator=generator)
    to_go = torch.tensor([9.0 - rewards[:t].sum() for t in range(steps)]) / 10
    state = agent.init_state(1, "window", torch.tensor([9.0]))
    for t in range(steps):
        acted, state = agent.act(
            observations[t : t + 1],
            actions[t - 1 : t] if t else actions[:1],
            rewards[t - 1 : t] if t else rewards[:1],
            state,
        )
        first = max(0, t - K + 1)
        window = slice(first, t + 1)
        values = agent.values(
            observations[None, window], actions[None, window], to_go[None, window]
        )
        with torch.no_grad():
            expected = agent(values, torch.arange(first, t + 1)[None])[:, -1]
        torch.testing.assert_close(acted, expected, rtol=1e-4, atol=1e-5)


@every_pair
@pytest.mark.parametrize("context", ["window", "stream"])
def test_a_reset_lane_acts_as_new(kind: str, config: type[AgentConfig], context: Context) -> None:
    agent = make(kind, config)
    generator = torch.Generator().manual_seed(5)
    observations = torch.randn(9, 2, S, generator=generator)
    rewards = torch.rand(9, 2, generator=generator)

    def run(first: int, state: object, action: Tensor) -> list[Tensor]:
        actions = []
        for t in range(first, 9):
            action, state = agent.act(observations[t], action, rewards[t - 1], state)  # type: ignore[arg-type]
            actions.append(action)
        return actions

    target = torch.tensor([6.0, 7.0])
    state, action = agent.init_state(2, context, target), torch.zeros(2, A)
    for t in range(4):
        action, state = agent.act(observations[t], action, rewards[t - 1], state)
    after_reset = run(4, agent.reset(state, torch.tensor([True, False])), action)
    kept = run(4, state, action)
    fresh = run(4, agent.init_state(2, context, target), torch.zeros(2, A))
    for a, b, c in zip(after_reset, fresh, kept, strict=True):
        torch.testing.assert_close(a[0], b[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a[1], c[1], rtol=1e-4, atol=1e-5)


@every_pair
@pytest.mark.parametrize("context", ["window", "stream"])
def test_selected_lanes_go_on_as_before(
    kind: str, config: type[AgentConfig], context: Context
) -> None:
    agent = make(kind, config)
    generator = torch.Generator().manual_seed(5)
    observations = torch.randn(9, 3, S, generator=generator)
    rewards = torch.rand(9, 3, generator=generator)
    lanes = torch.tensor([True, False, True])
    state = agent.init_state(3, context, torch.tensor([6.0, 7.0, 8.0]))
    action = torch.zeros(3, A)
    for t in range(9):
        action, state = agent.act(observations[t], action, rewards[t - 1], state)
        if t == 3:
            chosen, few = action[lanes], agent.select(state, lanes)
        if t > 3:
            seen = observations[t, lanes], chosen, rewards[t - 1, lanes]
            chosen, few = agent.act(*seen, few)
            torch.testing.assert_close(chosen, action[lanes], rtol=1e-4, atol=1e-5)


@every_pair
@pytest.mark.parametrize("discrete", [False, True])
def test_acting_by_one_call_is_acting_by_operations(
    kind: str, config: type[AgentConfig], discrete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make(kind, config, discrete)
    fast = [roll(agent, context, 3 * K, lanes=lanes) for context in CONTEXTS for lanes in (1, 13)]
    monkeypatch.setenv("DECISION_SEQ_SCAN", "torch")
    plain = [roll(agent, context, 3 * K, lanes=lanes) for context in CONTEXTS for lanes in (1, 13)]
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_return_to_go_drops_by_the_reward_unless_delayed() -> None:
    for delayed, expected in ((False, (7.0 - 2.0) / 10), (True, 0.7)):
        agent = make("mamba", returns=ReturnSpec(scale=10.0, delayed=delayed))
        state = agent.init_state(1, "stream", torch.tensor([7.0]))
        action, reward = torch.zeros(1, A), torch.tensor([2.0])
        action, state = agent.act(torch.zeros(1, S), action, reward, state)
        assert state.return_to_go.item() == pytest.approx(0.7)
        _, state = agent.act(torch.zeros(1, S), action, reward, state)
        assert state.return_to_go.item() == pytest.approx(expected)


def drawn(seeds: list[int], context: Context = "stream", steps: int = 60) -> Tensor:
    """Actions [steps, lanes] at temperature 2, every lane meeting the same."""
    agent = make("mamba", BehaviourCloningConfig, discrete=True, temperature=2.0)
    generator = torch.Generator().manual_seed(6)
    observations = torch.randn(steps, S, generator=generator)
    lanes = len(seeds)
    state = agent.init_state(lanes, context, seed=torch.tensor(seeds))
    action, actions = torch.zeros(lanes, dtype=torch.int64), []
    for t in range(steps):
        action, state = agent.act(
            observations[t].expand(lanes, S), action, torch.zeros(lanes), state
        )
        actions.append(action)
    return torch.stack(actions)


def test_sampled_actions_depend_on_their_lane_alone() -> None:
    actions = drawn([3, 8, 3, 5])
    assert torch.equal(actions, drawn([3, 8, 3, 5]))
    assert torch.equal(actions[:, 0], actions[:, 2])
    assert torch.equal(actions[:, 1:2], drawn([8]))
    assert (actions[:, 0] != actions[:, 1]).any() and (actions[:, 1] != actions[:, 3]).any()
    assert torch.equal(drawn([3], "window", K), actions[:K, :1])

    seeds, timesteps = torch.cartesian_prod(torch.arange(6), torch.arange(6)).T
    assert len(gumbel_noise(seeds, timesteps, A).unique(dim=0)) == 36  # nor shifted in time


def test_sampling_follows_the_softmax() -> None:
    agent = make("mamba", discrete=True, temperature=0.5)
    lanes = 4000
    logits = torch.tensor([0.3, -0.2, 0.6])
    state = agent.init_state(lanes, "stream", torch.zeros(lanes))
    counts = agent.choose(logits.expand(lanes, A), state).bincount(minlength=A)
    expected = lanes * (logits / 0.5).softmax(0)
    assert ((counts - expected).abs() < 4 * expected.sqrt()).all()
    greedy = make("mamba", discrete=True)
    assert (greedy.choose(logits.expand(lanes, A), state) == 2).all()


@pytest.mark.parametrize("kind", ["mamba", "attention", "hybrid"])
def test_streaming_takes_what_a_window_takes(kind: str) -> None:
    """Observations of other dtypes; parameters that do not lie row by row; no lanes at all."""
    agent = make(kind)
    with torch.no_grad():
        for parameter in agent.parameters():
            if parameter.ndim == 2:
                parameter.data = parameter.data.t().contiguous().t()
        agent.observation_std = torch.full((1,), 2.0).expand(S)
    results = []
    contexts: tuple[Context, ...] = ("window", "stream")
    for context in contexts:
        state = agent.init_state(2, context, torch.tensor([3.0, 5.0]))
        action = torch.zeros(2, A)
        for step in range(K):
            observation = torch.arange(2 * S).view(2, S) % (step + 2)  # int64
            action, state = agent.act(observation, action, torch.ones(2), state)
        results.append(action)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    state = agent.init_state(0, "stream", torch.zeros(0))
    action, _ = agent.act(torch.zeros(0, S), torch.zeros(0, A), torch.zeros(0), state)
    assert action.shape == (0, A)


def test_what_an_agent_does_its_own_way_it_does_in_a_stream() -> None:
    class Still(SequenceAgent):
        def predict(self, features: Tensor) -> Tensor:
            return torch.zeros(*features.shape[:-1], self.spec.action_dim)

    agent = make("mamba")
    still = Still(agent.config, agent.spec).eval()
    state = still.init_state(2, "stream", torch.tensor([3.0, 5.0]))
    action, _ = still.act(torch.randn(2, S), torch.zeros(2, A), torch.zeros(2), state)
    assert not action.any()


@needs_c
def test_a_stream_of_other_lanes_or_widths_is_refused() -> None:
    backbone = make("mamba").backbone
    with torch.no_grad():
        with pytest.raises(ValueError, match="history must be"):
            backbone.step(torch.randn(4, 1, 16), backbone.init_state(2))
        with pytest.raises(RuntimeError, match="expected input with shape"):
            backbone.step(torch.randn(2, 1, 32), backbone.init_state(2))
        half = backbone.init_state(2, dtype=torch.bfloat16)
        x = torch.randn(2, 1, 16)
        y, _ = backbone.step(x, half)
        torch.testing.assert_close(y, backbone.step(x, backbone.init_state(2))[0])


@pytest.mark.parametrize("part", ["action_head", "embedding", "backbone"])
def test_a_part_that_is_put_in_later_acts(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make("mamba")
    before = roll(agent, "stream", K)
    torch.manual_seed(9)
    setattr(agent, part, getattr(agent.config.agent(agent.config, agent.spec).eval(), part))
    after = roll(agent, "stream", K)
    monkeypatch.setenv("DECISION_SEQ_SCAN", "torch")
    torch.testing.assert_close(after, roll(agent, "stream", K), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after, before)
