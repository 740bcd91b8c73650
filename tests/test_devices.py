"""What holds on a GPU, as far as it can be checked without one.

Tensors of the device `meta` have shapes but no numbers: to look at one, or to mix it with a tensor
of the CPU, raises an error. On a GPU the one would wait for it, the other fails there as well.
"""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from small_agents import A, K, S, every_pair, make, random_batch
from torch import Tensor

from decision_seq.agents import AgentConfig, SequenceAgent
from decision_seq.agents.base import Context
from decision_seq.agents.context import CONTEXTS, Moment
from decision_seq.agents.recorded import Function, Recorder
from decision_seq.train.faults import FiniteGuard

META = torch.device("meta")
TIMES = [[0, 0, 0], [1, 0, 1], [2, 1, 2], [K, K, K]]  # of 3 lanes
both_contexts = pytest.mark.parametrize("context", sorted(CONTEXTS))


@pytest.fixture
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` knows no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


def observed(generator: torch.Generator, discrete: bool = False) -> list[Tensor]:
    """Observations, last actions and rewards of 3 lanes."""
    action = torch.randint(A, (3,), generator=generator) if discrete else torch.rand(3, A)
    return [torch.randn(3, S, generator=generator), action, torch.rand(3, generator=generator)]


@every_pair
@both_contexts
@pytest.mark.parametrize("discrete", [False, True])
def test_acting_waits_for_no_number(
    kind: str, config: type[AgentConfig], context: Context, discrete: bool, no_autocast: None
) -> None:
    agent = make(kind, config, discrete).to(META)
    memory = CONTEXTS[context].empty(agent, 3)
    seen = [tensor.to(META) for tensor in observed(torch.Generator(), discrete)]
    with torch.inference_mode():
        for times in TIMES:
            timestep = torch.tensor(times, device=META)
            now = Moment(*seen, timestep, times, memory)
            predicted, to_go, memory = agent.advance(now)
            assert predicted.device == to_go.device == META
            assert {tensor.device for tensor in memory.tensors()} <= {META}


@every_pair
def test_training_waits_for_no_number(
    kind: str, config: type[AgentConfig], no_autocast: None
) -> None:
    agent, guard = make(kind, config).to(META).train(), FiniteGuard(0, META)
    batch = random_batch(2)
    batch = type(batch)(**{name: tensor.to(META) for name, tensor in vars(batch).items()})
    agent.loss(batch).backward()
    norm = torch.nn.utils.clip_grad_norm_(agent.parameters(), 0.25)
    assert guard.judge(0, agent.loss(batch).detach(), norm).device == META


class Again:
    """In place of a CUDA graph: computes the function once more into the same memory."""

    def __init__(self) -> None:
        self.recordings, self.replays = 0, 0

    def __call__(self, function: Function, inputs: list[Tensor]) -> tuple:
        self.recordings += 1
        outputs = function(inputs)

        def replay() -> None:
            self.replays += 1
            for old, new in zip(outputs, function(inputs), strict=True):
                old.copy_(new)

        return replay, outputs


def recording(agent: SequenceAgent) -> tuple[SequenceAgent, Again]:
    again, agent = Again(), copy.deepcopy(agent)
    agent._recorder = Recorder("cpu", again)
    return agent, again


def play(agent: SequenceAgent, context: Context, steps: int) -> list[Tensor]:
    """Actions of `steps` steps, and once more those of the last two from the state before them: a
    step must leave the state that it is given alone."""
    generator = torch.Generator().manual_seed(3)
    state = agent.init_state(3, context, torch.tensor([5.0, 6.0, 7.0]))
    kept, actions, action = [], [], torch.zeros(3, A)
    for _ in range(steps):
        observation, _, reward = observed(generator)
        kept.append((observation, action, reward, state))
        action, state = agent.act(*kept[-1])
        actions.append(action)
    return actions + [agent.act(*kept[at])[0] for at in (-2, -1)]


@every_pair
@both_contexts
def test_recorded_steps_are_the_same(
    kind: str, config: type[AgentConfig], context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DECISION_SEQ_SCAN", "torch")  # or Mamba acts by one C call
    plain = make(kind, config)
    agent, again = recording(plain)
    expected, actions = play(plain, context, K + 6), play(agent, context, K + 6)
    for a, b in zip(actions, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert again.recordings == 1
    assert again.replays >= 6  # of 8 past K: a cache may still grow by the last action


def test_other_lanes_or_weights_are_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECISION_SEQ_SCAN", "torch")
    agent, again = recording(make("mamba"))
    play(agent, "stream", K + 3)
    with torch.no_grad():
        agent.action_head.weight.mul_(2)  # in place: nothing to be done
    play(agent, "stream", K + 3)
    assert again.recordings == 1
    agent.action_head.weight.data = agent.action_head.weight.data.clone()
    play(agent, "stream", K + 3)
    assert again.recordings == 2
    play(agent, "window", K + 3)
    assert again.recordings == 3
    assert copy.deepcopy(agent)._recorder.recorded is None
    agent.train()
    play(agent, "window", K + 3)
    assert again.recordings == 3


def test_an_agent_that_cannot_be_recorded_acts_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(function: Function, inputs: list[Tensor]) -> tuple:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setenv("DECISION_SEQ_SCAN", "torch")
    plain = make("attention")
    agent = copy.deepcopy(plain)
    agent._recorder = Recorder("cpu", refuse)
    for a, b in zip(play(agent, "stream", K + 3), play(plain, "stream", K + 3), strict=True):
        assert torch.equal(a, b)
    said = capsys.readouterr().err
    assert said.count("operation not permitted when stream is capturing") == 1
    assert "and more" not in said
