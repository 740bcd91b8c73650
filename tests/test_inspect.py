"""`inspect`: derivatives, lags and maps; its files, its table and its part of a report."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_episodes, write_npz
from test_cli import SMALL, TOY, refused, run
from torch import Tensor, nn

from decision_seq.agents import AgentConfig, SequenceAgent
from decision_seq.agents.behaviour_cloning import BehaviourCloningConfig
from decision_seq.agents.max_return import MaxReturnConfig
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.backbones import BackboneConfig
from decision_seq.backbones.attention import AttentionConfig
from decision_seq.backbones.block import Block
from decision_seq.backbones.contract import EVERY, LayerState, Layout, Mixer
from decision_seq.backbones.mamba import MambaConfig
from decision_seq.backbones.pointwise import PointwiseConfig
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.errors import UserError
from decision_seq.eval.inspect.influence import (
    full_windows,
    jacobian_norms,
    measure_influence,
    view_layers,
)
from decision_seq.eval.inspect.numbers import read_inspection
from decision_seq.eval.inspect.run import Subject, inspect_agent, to_json
from decision_seq.run_config import DataConfig, RunConfig

WEIGHTS = (1.0, 0.0, 0.5, 0.25, 0.0, 0.25)  # of the hand-built mixer, by lag


class LagMixer(Mixer):
    """y_l = sum of WEIGHTS[k] x_{l - k}; with `leak`, plus x_{l + 1}."""

    def __init__(self, leak: bool) -> None:
        super().__init__()
        self.leak = leak

    def forward(self, x: Tensor) -> Tensor:
        return self.token_map(x)[:, 0] @ x

    def token_map(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        diagonals = [(w, -k) for k, w in enumerate(WEIGHTS)] + [(1.0, 1)] * self.leak
        parts = [w * torch.diag(torch.ones(length - abs(k)), k) for w, k in diagonals]
        return torch.stack(parts).sum(0).expand(len(x), 1, -1, -1)

    def memory_length(self, x: Tensor) -> Tensor:
        return torch.tensor([*range(1, 101), math.inf]).expand(*x.shape[:2], -1)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        raise AssertionError("is not asked for")

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        raise AssertionError("is not asked for")


class MixerOnly(Block):
    """A block without residual, norms and MLP, so that the mixer alone decides."""

    def forward(self, x: Tensor, read: slice = EVERY) -> Tensor:
        return self.mixer(x)[:, read]


@dataclass(frozen=True)
class LagConfig(BackboneConfig):
    """Not registered: it cannot stream."""

    kind = "lag"
    leak: bool = False

    def make_mixer(self, layout: Layout) -> Mixer:
        return LagMixer(self.leak)

    def make_block(self, layout: Layout, layer: int) -> Block:
        return MixerOnly(self.make_mixer(layout), self)


def make_agent(store: EpisodeStore, config: AgentConfig) -> SequenceAgent:
    torch.manual_seed(0)
    return SequenceAgent.for_dataset(config, store).eval()


def lag_agent(store: EpisodeStore, leak: bool = False) -> SequenceAgent:
    backbone = LagConfig(width=8, layers=1, leak=leak)
    agent = make_agent(store, ReturnConditionedConfig(context_length=6, backbone=backbone))
    agent.backbone.norm = nn.Identity()  # type: ignore[assignment]
    return agent


def subject(store: EpisodeStore, agent: SequenceAgent) -> Subject:
    config = RunConfig(env="point-run", data=DataConfig(("x",)), agent=agent.config)
    return Subject(config, agent, store, "untrained", 0)


@pytest.mark.parametrize(
    "config",
    [
        ReturnConditionedConfig(context_length=4, backbone=MambaConfig(width=8, layers=2)),
        BehaviourCloningConfig(context_length=4, backbone=MambaConfig(width=8, layers=1)),
        MaxReturnConfig(context_length=4, backbone=AttentionConfig(width=8, layers=2)),
    ],
    ids=lambda config: config.kind,
)
def test_jacobian_against_finite_differences(toy_store: EpisodeStore, config: AgentConfig) -> None:
    agent = make_agent(toy_store, config)
    for mixer in (module for module in agent.modules() if isinstance(module, Mixer)):
        for linear in (module for module in mixer.modules() if isinstance(module, nn.Linear)):
            linear.weight.data *= 12  # untrained, the past hardly matters
    batch = full_windows(toy_store, agent, 4, count=2, seed=0)
    values = agent.preprocess(batch.observations, batch.actions, batch.returns_to_go)
    read = 3 * len(config.tokens) + agent.action_position

    @torch.no_grad()
    def action(tokens: Tensor) -> Tensor:
        return agent.predict(agent.backbone(tokens)[:, read])

    tokens = agent.embedding(values, batch.timesteps).detach()  # [2, L, 8]
    expected = torch.zeros(tokens.shape[:2])
    for position in range(tokens.shape[1]):
        for feature in range(8):
            nudge = torch.zeros_like(tokens)
            nudge[:, position, feature] = 3e-3
            slope = (action(tokens + nudge) - action(tokens - nudge)) / 6e-3
            expected[:, position] += slope.square().sum(-1)
    measured = jacobian_norms(agent, batch).float()
    assert measured[:, :read].mean() > 1e-3  # there is something to see
    torch.testing.assert_close(measured, expected.sqrt(), rtol=0.02, atol=1e-4)
    assert (measured[:, read + 1 :] == 0).all()


def test_a_known_lag_structure_gives_the_known_curve(toy_store: EpisodeStore) -> None:
    agent = lag_agent(toy_store)
    influence = measure_influence(agent, full_windows(toy_store, agent, 6, 70, seed=0))
    assert influence.norms.shape == (70, 17)  # 6 steps of 3 tokens, without the last action
    relative = influence.by_lag / influence.by_lag[0]
    np.testing.assert_allclose(relative, [*WEIGHTS, *[0] * 11], rtol=1e-5)
    assert influence.tokens[:4] == ["observation", "return_to_go", "action", "observation"]
    assert influence.steps.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]
    by_step = influence.by_step / influence.by_lag[0]
    np.testing.assert_allclose(by_step, [1, np.hypot(0.5, 0.25), 0.25, 0, 0, 0], rtol=1e-5)
    assert influence.half_life() == 2  # half of 0.5 + 0.25 + 0.25


def test_a_leak_of_the_future_would_be_seen(toy_store: EpisodeStore) -> None:
    for leak in (False, True):
        agent = lag_agent(toy_store, leak)
        norms = jacobian_norms(agent, full_windows(toy_store, agent, 6, 2, seed=0))
        assert (norms[:, -1] > 0).all() == leak  # the action taken at the last step


@pytest.mark.parametrize("kind", sorted(BackboneConfig.registry))
def test_every_backbone_can_be_inspected(toy_store: EpisodeStore, kind: str) -> None:
    backbone = BackboneConfig.registry[kind](width=16, layers=2)
    agent = make_agent(toy_store, ReturnConditionedConfig(context_length=5, backbone=backbone))
    for length in (5, 8):  # longer than in training, too
        batch = full_windows(toy_store, agent, length, 2, seed=0)
        assert (jacobian_norms(agent, batch)[:, -1] == 0).all()
        inspection = inspect_agent(subject(toy_store, agent), 0, None, length)
        assert inspection.influence.by_lag[0] > 0
        tokens = 3 * length
        for view in inspection.layers:
            if view.token_map is not None:
                assert view.token_map.shape[1:] == (tokens, tokens)
        json.dumps(to_json(inspection), allow_nan=False)


def test_without_mixing_the_past_has_no_influence(toy_store: EpisodeStore) -> None:
    backbone = PointwiseConfig(width=8, layers=1)
    agent = make_agent(toy_store, ReturnConditionedConfig(context_length=5, backbone=backbone))
    influence = measure_influence(agent, full_windows(toy_store, agent, 5, 4, seed=0))
    assert influence.half_life() is None and (influence.by_lag[1:] == 0).all()


def test_the_published_initialisation_forgets(toy_store: EpisodeStore) -> None:
    far = {}
    for init in ("mamba", "published"):
        backbone = MambaConfig(width=32, layers=2, init=init)  # type: ignore[arg-type]
        agent = make_agent(toy_store, ReturnConditionedConfig(context_length=12, backbone=backbone))
        influence = measure_influence(agent, full_windows(toy_store, agent, 12, 8, seed=0))
        far[init] = influence.by_lag[30] / influence.by_lag[0]
    assert far["published"] < far["mamba"] / 1000


def test_maps_and_memory_of_the_window_asked_for(toy_store: EpisodeStore) -> None:
    agent = lag_agent(toy_store)
    inspection = inspect_agent(subject(toy_store, agent), episode=3, step=9, context_length=None)
    assert (inspection.first_step, inspection.last_step) == (4, 9)
    (layer,) = to_json(inspection)["layers"]
    # row 16 (the last observation) of weights 1, 0, 1/2, 1/4, 0, 1/4 by lag
    assert layer["mean_lag"] == pytest.approx([(2 * 0.5 + 3 * 0.25 + 5 * 0.25) / 2])
    assert layer["memory_tokens"] == pytest.approx({"10%": 11, "50%": 51, "90%": 91})
    assert inspection.layers[0].memory is not None
    assert inspection.layers[0].memory.max() == 1e9  # JSON has no infinity
    early = inspect_agent(subject(toy_store, agent), episode=3, step=2, context_length=None)
    assert (early.first_step, early.last_step) == (0, 2)


def test_the_window_shown_is_the_episode_s(toy_store: EpisodeStore) -> None:
    agent = lag_agent(toy_store)
    seen: list[Tensor] = []
    agent.embedding.register_forward_hook(lambda m, i, o: seen.append(i[0]["observation"]))
    inspect_agent(subject(toy_store, agent), episode=3, step=9, context_length=None)
    rows = toy_store.offsets[3] + np.arange(4, 10)
    raw = seen[-1][0] * agent.observation_std + agent.observation_mean
    np.testing.assert_allclose(raw, toy_store.observations[rows], rtol=1e-5, atol=1e-5)


def test_windows_are_full_and_all_are_reachable(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "few.npz", random_episodes([3, 5, 2, 4]))
    store = open_store([str(path)])
    agent = make_agent(store, ReturnConditionedConfig(backbone=PointwiseConfig(width=8)))
    batch = full_windows(store, agent, 4, 64, seed=0)
    assert batch.mask.all()
    starts = {tuple(row) for row in batch.observations[:, 0].tolist()}
    allowed = {tuple(store.observations[i].tolist()) for i in (3, 4, 10)}
    assert starts == allowed
    with pytest.raises(UserError, match="longest episode has 5 steps"):
        full_windows(store, agent, 6, 1, seed=0)


@pytest.mark.parametrize("kind", ["attention", "mamba"])
def test_layers_of_an_agent_of_observations_alone_are_seen(
    toy_store: EpisodeStore, kind: str
) -> None:
    """All its tokens are read, which without gradients is one call for all blocks."""
    backbone = BackboneConfig.registry[kind](width=8, layers=2)
    agent = make_agent(
        toy_store, BehaviourCloningConfig(tokens=("observation",), backbone=backbone)
    )
    views = view_layers(agent, full_windows(toy_store, agent, 6, 1, seed=0))
    assert [view.layer for view in views] == [0, 1]


def test_a_repeated_mixer_is_seen_once(toy_store: EpisodeStore) -> None:
    agent = lag_agent(toy_store)
    (block,) = agent.backbone.blocks
    twice = nn.Sequential(block.mixer, block.mixer)
    block.forward = lambda x, read=EVERY: twice(x)[:, read]  # type: ignore[method-assign]
    views = view_layers(agent, full_windows(toy_store, agent, 6, 1, seed=0))
    assert [(view.layer, view.mixer) for view in views] == [(0, "LagMixer")]


# ---- the command -----------------------------------------------------------------------------


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command; returns (exit code, stdout, stderr)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = run(*map(str, arguments), monkeypatch=monkeypatch)
        return code, *capsys.readouterr()

    return call


def test_inspect_a_run_and_report_it(cli: Any, toy_file: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "run", tmp_path / "report.html"
    data = f"data.sources=[{toy_file}]"
    cli("train", TOY, "--set", data, *SMALL, "--out", out)
    cli("evaluate", out)
    cli("report", out, "--out", report)
    assert "What it looks back at" not in report.read_text()

    code, text, err = cli("inspect", out, "--episode", "2", "--step", "12")
    assert code == 0, err
    numbers = read_inspection(out / "inspect.json")
    assert numbers is not None
    assert (numbers["checkpoint"], numbers["step"], numbers["context_length"]) == ("last", 30, 10)
    assert numbers["window"] == {"episode": 2, "first_step": 3, "last_step": 12}
    assert numbers["backbone"]["kind"] == "mamba" and numbers["dataset"]["name"] == "toy"
    rows = numbers["influence"]["by_lag"]
    assert [row["lag"] for row in rows] == list(range(29))
    assert set(rows[0]) == {"lag", "steps", "token", "mean", "std"}
    assert [row["steps"] for row in numbers["influence"]["by_step"]] == list(range(10))
    assert [layer["layer"] for layer in numbers["layers"]] == [0, 1]
    assert f"{rows[20]['mean']:.3g}" in text and "Half of the past" in text
    svg = (out / "inspect-influence.svg").read_text()
    assert svg.startswith("<svg") and "return-to-go" in svg
    assert not list(out.glob(".*tmp"))

    assert cli("report", out, "--out", report)[0] == 0
    html = report.read_text()
    assert "What it looks back at" in html and "influence on the action" in html
    half = numbers["influence"]["half_life"]
    assert f"{half['tokens']} tokens ({half['steps']} steps)" in html and "not measured" in html
    cli("inspect", out, "--context-length", "20")
    table = tmp_path / "table.md"
    assert cli("report", out, "--out", table)[0] == 0
    again = read_inspection(out / "inspect.json")
    assert again is not None
    rows = again["influence"]["by_lag"]
    line = next(
        part
        for part in table.read_text().splitlines()
        if "last, step 30" in part and "tokens (" in part
    )
    assert line.endswith(f"| {rows[30]['mean'] / rows[0]['mean']:.2g} |") and "| 20 |" in line

    refused(cli("inspect", out, "--set", "agent.context_length=5"), "--set cannot change")
    refused(cli("inspect", out, "--episode", "60"), "episode is 60", "60, counted from 0")
    refused(cli("inspect", out, "--step", "20"), "step is 20", "20 steps")
    refused(cli("inspect", out, "--context-length", "21"), "20 steps", "--context-length")
    refused(cli("inspect", out, "--context-length", "0"), "context_length is 0")
    refused(cli("inspect", tmp_path), "no trained run")
    wide = write_npz(tmp_path / "wide.npz", random_episodes([30, 30], width=5))
    refused(cli("inspect", out, "--set", f"data.sources=[{wide}]"), "wide", "do not fit")
    for damaged in ("", "[]", '{"influence": {"by_lag": [3]}}'):
        (out / "inspect.json").write_text(damaged)
        refused(cli("report", out, "--out", report), "inspect.json", "decision-seq inspect")


def test_inspect_an_untrained_agent(cli: Any, toy_file: Path, tmp_path: Path) -> None:
    arguments = ["inspect", TOY, "--set", f"data.sources=[{toy_file}]"]
    refused(cli(*arguments), "--out")
    attention = ["--set", "agent.backbone={kind: attention, heads: 2, width: 16, layers: 2}"]
    code, text, err = cli(*arguments, *attention, "--out", tmp_path / "seen")
    assert code == 0, err
    assert "untrained (step 0)" in text
    numbers = read_inspection(tmp_path / "seen" / "inspect.json")
    assert numbers is not None and numbers["checkpoint"] == "untrained"
    assert numbers["backbone"]["heads"] == 2
    cli(*arguments, *attention, "--out", tmp_path / "again")
    assert read_inspection(tmp_path / "again" / "inspect.json") == numbers
    cli(*arguments, *attention, "--set", "seed=1", "--out", tmp_path / "other")
    assert read_inspection(tmp_path / "other" / "inspect.json") != numbers
    assert read_inspection(tmp_path / "inspect.json") is None


def test_delayed_returns_are_seen_as_in_training(cli: Any, toy_file: Path, tmp_path: Path) -> None:
    seen = []
    for delayed in ("true", "false"):
        out = tmp_path / delayed
        delay = ["--set", f"agent.returns.delayed={delayed}", "--out", out]
        code, _, err = cli("inspect", TOY, "--set", f"data.sources=[{toy_file}]", *delay)
        assert code == 0, err
        seen.append(read_inspection(out / "inspect.json"))
    assert seen[0]["influence"] != seen[1]["influence"]
