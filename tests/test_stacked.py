"""Several seeds trained at once are what each of them is alone, and go on alone."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import frame_episodes, toy_episodes, write_npz
from small_agents import every_pair

from decision_seq.agents import AgentConfig
from decision_seq.cli import main
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.errors import UserError
from decision_seq.files import read_jsonl
from decision_seq.model.encoders import ImageEncoderConfig
from decision_seq.model.encoders.mixers import PatchMixerConfig
from decision_seq.ops.graphs import Record
from decision_seq.run_config import RunConfig, load_run_config, run_config, write_run_config
from decision_seq.run_folder import read_index
from decision_seq.training.checkpoint import load_state
from decision_seq.training.distributed import World
from decision_seq.training.log import NoLog
from decision_seq.training.loop import Run, fresh_learner, train
from decision_seq.training.samplers import make_samplers
from decision_seq.training.stacked import Stepper, train_seeds
from decision_seq.training.step import gradient_step

CPU = torch.device("cpu")
SEEDS = (3, 1)


def config_for(file: Path, **fields: Any) -> RunConfig:
    """A small run with dropout, clipped gradients and a moving average of the weights."""
    base = {
        "env": "point-run",
        "data": {"sources": [str(file)], "validation_fraction": 0.1},
        "agent": {
            "kind": "return_conditioned",
            "context_length": 4,
            "returns": {"scale": 20},
            "backbone": {"kind": "mamba", "width": 16, "layers": 2, "dropout": 0.2},
        },
        "train": {
            "steps": 6,
            "batch_size": 5,
            "learning_rate": 3e-3,
            "warmup_steps": 2,
            "log_interval": 1,
            "checkpoint_interval": 3,
            "gradient_clip": 0.5,
            "ema": 0.9,
        },
        "eval": {"targets": [5], "episodes": 1},
    }
    return run_config(base, fields, "test")


def runs_of(config: RunConfig, store: EpisodeStore, seeds: tuple[int, ...] = SEEDS) -> list[Run]:
    """Without folders."""
    runs = []
    for own in (replace(config, seed=seed) for seed in seeds):
        learner = fresh_learner(own, store, CPU, World())
        training, _ = make_samplers(own, store, CPU)
        runs.append(Run(own, Path(), learner, training, {}, NoLog(), None))
    return runs


def leaves(state: Any, name: str = "") -> dict[str, torch.Tensor]:
    """The numbers of a training state by where they are."""
    if isinstance(state, dict | list):
        pairs = state.items() if isinstance(state, dict) else enumerate(state)
        parts = [leaves(value, f"{name}.{key}") for key, value in pairs]
        return {key: leaf for part in parts for key, leaf in part.items()}
    return {name: torch.as_tensor(state)} if isinstance(state, torch.Tensor | int | float) else {}


def assert_close(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Training states, to rounding: random numbers and step counts are the same."""
    here, there = leaves(actual), leaves(expected)
    assert not there.keys() - here.keys()  # weights without a gradient have no moments
    for name, tensor in there.items():
        if name.endswith("mixer.gates.bias"):  # mLSTM's norm takes it out: its gradient is rounding
            continue
        torch.testing.assert_close(here[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def check(
    config: RunConfig,
    store: EpisodeStore,
    steps: int = 3,
    seeds: tuple[int, ...] = SEEDS,
    compared: Iterable[str] = (),
    record: Record | None = None,
) -> list[Run]:
    """Gradient steps of all seeds at once, compared with those of one after the other: the whole
    training state, or those parts of it."""
    stacked, alone = runs_of(config, store, seeds), runs_of(config, store, seeds)
    stepper = Stepper(record)
    for _ in range(steps):
        norms = torch.stack(stepper(stacked))
        expected = [gradient_step(run.learner, run.training, run.config) for run in alone]
        torch.testing.assert_close(
            norms, torch.stack(expected), rtol=1e-4, atol=1e-5, equal_nan=True
        )
    for here, there in zip(stacked, alone, strict=True):
        actual, expected_state = here.learner.state(), there.learner.state()
        for part in compared or expected_state:
            assert_close({part: actual[part]}, {part: expected_state[part]})
    return stacked


@every_pair
def test_steps_at_once_are_those_of_each_seed(
    kind: str, config: type[AgentConfig], toy_store: EpisodeStore, toy_file: Path
) -> None:
    agent = {"kind": config.kind, "backbone": {"kind": kind}}
    check(config_for(toy_file, agent=agent), toy_store)


@pytest.mark.parametrize("encoder", sorted(ImageEncoderConfig.registry))
def test_frames_are_shifted_for_each_seed(encoder: str, tmp_path: Path) -> None:
    file = write_npz(tmp_path / "frames.npz", frame_episodes([9, 7, 8]))
    patch = (
        {"patch": 4} if issubclass(ImageEncoderConfig.registry[encoder], PatchMixerConfig) else {}
    )
    chosen = {"kind": encoder, "random_shift": 3, **patch}
    agent = {"encoder": chosen, "backbone": {"kind": "attention"}}
    # weights whose gradient is rounding, as a bias has before a norm, go where it happens to point
    parts = ("optimizer", "torch_rng", "loss_sum")
    check(config_for(file, agent=agent), open_store([str(file)]), steps=1, compared=parts)


@pytest.mark.parametrize("scan", ["torch", "reference"])
def test_scans_without_the_c_kernels(
    scan: str, toy_store: EpisodeStore, toy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without an average of the weights: the agent is then its own."""
    monkeypatch.setenv("DECISION_SEQ_SCAN", scan)
    check(config_for(toy_file, train={"ema": None}), toy_store)


def test_mixed_precision(toy_store: EpisodeStore, toy_file: Path) -> None:
    config = config_for(toy_file, train={"precision": "bfloat16", "ema": None})
    stacked, alone = runs_of(config, toy_store), runs_of(config, toy_store)
    norms = torch.stack(Stepper()(stacked))
    expected = [gradient_step(run.learner, run.training, run.config) for run in alone]
    torch.testing.assert_close(norms, torch.stack(expected), rtol=2e-2, atol=0)


def test_a_run_of_many_goes_on_alone_and_back(toy_file: Path, tmp_path: Path) -> None:
    """Rows, checkpoints and what they can be resumed to; one seed was interrupted earlier."""
    config = config_for(toy_file)
    longer = replace(config, train=replace(config.train, steps=12))
    assert train_seeds(config, SEEDS, tmp_path, CPU)
    for seed in SEEDS:
        train(replace(config, seed=seed), tmp_path / f"alone{seed}", CPU)
    train(replace(longer, seed=1), tmp_path / "seed1", CPU, resume=True)  # now at step 12
    further = replace(config, train=replace(config.train, steps=15))
    assert train_seeds(further, SEEDS, tmp_path, CPU, resume=True)  # from steps 6 and 12
    for seed in SEEDS:
        one, other = tmp_path / f"seed{seed}", tmp_path / f"alone{seed}"
        train(replace(further, seed=seed), other, CPU, resume=True)
        assert_close(load_state(one), load_state(other))
        rows = (read_jsonl(run / "metrics.jsonl") for run in (one, other))
        for here, there in zip(*rows, strict=True):
            assert here.keys() == there.keys()
            for name in here.keys() - {"steps_per_second", "peak_memory_mib"}:
                assert here[name] == pytest.approx(there[name], rel=1e-4, abs=1e-5), name
        sizes = [(r / "checkpoints/step-00000015/state.pt").stat().st_size for r in (one, other)]
        assert sizes[0] < 1.05 * sizes[1]  # not with the other seeds' weights
        assert read_index(one)["last"] == {"step": 15, "validation_loss": pytest.approx(
            read_index(other)["last"]["validation_loss"], rel=1e-4
        )}  # fmt: skip


def test_a_bad_batch_is_that_of_one_seed(tmp_path: Path) -> None:
    """The seed that meets it skips as many as it may, or stops; the others train to the end."""
    episodes = toy_episodes(20)
    episodes.rewards[int(episodes.lengths[0]) - 1] = 1e37  # a return whose square is infinite
    file = write_npz(tmp_path / "spoilt.npz", episodes)
    lenient = config_for(file, train={"skip_nonfinite": 9})
    seeds = tuple(range(4))
    runs = check(lenient, open_store([str(file)]), steps=6, seeds=seeds)
    skipped = {run.config.seed: float(run.learner.guard.skipped) for run in runs}
    unlucky, lucky = max(seeds, key=skipped.get), min(seeds, key=skipped.get)  # type: ignore[arg-type]
    assert skipped[unlucky] >= 1 and skipped[lucky] == 0
    with pytest.raises(UserError, match=f"seed{unlucky}: the loss is nan"):
        train_seeds(config_for(file), (unlucky, lucky), tmp_path, CPU)
    assert read_index(tmp_path / f"seed{lucky}")["last"]["step"] == 6
    assert list((tmp_path / f"seed{unlucky}" / "nonfinite").iterdir())


@pytest.mark.parametrize("images", [False, True])
def test_each_seed_is_guided_by_its_own_values(
    toy_file: Path, tmp_path: Path, images: bool
) -> None:
    values = {"values": {"steps": 20, "batch_size": 16, "width": 8}}
    agent = {"guidance": {"q_scale": 0.5}, "advantage_weight": 1.0}
    if images:
        toy_file = write_npz(tmp_path / "frames.npz", frame_episodes([9, 12, 11]))
        values = {"values": {"steps": 2, "batch_size": 4, "width": 8}, "env": None}
    # small steps: where a gradient is almost 0, AdamW makes as much of its rounding as of any other
    config = config_for(toy_file, agent=agent, train={"steps": 3, "learning_rate": 1e-3}, **values)
    assert train_seeds(config, SEEDS, tmp_path, CPU)
    for seed in SEEDS:
        train(replace(config, seed=seed), tmp_path / f"alone{seed}", CPU)
        states = (load_state(tmp_path / f"{name}{seed}") for name in ("seed", "alone"))
        assert_close(*states)
    critics = [(tmp_path / f"seed{seed}" / "values.safetensors").read_bytes() for seed in SEEDS]
    assert critics[0] != critics[1]


def test_the_command_takes_a_folder_for_each_seed(
    toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_run_config(config_for(toy_file, train={"steps": 2}), tmp_path / "run.yaml")
    command = ["decision-seq", "train", str(tmp_path / "run.yaml"), "--device", "cpu"]
    command += ["--out", str(tmp_path / "{seed}th"), "--seeds", "4", "5"]
    monkeypatch.setattr(sys, "argv", command)
    main()
    assert f"next: decision-seq evaluate {tmp_path / '4th'}" in capsys.readouterr().out
    for seed in (4, 5):
        assert load_run_config(tmp_path / f"{seed}th" / "config.yaml").seed == seed


def test_what_cannot_be_trained_at_once_is_said(
    toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="--seeds 1 1: names a seed twice"):
        train_seeds(config_for(toy_file), (1, 1), tmp_path, CPU)
    with pytest.raises(UserError, match="--seeds cannot carry a state"):
        train_seeds(config_for(toy_file, train={"stream": True}), SEEDS, tmp_path, CPU)
    two = contextlib.nullcontext((World(0, 2), CPU))
    monkeypatch.setattr("decision_seq.training.stacked.joined", lambda device: two)
    with pytest.raises(UserError, match="--seeds trains in one process"):
        train_seeds(config_for(toy_file), SEEDS, tmp_path, CPU)
