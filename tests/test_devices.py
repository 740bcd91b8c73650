"""What holds on a GPU, as far as it can be checked without one.

Tensors of the device `meta` have shapes but no numbers: to look at one raises an error, where a GPU
would be waited for, and `OnMetaAlone` finds what reads a tensor of the CPU.
"""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from small_agents import A, K, S, every_pair, make, random_batch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


class OnMetaAlone(TorchDispatchMode):
    """Raises where an operation takes a tensor of another device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        for tensor in tree_leaves((args, kwargs or {})):
            if isinstance(tensor, Tensor) and tensor.device != META:
                raise AssertionError(f"{func} takes a tensor of {tensor.device}")
        return func(*args, **(kwargs or {}))


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
    timesteps = [(times, torch.tensor(times).to(META)) for times in TIMES]
    with torch.inference_mode(), OnMetaAlone():
        for times, timestep in timesteps:
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
    with OnMetaAlone():
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


def play(agent: SequenceAgent, context: Context, steps: int, lanes: int = 3) -> list[Tensor]:
    """Actions of `steps` steps, and once more those of the last two from the state before them: a
    step must leave the state that it is given alone."""
    generator = torch.Generator().manual_seed(3)
    state = agent.init_state(lanes, context, torch.tensor([5.0, 6.0, 7.0])[:lanes])
    kept, actions, action = [], [], torch.zeros(lanes, A)
    for _ in range(steps):
        observation, _, reward = (tensor[:lanes] for tensor in observed(generator))
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
    play(agent, "window", K + 3, lanes=2)
    assert again.recordings == 4
    agent.observation_mean = agent.observation_mean + 1
    plain = copy.deepcopy(agent)
    assert plain._recorder.recorded is None
    plain._recorder = Recorder()
    actions = zip(play(agent, "stream", K + 3), play(plain, "stream", K + 3), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in actions)
    assert again.recordings == 5
    for undo in (agent.train, agent.action_head.register_forward_hook(lambda *_: None).remove):
        play(agent, "window", K + 3)  # with a hook, then in training: operation by operation
        undo()
    play(agent, "window", K + 3)
    assert again.recordings == 5


def test_an_agent_that_cannot_be_recorded_acts_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tried = []

    def refuse(function: Function, inputs: list[Tensor]) -> tuple:
        tried.append(function)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setenv("DECISION_SEQ_SCAN", "torch")
    plain = make("attention")
    agent = copy.deepcopy(plain)
    agent._recorder = Recorder("cpu", refuse)
    for a, b in zip(play(agent, "stream", K + 3), play(plain, "stream", K + 3), strict=True):
        assert torch.equal(a, b)
    said = capsys.readouterr().err
    assert said.count("operation not permitted when stream is capturing") == 1
    assert "and more" not in said and len(tried) == 1
