"""Agents: causality down to a_t itself, padding, contexts that agree, checkpoints that act."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_episodes, write_npz
from torch import Tensor

from decision_seq.agents import AgentConfig, AgentSpec, SequenceAgent, load_agent, save_agent
from decision_seq.agents.base import Context, gumbel_noise
from decision_seq.agents.behaviour_cloning import BehaviourCloningConfig
from decision_seq.agents.max_return import MaxReturnConfig
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.backbones import BackboneConfig
from decision_seq.backbones.mamba import DT_MAX, DT_MIN, Mamba
from decision_seq.data.store import open_store
from decision_seq.data.transforms import ReturnSpec
from decision_seq.data.windows import Batch
from decision_seq.errors import UserError
from decision_seq.ops.dispatch import PATHS

K, S, A = 5, 4, 3
KINDS = sorted(BackboneConfig.registry)
every_backbone = pytest.mark.parametrize("kind", KINDS)
AGENTS = (ReturnConditionedConfig, BehaviourCloningConfig, MaxReturnConfig)
PAIRS = [  # an agent that predicts its return needs a backbone that mixes tokens
    pytest.param(kind, config, id=f"{kind}-{config.kind}")
    for kind in KINDS
    for config in AGENTS
    if (kind, config) != ("none", MaxReturnConfig)
]
every_pair = pytest.mark.parametrize(("kind", "config"), PAIRS)
every_layout = pytest.mark.parametrize(
    ("kind", "config", "tokens"),
    [
        pytest.param(*pair.values, tokens, id=f"{pair.id}-{len(tokens)}")
        for pair in PAIRS
        for tokens in pair.values[1].layouts  # type: ignore[union-attr]
    ],
)
needs_c = pytest.mark.skipif(bool(PATHS["c"].unusable()), reason="the C kernels' own checks")


def make(
    kind: str,
    config: type[AgentConfig] = ReturnConditionedConfig,
    discrete: bool = False,
    **kw: object,
) -> SequenceAgent:
    """A small agent, with large enough weights that inputs matter."""
    torch.manual_seed(0)
    backbone = BackboneConfig.registry[kind](width=16, layers=2, dropout=0.0)
    fields = {"context_length": K, "returns": ReturnSpec(scale=10.0), "backbone": backbone} | kw
    settings = config(**fields)  # type: ignore[arg-type]
    agent = settings.agent(settings, AgentSpec((S,), A, discrete, max_timestep=20)).eval()
    with torch.no_grad():
        agent.observation_mean.fill_(0.5)
        agent.observation_std.fill_(2.0)
        for name, parameter in agent.backbone.named_parameters():
            if "mixer" in name and name.endswith("weight") and parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return agent


def random_batch(size: int = 3, discrete: bool = False, lengths: list[int] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(2)
    mask = torch.arange(K) < torch.tensor(lengths or [K] * size)[:, None]
    if discrete:
        actions = torch.randint(A, (size, K), generator=generator)
    else:
        actions = torch.rand(size, K, A, generator=generator) * 2 - 1
    return Batch(
        observations=torch.randn(size, K, S, generator=generator),
        actions=actions,
        returns_to_go=torch.rand(size, K, generator=generator),
        timesteps=torch.arange(K).expand(size, K) + 3,
        mask=mask,
    )


def predict(agent: SequenceAgent, batch: Batch) -> Tensor:
    values = agent.values(batch.observations, batch.actions, batch.returns_to_go)
    return agent(values, batch.timesteps)


@every_pair
@pytest.mark.parametrize("t", range(K))
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


@every_pair
@pytest.mark.parametrize("discrete", [False, True])
def test_every_parameter_gets_a_gradient(
    kind: str, config: type[AgentConfig], discrete: bool
) -> None:
    agent = make(kind, config, discrete)
    agent.loss(random_batch(discrete=discrete)).backward()
    for name, parameter in agent.named_parameters():
        if kind == "none" and name.startswith(("embedding.embed.action", "embedding.embed.return")):
            continue  # nothing reads them
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("config", AGENTS)
def test_dt_is_in_range_once_an_agent_is_built(config: type[AgentConfig]) -> None:
    agent = config().agent(config(), AgentSpec((S,), A, False, 20))
    mixers = [m for m in agent.modules() if isinstance(m, Mamba)]
    assert len(mixers) == 3
    for mixer in mixers:
        dt = F.softplus(mixer.dt_proj.bias)
        assert dt.min() >= DT_MIN * 0.999 and dt.max() <= DT_MAX * 1.001


def roll(
    agent: SequenceAgent, context: Context, steps: int, seed: int = 3, lanes: int = 2
) -> Tensor:
    """Actions [steps, lanes, ...] for a fixed sequence of observations and rewards."""
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(steps, lanes, S, generator=generator)
    rewards = torch.rand(steps, lanes, generator=generator)
    state = agent.init_state(lanes, context, torch.linspace(5, 8, lanes))
    action = (
        torch.zeros(lanes, A) if not agent.spec.discrete else torch.zeros(lanes, dtype=torch.int64)
    )
    actions = []
    for t in range(steps):
        action, state = agent.act(observations[t], action, rewards[t - 1], state)
        actions.append(action)
    return torch.stack(actions)


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
    with pytest.raises(ValueError, match=r"expected torch.float32 \(1, 4\)"):
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


def test_return_to_go_drops_by_the_reward_unless_delayed() -> None:
    for delayed, expected in ((False, (7.0 - 2.0) / 10), (True, 0.7)):
        agent = make("mamba", returns=ReturnSpec(scale=10.0, delayed=delayed))
        state = agent.init_state(1, "stream", torch.tensor([7.0]))
        action, reward = torch.zeros(1, A), torch.tensor([2.0])
        action, state = agent.act(torch.zeros(1, S), action, reward, state)
        assert state.return_to_go.item() == pytest.approx(0.7)
        _, state = agent.act(torch.zeros(1, S), action, reward, state)
        assert state.return_to_go.item() == pytest.approx(expected)


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
    assert actions.dtype == torch.int64 and actions.min() >= 0 and actions.max() < A
    batch = random_batch(discrete=True, lengths=[2, K, 4])
    logits = predict(agent, batch)
    wanted = F.cross_entropy(logits[batch.mask], batch.actions[batch.mask])
    torch.testing.assert_close(agent.loss(batch), wanted)


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
    assert roll(agent.eval(), "stream", 3).abs()[..., 1].max() <= largest


@pytest.mark.parametrize("path", ["c", "torch"])
@pytest.mark.parametrize("kind", ["attention", "mamba"])
def test_a_training_loss_compiles_as_one_graph(
    kind: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := PATHS[path].unusable():
        pytest.skip(reason)
    monkeypatch.setenv("DECISION_SEQ_SCAN", path)
    backbone = BackboneConfig.registry[kind](width=16, layers=2, dropout=0.3)
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
    assert torch.equal(roll(loaded, "stream", 6), roll(agent, "stream", 6))


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
    agent = make("mamba")
    with pytest.raises(UserError, match="target return"):
        agent.init_state(2, "window")
    with pytest.raises(UserError, match="widow"):
        agent.init_state(2, "widow", torch.ones(2))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"temperature is 1\.0, but the data's actions are"):
        make("mamba", temperature=1.0)


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
        with pytest.raises(ValueError, match="states of 4 lanes"):
            backbone.step(torch.randn(4, 1, 16), backbone.init_state(2))
        with pytest.raises(ValueError, match="tokens of width 16"):
            backbone.step(torch.randn(2, 1, 32), backbone.init_state(2))
        half = backbone.init_state(2, dtype=torch.bfloat16)
        x = torch.randn(2, 1, 16)
        y, _ = backbone.step(x, half)
        torch.testing.assert_close(y, backbone.step(x, backbone.init_state(2))[0])
