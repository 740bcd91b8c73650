"""The C engine at widths and lengths that are no multiples of anything, against float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from ops_inputs import needs_c

from decision_seq.agents import AgentSpec, SequenceAgent
from decision_seq.agents.behaviour_cloning import BehaviourCloningConfig
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.backbones import BackboneConfig
from decision_seq.errors import UserError
from decision_seq.policy import Policy
from decision_seq.policy.policy import EngineName
from decision_seq.settings import Context

pytestmark = needs_c
MIXERS = [
    ("mamba", dict(d_state=16)),
    ("mamba", dict(d_state=5, d_conv=1, expand=1)),
    ("mamba", dict(d_state=20, d_conv=3)),
    ("attention", dict(heads=1)),
    ("attention", dict(heads=4)),
    ("conv", dict(kernel_size=1)),
    ("conv", dict(kernel_size=7)),
    ("hybrid", dict(mixers=("conv", "mamba", "attention"))),
    ("pointwise", {}),
]


def agent_of(
    kind: str, fields: dict[str, Any], width: int = 24, sizes: tuple[int, int] = (5, 3), k: int = 4
) -> SequenceAgent:
    torch.manual_seed(width)
    backbone = BackboneConfig.registry[kind](width=width, layers=3, **fields)  # type: ignore[arg-type]
    config = ReturnConditionedConfig(context_length=k, backbone=backbone, timestep_init="published")
    observations, actions = sizes
    agent = config.agent(config, AgentSpec((observations,), actions, False, max_timestep=9))
    with torch.no_grad():
        for parameter in agent.backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return agent


def play(
    agent: SequenceAgent, context: Context, engine: EngineName, lanes: int, steps: int
) -> np.ndarray:
    """Predictions [steps, lanes, A]; lane 1 begins again at the third step."""
    draw = np.random.default_rng(1)
    agent = copy.deepcopy(agent).double() if engine == "eager" else agent
    policy = Policy(agent, context, 3.0, lanes, engine=engine)
    made = []
    for step in range(steps):
        if step == 2 and lanes > 1:
            policy.reset([1])
        observation = draw.standard_normal((lanes, agent.spec.observation_shape[0]))
        made.append(policy.act(observation, draw.random(lanes)))
    return np.stack(made)


@pytest.mark.parametrize("context", ["window", "stream"])
@pytest.mark.parametrize(
    ("kind", "fields", "width"),  # one that is a multiple of eight, and one that is not
    [(*mixer, (24, 72, 132, 4)[(i + j) % 4]) for i, mixer in enumerate(MIXERS) for j in (0, 2)],
    ids=str,
)
def test_c_is_float64(kind: str, fields: dict[str, Any], width: int, context: Context) -> None:
    agent = agent_of(kind, fields, width)
    for lanes in (1, 5):
        expected, actual = (play(agent, context, e, lanes, 12) for e in ("eager", "native"))  # type: ignore[arg-type]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("context", ["window", "stream"])
@pytest.mark.parametrize("k", [1, 2, 33])
@pytest.mark.parametrize("sizes", [(1, 1), (70, 65)])
def test_short_and_long_windows_few_and_many_numbers(
    context: Context, k: int, sizes: tuple[int, int]
) -> None:
    agent = agent_of("hybrid", {}, sizes=sizes, k=k)
    expected, actual = (play(agent, context, e, 2, k + 5) for e in ("eager", "native"))  # type: ignore[arg-type]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_window_of_one_observation_holds_no_action() -> None:
    for tokens in (("observation",), ("observation", "action")):
        backbone = BackboneConfig.registry["mamba"](width=16, layers=2)
        config = BehaviourCloningConfig(context_length=1, tokens=tokens, backbone=backbone)
        agent = config.agent(config, AgentSpec((5,), 3, False, max_timestep=9))
        expected, actual = (play(agent, "window", e, 2, 5) for e in ("eager", "native"))  # type: ignore[arg-type]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("context", ["window", "stream"])
def test_threads_and_other_lanes_change_no_bit(context: Context) -> None:
    agent = agent_of("hybrid", {}, 40)
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 7):
            torch.set_num_threads(number)
            results.append(play(agent, context, "native", 37, 9))
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_weights_that_are_not_finite_show() -> None:
    agent = agent_of("mamba", {})
    with torch.no_grad():
        agent.backbone.norm.weight[0] = torch.nan
    assert np.isnan(play(agent, "stream", "native", 1, 1)).all()


@pytest.mark.parametrize(
    ("kind", "fields", "name"),
    [
        ("gated_deltanet", {}, "GatedDeltaNet"),
        ("mlstm", {}, "MLSTM"),
        ("rg_lru", {}, "RGLRU"),
        ("mamba3", {}, "Mamba3"),
        ("mamba", {"dense": 3}, "DenseBlock"),
        ("attention", {"positions": "rotary"}, "rotary positions"),
    ],
)
def test_what_c_does_not_know_acts_by_pytorch(kind: str, fields: dict[str, Any], name: str) -> None:
    agent = agent_of(kind, fields)
    assert Policy(agent, "stream", 3.0).engine_name == "eager"
    with pytest.raises(UserError, match=f"C does not know {name}; use auto"):
        Policy(agent, "stream", 3.0, engine="native")
