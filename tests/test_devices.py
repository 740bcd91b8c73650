"""What holds on a GPU, as far as it can be checked without one.

Tensors of the device `meta` have shapes but no numbers: to look at one raises an error, where a GPU
would be waited for, and `OnMetaAlone` finds what reads a tensor of the CPU.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from small_agents import A, K, S, drawn_steps, every_pair, make, random_batch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from decision_seq.agents import AgentConfig, SequenceAgent
from decision_seq.hardware import all_to_device
from decision_seq.ops.graphs import Function
from decision_seq.policy import Policy
from decision_seq.policy.contexts import CONTEXTS
from decision_seq.policy.eager import forward_step
from decision_seq.policy.graph import GraphEngine
from decision_seq.policy.policy import ENGINES
from decision_seq.settings import Context
from decision_seq.training.faults import FiniteGuard

META = torch.device("meta")
TIMES = [[0, 0, 0], [1, 0, 1], [K, K, K]]  # of 3 lanes
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
@pytest.mark.parametrize(("context", "discrete"), [("window", False), ("stream", True)])
def test_acting_waits_for_no_number(
    kind: str, config: type[AgentConfig], context: Context, discrete: bool, no_autocast: None
) -> None:
    agent = make(kind, config, discrete).to(META)
    state = CONTEXTS[context].empty(agent, 3)
    seen = [tensor.to(META) for tensor in observed(torch.Generator(), discrete)]
    timesteps = [(times, torch.tensor(times).to(META)) for times in TIMES]
    with torch.inference_mode(), OnMetaAlone():
        for times, timestep in timesteps:
            predicted, state = forward_step(agent, [*seen, timestep], times, state)
            assert predicted.device == META
            assert {tensor.device for tensor in state.tensors()} <= {META}


def test_arrays_are_sent_as_one() -> None:
    arrays = [
        np.arange(3, dtype=np.uint8).reshape(3, 1),  # of a size that the next may not begin after
        np.linspace(0, 1, 10).reshape(2, 5)[:, ::2],
        np.array([2**40, -1]),
        np.zeros((2, 0), np.float32),
        np.array([0.5, 0.25], np.float32),
    ]
    sent = all_to_device(arrays, torch.device("cpu"))
    for tensor, array in zip(sent, arrays, strict=True):
        assert np.array_equal(tensor.numpy(), array) and tensor.numpy().dtype == array.dtype
    assert len({tensor.untyped_storage().data_ptr() for tensor in sent}) == 1


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


class OnCPU(GraphEngine):
    """Records on a CPU, by `Again` or what else is put in the place of a CUDA graph."""

    def __init__(self, agent: SequenceAgent, context: Context, lanes: int) -> None:
        super().__init__(agent, context, lanes)
        self.record = self.again = Again()


def play(policy: Policy, steps: int) -> np.ndarray:
    """Actions [steps, lanes, A]."""
    draw = np.random.default_rng(3)
    return np.stack([policy.act(*seen) for seen in drawn_steps(steps, policy.lanes, draw)])


def recording(agent: SequenceAgent, context: Context, monkeypatch: pytest.MonkeyPatch) -> Policy:
    monkeypatch.setitem(ENGINES, "graph", OnCPU)
    monkeypatch.setattr(OnCPU, "unusable", lambda agent: "")
    return Policy(agent, context, [5.0, 6.0, 7.0], 3, engine="graph")


@every_pair
@both_contexts
def test_recorded_steps_are_the_same(
    kind: str, config: type[AgentConfig], context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make(kind, config)
    expected = play(Policy(agent, context, [5.0, 6.0, 7.0], 3, engine="eager"), K + 6)
    policy = recording(agent, context, monkeypatch)
    np.testing.assert_allclose(play(policy, K + 6), expected, rtol=1e-5, atol=1e-6)
    assert policy.engine.again.recordings == 1  # type: ignore[attr-defined]
    assert policy.engine.again.replays >= 4  # of 6 past K: a cache may still grow by an action


@both_contexts
def test_other_lanes_are_recorded_anew(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make("mamba")
    plain = Policy(agent, context, [5.0, 6.0, 7.0], 3, engine="eager")
    policy = recording(agent, context, monkeypatch)
    for number, change in enumerate((lambda p: None, lambda p: p.keep([0, 2]), Policy.reset), 1):
        change(plain), change(policy)
        np.testing.assert_allclose(play(policy, K + 6), play(plain, K + 6), rtol=1e-5, atol=1e-6)
        assert policy.engine.again.recordings == min(number, 2)  # type: ignore[attr-defined]


def test_an_agent_that_cannot_be_recorded_acts_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tried = []

    def refuse(function: Function, inputs: list[Tensor]) -> tuple:
        tried.append(function)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    agent = make("attention")
    plain = Policy(agent, "stream", [5.0, 6.0, 7.0], 3, engine="eager")
    policy = recording(agent, "stream", monkeypatch)
    policy.engine.record = refuse  # type: ignore[attr-defined]
    assert np.array_equal(play(policy, K + 6), play(plain, K + 6))
    said = capsys.readouterr().err
    assert said.count("operation not permitted when stream is capturing") == 1
    assert "and more" not in said and len(tried) == 1
