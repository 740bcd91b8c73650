"""Gradient steps recorded as one are those of one by one; on a CPU by a tape, see tape.py."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import toy_episodes, write_npz
from small_agents import AGENTS, KINDS
from tape import Tape
from test_stacked import CPU, SEEDS, assert_close, check, config_for, runs_of

from decision_seq.agents import SequenceAgent
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.files import read_jsonl
from decision_seq.run_config import RunConfig
from decision_seq.training import loop, stacked
from decision_seq.training.checkpoint import load_state
from decision_seq.training.distributed import World
from decision_seq.training.loop import Run, train
from decision_seq.training.recorded import WARM_UPS, RecordedSteps, SingleSteps, can_record
from decision_seq.training.step import gradient_step

STEPS = WARM_UPS + 3
PAIRS = [
    *((kind, "return_conditioned") for kind in KINDS),
    *(("mamba", c.kind) for c in AGENTS[1:]),
]

# products alone, a scan, one seed after the other, and what a mixer keeps of its weights
APART = ("attention", "mamba", "lstm", "imixer")


def taped(config: RunConfig, store: EpisodeStore) -> tuple[Run, RecordedSteps, Tape]:
    (run,), tape = runs_of(config, store, seeds=(3,)), Tape()
    return run, RecordedSteps(SingleSteps(run.learner, run.training, config), tape), tape


def both(config: RunConfig, store: EpisodeStore, steps: int = STEPS) -> tuple[Run, Tape]:
    """Steps of a recorded run and of one that is not, compared."""
    (alone,) = runs_of(config, store, seeds=(3,))
    run, step, tape = taped(config, store)
    for _ in range(steps):
        norm, expected = step(), gradient_step(alone.learner, alone.training, config)
        torch.testing.assert_close(norm, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert_close(run.learner.state(), alone.learner.state())
    return run, tape


@pytest.mark.parametrize(("backbone", "agent"), PAIRS)
def test_recorded_steps_are_those_one_by_one(
    backbone: str, agent: str, toy_store: EpisodeStore, toy_file: Path
) -> None:
    """With dropout, clipping, a moving average and another learning rate in every step."""
    fields = {"kind": agent, "backbone": {"kind": backbone}}
    train = {"schedule": "cosine", "steps": 2 * STEPS}
    _, tape = both(config_for(toy_file, agent=fields, train=train), toy_store)
    assert (tape.recordings, tape.replays) == (1, STEPS - WARM_UPS)


@pytest.mark.parametrize(
    ("backbone", "agent"),
    [
        pytest.param(*pair, marks=() if pair[0] in APART else pytest.mark.slow, id="-".join(pair))
        for pair in PAIRS
    ],
)
def test_recorded_steps_of_several_seeds_are_those_of_each(
    backbone: str, agent: str, toy_store: EpisodeStore, toy_file: Path
) -> None:
    """Each draws its dropout from its own stream, and takes its own rate."""
    fields = {"kind": agent, "backbone": {"kind": backbone}}
    train = {"schedule": "cosine", "steps": 2 * STEPS}
    tape = Tape()
    check(config_for(toy_file, agent=fields, train=train), toy_store, STEPS, record=tape)
    assert (tape.recordings, tape.replays) == (1, STEPS - WARM_UPS)


def test_seeds_that_are_recorded_are_logged_saved_and_resumed(
    toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them from different steps on, so that one ends earlier and the other is recorded
    anew."""
    config = config_for(toy_file, train={"steps": 2 * STEPS})
    shorter = replace(config, train=replace(config.train, steps=STEPS))
    train(replace(shorter, seed=1), tmp_path / "seed1", CPU)
    for seed in SEEDS:
        train(replace(config, seed=seed), tmp_path / f"alone{seed}", CPU)
    tape = Tape()
    monkeypatch.setattr(stacked, "Stepper", partial(stacked.Stepper, tape))
    assert stacked.train_seeds(config, SEEDS, tmp_path, CPU, resume=True)
    assert tape.recordings == 2 and tape.replays == 2 * STEPS - 2 * WARM_UPS
    for seed in SEEDS:
        runs = (tmp_path / f"seed{seed}", tmp_path / f"alone{seed}")
        assert_close(*(load_state(run) for run in runs))
        here, there = (read_jsonl(run / "metrics.jsonl") for run in runs)
        losses = [[row["loss"] for row in rows if "loss" in row] for rows in (here, there)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_bad_batch_is_skipped_within_a_recording(tmp_path: Path) -> None:
    episodes = toy_episodes(5)
    episodes.rewards[episodes.lengths.cumsum() - 1] = 1e37  # a return whose square is infinite
    file = write_npz(tmp_path / "spoilt.npz", episodes)
    config = config_for(file, train={"skip_nonfinite": 3, "batch_size": 1})
    run, _ = both(config, open_store([str(file)]), steps=12)
    assert float(run.learner.guard.skipped) > 3 and run.learner.guard.tripped() >= WARM_UPS


def test_a_bad_batch_is_skipped_by_its_seed_within_a_recording(tmp_path: Path) -> None:
    episodes = toy_episodes(20)
    episodes.rewards[int(episodes.lengths[0]) - 1] = 1e37  # as in test_stacked.py
    file = write_npz(tmp_path / "spoilt.npz", episodes)
    config = config_for(file, train={"skip_nonfinite": 9})
    runs = check(config, open_store([str(file)]), steps=8, seeds=(0, 1, 2, 3), record=Tape())
    assert len({float(run.learner.guard.skipped) for run in runs}) > 1


def test_an_agent_that_looks_at_a_number_is_trained_all_the_same(
    toy_store: EpisodeStore, toy_file: Path, capsys: pytest.CaptureFixture
) -> None:
    config = config_for(toy_file)
    run, step, _ = taped(config, toy_store)
    (alone,) = runs_of(config, toy_store, seeds=(3,))
    for one in (run, alone):
        loss = one.learner.loss
        one.learner.loss = lambda batch, loss=loss: loss(batch) * float(batch.mask.any())
    for _ in range(STEPS):
        expected = gradient_step(alone.learner, alone.training, config)
        torch.testing.assert_close(step(), expected)
    assert_close(run.learner.state(), alone.learner.state())
    assert capsys.readouterr().err.count("not recorded as a CUDA graph (a number was") == 1


def test_a_recorded_run_is_logged_saved_and_resumed(
    toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation and rollouts come in between, and it ends once after a few steps."""
    config = config_for(toy_file, eval={"interval": 4}, train={"steps": 2 * STEPS})
    rolled: list[int] = []

    def on_interval(agent: SequenceAgent, step: int) -> dict[str, float]:
        rolled.append(step)
        return {"weights": sum(float(p.detach().sum()) for p in agent.parameters())}

    train(config, tmp_path / "plain", CPU, on_interval=on_interval)
    tapes = [Tape(), Tape()]
    monkeypatch.setattr(loop, "can_record", lambda learner, config: True)
    for steps, tape in zip((STEPS, 2 * STEPS), tapes, strict=True):
        monkeypatch.setattr(loop, "RecordedSteps", partial(RecordedSteps, record=tape))
        way = "auto" if steps == STEPS else "off"  # which is no other run
        part = replace(config, train=replace(config.train, steps=steps, compile=way))
        train(part, tmp_path / "run", CPU, resume=steps > STEPS, on_interval=on_interval)
    assert [tape.recordings for tape in tapes] == [1, 1] and rolled == [4, 8, 12] * 2
    assert_close(load_state(tmp_path / "run"), load_state(tmp_path / "plain"))
    rows = [read_jsonl(tmp_path / run / "metrics.jsonl") for run in ("run", "plain")]
    for here, there in zip(*rows, strict=True):
        for name in here.keys() - {"steps_per_second", "peak_memory_mib"}:
            assert here[name] == pytest.approx(there[name], rel=1e-4, abs=1e-5), name


def test_what_is_recorded(toy_store: EpisodeStore, toy_file: Path) -> None:
    config = config_for(toy_file)
    (run,) = runs_of(config, toy_store, seeds=(3,))
    assert not can_record(run.learner, config)  # on a CPU
    run.learner.agent = SimpleNamespace(device=torch.device("cuda"))  # type: ignore[assignment]
    assert can_record(run.learner, config)
    assert not can_record(run.learner, config_for(toy_file, train={"compile": "off"}))
    assert not can_record(run.learner, config_for(toy_file, train={"stream": True}))
    run.learner.world = World(0, 2)
    assert not can_record(run.learner, config)
