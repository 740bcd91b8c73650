"""Training: learns, resumes bit for bit, stops cleanly, and never leaves half a checkpoint."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import toy_episodes, write_npz
from safetensors.torch import load_file

from decision_seq.agents import AgentSpec, load_agent
from decision_seq.backbones import BackboneConfig
from decision_seq.data.store import open_store
from decision_seq.data.transforms import hold_out
from decision_seq.data.windows import WindowSampler
from decision_seq.errors import UserError
from decision_seq.files import atomic_file, atomic_folder, exclusive, read_jsonl
from decision_seq.run_config import RunConfig, TrainConfig, run_config
from decision_seq.run_folder import agent_path, read_index, saved_steps
from decision_seq.settings import DataConfig
from decision_seq.training.checkpoint import load_state
from decision_seq.training.loop import train
from decision_seq.training.optim import learning_rate, make_optimizer
from decision_seq.training.validation import validation_loss

CPU = torch.device("cpu")


def config_for(toy_file: Path, kind: str = "mamba", **train_fields: Any) -> RunConfig:
    """A small run on the toy data."""
    return run_config(
        {
            "env": "point-run",
            "data": {"sources": [str(toy_file)], "validation_fraction": 0.1},
            "agent": {
                "kind": "return_conditioned",
                "context_length": 6,
                "returns": {"scale": 20},
                "backbone": {"kind": kind, "width": 16, "layers": 1, "dropout": 0.1},
            },
            "train": {
                "steps": 20,
                "batch_size": 16,
                "learning_rate": 3e-3,
                "warmup_steps": 5,
                "log_interval": 4,
                "checkpoint_interval": 10,
            }
            | train_fields,
        },
        {},
        "test",
    )


def without_rates(run: Path) -> list[dict[str, Any]]:
    rows = read_jsonl(run / "metrics.jsonl")
    measured = {"steps_per_second", "peak_memory_mib"}
    return [{k: v for k, v in row.items() if k not in measured} for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(agent_path(run))


def test_the_average_has_the_present_buffers(toy_file: Path, tmp_path: Path) -> None:
    """An iMixer's spectral norms would otherwise be those of the weights it began with."""
    train(config_for(toy_file, "imixer", steps=10, ema=0.9), tmp_path / "run", CPU)
    state = load_state(tmp_path / "run")
    buffers = [name for name in state["agent"] if name.endswith("spectral.u")]
    assert buffers
    for name in buffers:
        assert torch.equal(state["averaged"][name], state["agent"][name])


def test_the_average_forgets_the_untrained_weights(toy_file: Path, tmp_path: Path) -> None:
    """Its decay is (1 + t) / (10 + t) until that reaches `ema`."""
    states = []
    for steps in range(1, 6):
        config = config_for(toy_file, steps=steps, ema=0.3)
        train(config, tmp_path / "run", CPU, resume=True)
        states.append(load_state(tmp_path / "run"))
    for t, (before, after) in enumerate(pairwise(states), start=1):
        decay = min(0.3, (1 + t) / (10 + t))
        for name in after["averaged"]:
            expected = decay * before["averaged"][name] + (1 - decay) * after["agent"][name]
            torch.testing.assert_close(after["averaged"][name], expected)


def test_each_source_of_a_mixture_has_a_validation_loss(tmp_path: Path) -> None:
    """That of its own held-out episodes alone, beside the mixture's, which is unchanged by it."""
    files = [
        str(write_npz(tmp_path / f"{name}.npz", toy_episodes(20, seed)))
        for name, seed in (("good", 0), ("bad", 100))
    ]
    config = config_for(Path(files[0]), steps=4, checkpoint_interval=4)
    config = dataclasses.replace(config, data=DataConfig(tuple(files), validation_fraction=0.2))
    train(config, tmp_path / "run", CPU)
    (row,) = [r for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "validation_loss" in r]
    assert list(row) == ["step", "validation_loss", "validation_loss/good", "validation_loss/bad"]
    store, agent = open_store(files), load_agent(agent_path(tmp_path / "run"))
    held_out = hold_out(np.arange(store.episodes), 0.2, config.seed)[1]
    for name, own in (("good", held_out[held_out < 20]), ("bad", held_out[held_out >= 20])):
        sampler = WindowSampler(store, own, 6, config.agent.returns, config.seed)
        expected = validation_loss(agent, sampler, config)
        assert row[f"validation_loss/{name}"] == pytest.approx(expected, rel=1e-6)
    assert row["validation_loss/good"] != row["validation_loss/bad"]


@pytest.mark.parametrize(
    ("kind", "ema"), [*((kind, None) for kind in sorted(BackboneConfig.registry)), ("mamba", 0.9)]
)
def test_resuming_continues_bit_for_bit(
    kind: str, ema: float | None, toy_file: Path, tmp_path: Path
) -> None:
    whole = config_for(toy_file, kind, steps=12, ema=ema)
    half = config_for(toy_file, kind, steps=6, ema=ema)  # stops inside a logging interval
    assert train(whole, tmp_path / "whole", CPU)
    assert train(half, tmp_path / "parts", CPU)
    assert train(whole, tmp_path / "parts", CPU, resume=True)
    mine, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name
    rows = [r for r in without_rates(tmp_path / "parts") if r["step"] != 6]
    assert rows == without_rates(tmp_path / "whole")


def test_training_learns(toy_file: Path, tmp_path: Path) -> None:
    config = config_for(toy_file, steps=120, log_interval=20, checkpoint_interval=60)
    train(config, tmp_path / "run", CPU)
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.3 * losses[0]
    validation = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert len(validation) == 2 and validation[-1] < 0.5 * losses[0]
    assert list((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize("kind", ["mamba", "attention"])
def test_in_threads_each_trains_as_alone(kind: str, toy_file: Path, tmp_path: Path) -> None:
    """Layers draw their dropout from generators that a process has one of."""
    configs = [config_for(toy_file, kind, steps=20), config_for(toy_file, kind, steps=15)]
    for i, config in enumerate(configs):
        train(config, tmp_path / f"alone{i}", CPU)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    threads = [
        threading.Thread(target=train, args=(config, tmp_path / f"beside{i}", CPU))
        for i, config in enumerate(configs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(len(configs)):
        assert without_rates(tmp_path / f"beside{i}") == without_rates(tmp_path / f"alone{i}")
        alone, beside = weights(tmp_path / f"alone{i}"), weights(tmp_path / f"beside{i}")
        assert all(torch.equal(beside[name], value) for name, value in alone.items())
    assert torch.equal(torch.get_rng_state(), before)  # the caller's draws are its own


def test_seeds_fix_everything(toy_file: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(config_for(toy_file), tmp_path / name, CPU)
    assert without_rates(tmp_path / "a") == without_rates(tmp_path / "b")
    train(RunConfig(**{**vars(config_for(toy_file)), "seed": 1}), tmp_path / "c", CPU)
    assert without_rates(tmp_path / "c") != without_rates(tmp_path / "a")


def test_last_and_best_are_kept(toy_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # the rate explodes after the warm-up, so an early checkpoint has the lowest validation loss
    config = config_for(toy_file, steps=50, learning_rate=1.0, warmup_steps=500)
    train(config, run, CPU)
    index = read_index(run)
    losses = {
        r["step"]: r["validation_loss"]
        for r in read_jsonl(run / "metrics.jsonl")
        if "validation_loss" in r
    }
    assert index["last"]["step"] == 50
    assert index["validation"]["step"] == min(losses, key=lambda step: losses[step])
    kept = {p.name for p in (run / "checkpoints").iterdir() if p.is_dir()}
    assert kept == {f"step-{index[which]['step']:08d}" for which in ("last", "validation")}
    load_agent(agent_path(run, "validation"))


def test_weights_are_kept_at_intervals(toy_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = config_for(toy_file, steps=35, checkpoint_interval=5, keep_interval=10)
    train(config, run, CPU)
    best = read_index(run)["validation"]["step"]
    assert saved_steps(run) == sorted({10, 20, 30, 35, best})
    states = {path.parent.name for path in run.glob("checkpoints/*/state.pt")}
    assert states == {"step-00000035", f"step-{best:08d}"}
    (run / "checkpoints" / "step-00000040").mkdir()  # killed before it was indexed
    (run / "checkpoints" / "step-00000040" / "agent.safetensors").touch()
    assert 40 not in saved_steps(run)
    with pytest.raises(UserError, match="keep_interval is 7; it must be 0 or a multiple of"):
        config_for(toy_file, checkpoint_interval=5, keep_interval=7)


def test_bfloat16_trains_close_to_float32(toy_file: Path, tmp_path: Path) -> None:
    curves = {}
    for precision in ("float32", "bfloat16"):
        config = config_for(toy_file, steps=40, log_interval=40, precision=precision)
        train(config, tmp_path / precision, CPU)
        curves[precision] = [r["loss"] for r in without_rates(tmp_path / precision) if "loss" in r]
    assert curves["bfloat16"] == pytest.approx(curves["float32"], rel=0.1)


def test_rollouts_on_the_way_do_not_change_training(toy_file: Path, tmp_path: Path) -> None:
    config = config_for(toy_file)
    train(config, tmp_path / "plain", CPU)
    asked = RunConfig(**{**vars(config), "eval": type(config.eval)(interval=10)})
    seen = []

    def roll(agent: torch.nn.Module, step: int) -> dict[str, float]:
        torch.rand(3)
        seen.append((step, agent.training))
        return {"return_mean": 1.0}

    train(asked, tmp_path / "rolled", CPU, on_interval=roll)
    assert seen == [(10, False), (20, False)]
    for name, tensor in weights(tmp_path / "plain").items():
        assert torch.equal(tensor, weights(tmp_path / "rolled")[name])


def test_decay_groups(toy_file: Path) -> None:
    config = config_for(toy_file)
    agent = config.agent.agent(config.agent, AgentSpec((2,), 1, False, 19))
    decayed, undecayed = make_optimizer(agent, TrainConfig()).param_groups
    names = {id(p): n for n, p in agent.named_parameters()}
    decays = {names[id(p)] for p in decayed["params"]}
    assert decayed["weight_decay"] == 1e-4 and undecayed["weight_decay"] == 0
    assert decays == {
        n
        for n, p in agent.named_parameters()
        if p.ndim >= 2 and not n.endswith("A_log") and "timestep" not in n
    }
    assert len(decayed["params"]) + len(undecayed["params"]) == len(names)


def test_learning_rate_schedule() -> None:
    config = TrainConfig(steps=30, warmup_steps=10, learning_rate=1.0, schedule="cosine")
    rates = [learning_rate(step, config) for step in range(31)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and rates[10] == 1.0
    assert rates[20] == pytest.approx(0.5) and rates[30] == pytest.approx(0, abs=1e-12)
    constant = TrainConfig(steps=30, warmup_steps=0)
    assert learning_rate(29, constant) == constant.learning_rate


def test_without_validation_the_best_is_the_last(toy_file: Path, tmp_path: Path) -> None:
    config = config_for(toy_file)
    data = dataclasses.replace(config.data, validation_fraction=0.0)
    train(dataclasses.replace(config, data=data), tmp_path / "run", CPU)
    assert read_index(tmp_path / "run")["validation"]["step"] == 20


def test_a_signal_during_a_rollout_on_the_way_is_saved(toy_file: Path, tmp_path: Path) -> None:
    config = config_for(toy_file, steps=40, checkpoint_interval=40)
    asked = dataclasses.replace(config, eval=dataclasses.replace(config.eval, interval=7))

    def roll(agent: torch.nn.Module, step: int) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {"return_mean": 1.0}

    assert not train(asked, tmp_path / "run", CPU, on_interval=roll)
    assert read_index(tmp_path / "run")["last"]["step"] == 7


# ---- what goes wrong -----------------------------------------------------------------------


def test_a_finished_folder_is_not_overwritten(toy_file: Path, tmp_path: Path) -> None:
    train(config_for(toy_file), tmp_path / "run", CPU)
    before = weights(tmp_path / "run")
    with pytest.raises(UserError, match="--resume"):
        train(config_for(toy_file), tmp_path / "run", CPU)
    with pytest.raises(UserError, match=r"other settings.*agent"):
        train(config_for(toy_file, "attention"), tmp_path / "run", CPU, resume=True)
    with pytest.raises(UserError, match=r"step 20 already.*train\.steps 5"):
        train(config_for(toy_file, steps=5), tmp_path / "run", CPU, resume=True)
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, before[name])


def test_a_cosine_run_is_not_resumed_to_another_length(toy_file: Path, tmp_path: Path) -> None:
    """Its learning rate depends on the length, so the parts would not make the whole."""
    train(config_for(toy_file, schedule="cosine"), tmp_path / "run", CPU)
    with pytest.raises(UserError, match=r"train\.steps is 20 there and 40 here"):
        train(config_for(toy_file, schedule="cosine", steps=40), tmp_path / "run", CPU, resume=True)


def test_a_run_is_not_resumed_on_other_data(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "data.npz", toy_episodes(8))
    train(config_for(data), tmp_path / "run", CPU)
    before = (tmp_path / "run" / "dataset.json").read_text()
    write_npz(data, toy_episodes(9))
    with pytest.raises(UserError, match="other episodes"):
        train(config_for(data, steps=30), tmp_path / "run", CPU, resume=True)
    assert (tmp_path / "run" / "dataset.json").read_text() == before


def test_two_processes_do_not_train_in_one_folder(toy_file: Path, tmp_path: Path) -> None:
    lock = exclusive(tmp_path / "run" / ".train.lock", wait=False)
    with lock, pytest.raises(UserError, match="another process"):
        train(config_for(toy_file), tmp_path / "run", CPU)
    assert train(config_for(toy_file), tmp_path / "run", CPU)


def test_a_folder_without_a_checkpoint_is_free(toy_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="learning_rate"):
        train(config_for(toy_file, learning_rate=1e30, warmup_steps=0), tmp_path / "run", CPU)
    assert train(config_for(toy_file), tmp_path / "run", CPU)


def test_a_state_cut_in_half_is_one_sentence(toy_file: Path, tmp_path: Path) -> None:
    train(config_for(toy_file), tmp_path / "run", CPU)
    path = agent_path(tmp_path / "run").with_name("state.pt")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="cut off") as error:
        train(config_for(toy_file, steps=30), tmp_path / "run", CPU, resume=True)
    assert str(path) in str(error.value)


def test_weights_cut_in_half_are_written_again_when_resumed(toy_file: Path, tmp_path: Path) -> None:
    train(config_for(toy_file), tmp_path / "run", CPU)
    path = agent_path(tmp_path / "run")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert train(config_for(toy_file), tmp_path / "run", CPU, resume=True)
    assert agent_path(tmp_path / "run").read_bytes() == whole


def test_a_diverging_run_stops_with_a_sentence(toy_file: Path, tmp_path: Path) -> None:
    config = config_for(toy_file, steps=300, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(UserError, match=r"the loss is (nan|inf) and .* at step \d+.*learning_rate"):
        train(config, tmp_path / "run", CPU)


def test_unwritable_folders_are_one_sentence(toy_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        train(config_for(toy_file), tmp_path / "file" / "run", CPU)


def test_atomic_writes_leave_the_old_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("new, half")
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "b") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    "number",  # test_distributed sends the other to two processes
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_a_signal_saves_and_stops(number: signal.Signals, toy_file: Path, tmp_path: Path) -> None:
    from decision_seq.run_config import write_run_config

    config = config_for(toy_file, "pointwise", steps=10**6, checkpoint_interval=10**6)
    write_run_config(config, tmp_path / "run.yaml")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "decision_seq", "train", str(tmp_path / "run.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DECISION_SEQ_CACHE": str(tmp_path / "c")}
    process = subprocess.Popen(
        [*command, "--out", str(run)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=environment, text=True,
    )  # fmt: skip
    for _ in range(3000):
        if len(read_jsonl(run / "metrics.jsonl")) > 2:
            break
        time.sleep(0.1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "--resume" in output
    step = load_state(run)["step"]
    assert 0 < step < 10**6 and read_index(run)["last"]["step"] == step
