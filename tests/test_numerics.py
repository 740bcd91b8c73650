"""What is not finite stops training with a place and a file, or is skipped and changes nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_episodes, write_npz
from test_train import config_for, weights

import decision_seq.training.loop as loop
from decision_seq.agents import SequenceAgent
from decision_seq.data.store import open_store
from decision_seq.errors import UserError
from decision_seq.files import read_jsonl
from decision_seq.run_config import RunConfig
from decision_seq.training.faults import FiniteGuard, reproduce, stop_for_fault
from decision_seq.training.loop import train
from decision_seq.training.optim import make_optimizer
from decision_seq.training.samplers import make_samplers
from decision_seq.training.step import Learner, gradient_step

CPU = torch.device("cpu")


def poison(monkeypatch: pytest.MonkeyPatch, bad_steps: set[int]) -> None:
    """The loss of these batches becomes NaN, as a division by zero inside a model would make it."""
    original = loop.gradient_step

    def step(learner: Learner, sampler: Any, config: RunConfig) -> torch.Tensor:
        agent = learner.agent
        loss = type(agent).loss
        factor = math.nan if learner.step in bad_steps else 1.0
        agent.loss = lambda batch: loss(agent, batch) * factor  # type: ignore[method-assign]
        try:
            return original(learner, sampler, config)
        finally:
            del agent.loss

    monkeypatch.setattr(loop, "gradient_step", step)


def test_a_bad_batch_stops_with_step_windows_and_file(
    toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {13})
    config = config_for(toy_file)
    with pytest.raises(UserError, match=r"loss is .* at step 13: .*windows \(episode:step\) \d+:"):
        train(config, tmp_path / "run", CPU)
    folder = tmp_path / "run" / "nonfinite" / "step-00000013"
    fault = json.loads((folder / "fault.json").read_text())
    assert fault["step"] == 13 and len(fault["windows"]) == 16
    store = open_store([str(toy_file)])
    with np.load(folder / "batch.npz") as file:
        for i, window in enumerate(fault["windows"]):
            row = store.offsets[window["episode"]] + window["step"]
            assert np.array_equal(file["observations"][i, 0], store.observations[row])
    loss, norm = reproduce(str(folder))  # as one types it
    assert f"{loss}" == fault["loss"] and f"{norm}" == fault["gradient_norm"]
    # what was saved before is whole: the run goes on from there and meets the batch again
    assert loop.read_summary(tmp_path / "run" / "dataset.json")
    with pytest.raises(UserError, match=r"at step 13.*skip_nonfinite.*another --out"):
        train(config, tmp_path / "run", CPU, resume=True)
    # as the sentence says: one more batch may pass in this folder, another rate is another run
    other = dataclasses.replace(config.train, learning_rate=1e-9)
    with pytest.raises(UserError, match=r"other settings.*another --out"):
        train(dataclasses.replace(config, train=other), tmp_path / "run", CPU, resume=True)
    patient = dataclasses.replace(config.train, skip_nonfinite=1)
    assert train(dataclasses.replace(config, train=patient), tmp_path / "run", CPU, resume=True)


def test_skipped_batches_change_nothing_and_are_counted(
    toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {5, 7})
    with pytest.raises(UserError, match="at step 7 after 1 skipped"):
        train(config_for(toy_file, skip_nonfinite=1), tmp_path / "one", CPU)
    train(config_for(toy_file, skip_nonfinite=2, log_interval=3), tmp_path / "two", CPU)
    rows = [r for r in read_jsonl(tmp_path / "two" / "metrics.jsonl") if "loss" in r]
    assert [r.get("skipped_batches", 0) for r in rows] == [0, 1, 2, 2, 2, 2]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    # resumed in between: the same weights and the same count
    for steps in (6, 20):
        config = config_for(toy_file, skip_nonfinite=2, log_interval=3, steps=steps)
        train(config, tmp_path / "parts", CPU, resume=True)
    for name, tensor in weights(tmp_path / "two").items():
        assert torch.equal(tensor, weights(tmp_path / "parts")[name]), name


@pytest.mark.parametrize("where", ["loss", "norm"])
def test_the_optimiser_leaves_everything_alone(where: str, toy_file: Path) -> None:
    config = config_for(toy_file, skip_nonfinite=5, gradient_clip=1e9)
    learner, sampler = fresh(config)
    gradient_step(learner, sampler, config)
    before = {n: t.clone() for n, t in learner.agent.state_dict().items()}
    moments = [t.clone() for s in learner.optimizer.state.values() for t in s.values()]
    parameter = learner.agent.action_head.weight
    if where == "loss":
        handle = learner.agent.action_head.register_forward_hook(lambda m, i, o: o * math.inf * 0)
    else:  # the loss is finite, a gradient is not
        handle = parameter.register_hook(lambda gradient: gradient * math.inf)  # type: ignore
    gradient_step(learner, sampler, config)
    handle.remove()
    for name, tensor in learner.agent.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    after = [t for s in learner.optimizer.state.values() for t in s.values()]
    assert all(torch.equal(a, b) for a, b in zip(after, moments, strict=True))
    assert learner.guard.tripped() is None and float(learner.guard.skipped) == 1
    gradient_step(learner, sampler, config)
    assert not torch.equal(parameter, before["action_head.weight"])


def test_after_the_last_allowed_batch_the_weights_stand_still() -> None:
    """On a GPU the flag is looked at later: steps in between must not move what will be saved."""
    guard = FiniteGuard(1, CPU)
    fine, bad = torch.tensor(1.0), torch.tensor(math.nan)
    flags = [float(guard.judge(i, x, fine)) for i, x in enumerate([fine, bad, fine, bad, fine])]
    assert flags == [0, 1, 0, 1, 1]
    assert guard.tripped() == 3 and float(guard.skipped) == 2


def fresh(config: RunConfig) -> tuple[Learner, Any]:
    torch.manual_seed(0)
    store = open_store(config.data.sources)
    agent = SequenceAgent.for_dataset(config.agent, store)
    optimizer = make_optimizer(agent, config.train)
    guard = FiniteGuard(config.train.skip_nonfinite, CPU)
    learner = Learner(agent, agent, optimizer, guard, torch.zeros(()), torch.zeros(()))
    return learner, make_samplers(config, store, CPU)[0]


def test_overflow_of_bfloat16_is_shown(tmp_path: Path) -> None:
    """Logits that float32 holds and bfloat16 rounds to infinity: the sentence names the cure."""
    episodes = random_episodes([8, 8, 8], width=4)
    actions = np.arange(24) % 2
    file = write_npz(tmp_path / "a.npz", episodes, actions=actions)
    config = config_for(file, "pointwise", precision="bfloat16")
    learner, sampler = fresh(config)
    with torch.no_grad():
        learner.agent.action_head.weight.zero_()
        learner.agent.action_head.bias.fill_(3.4e38)
    gradient_step(learner, sampler, config)
    step = learner.guard.tripped()
    assert step == 0
    with pytest.raises(UserError, match=r"bfloat16 overflows, in float32 .* is 0\.6931"):
        stop_for_fault(step, learner.agent, sampler, config, tmp_path / "run", 0)


def test_weights_that_are_broken_already_are_named(toy_file: Path, tmp_path: Path) -> None:
    learner, sampler = fresh(config_for(toy_file))
    with torch.no_grad():
        learner.agent.action_head.bias[0] = math.nan
    with pytest.raises(UserError, match="weights hold NaN or infinity already, first action_head"):
        stop_for_fault(0, learner.agent, sampler, config_for(toy_file), tmp_path / "run", 0)


def test_windows_that_overflow_by_themselves_are_counted(tmp_path: Path) -> None:
    episodes = random_episodes([6] * 20, width=2, action_dim=1)
    episodes.rewards[9] = 3e38  # the sum of this episode is beyond what a network can square
    file = write_npz(tmp_path / "a.npz", episodes)
    config = config_for(file)
    with pytest.raises(UserError, match=r"\d+ of 16 windows give it by themselves"):
        train(config, tmp_path / "run", CPU)
