"""Training as one streams: windows in order, the state with them, and what that buys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_episodes, write_npz
from small_agents import A, AgentConfig, K, S, every_backbone, every_pair, make

from decision_seq.agents import load_agent
from decision_seq.behaviours.tiers import behaviour_for
from decision_seq.config import to_plain
from decision_seq.data.store import open_store
from decision_seq.data.streams import StreamSampler
from decision_seq.data.tools.collect import collect
from decision_seq.data.transforms import ReturnSpec
from decision_seq.data.windows import Batch, WindowSampler
from decision_seq.errors import UserError
from decision_seq.eval.rollout.episodes import rollout
from decision_seq.ops import selective_scan_step
from decision_seq.ops.pytorch import reference
from decision_seq.run_config import RunConfig, load_run_config, run_config
from decision_seq.run_folder import agent_path
from decision_seq.training.loop import train
from decision_seq.training.validation import validation_loss

CPU = torch.device("cpu")


def test_every_row_takes_every_episode_in_turn(tmp_path: Path) -> None:
    lengths = [7, 3, 4, 12, 5]
    store = open_store([str(write_npz(tmp_path / "a.npz", random_episodes(lengths)))])
    chosen, length, rows = np.array([0, 1, 3, 4]), 4, 3

    def drawn(seed: int) -> StreamSampler:
        windows = WindowSampler(store, chosen, length, ReturnSpec(), seed)
        return StreamSampler(windows, store.lengths[chosen])

    sampler = drawn(0)
    windows = sum(-(-lengths[m] // length) for m in chosen)
    orders = set()
    for epoch in range(2):
        seen: list[list[tuple[int, int]]] = [[] for _ in range(rows)]
        for i in range(epoch * windows, (epoch + 1) * windows):
            places, begins = sampler.places(i, rows), sampler.begins(i, rows)
            assert begins.tolist() == [t == 0 for _, t in places]
            batch = sampler.batch(i, rows)
            assert batch.timesteps[:, 0].tolist() == [t for _, t in places]
            assert batch.mask.sum(1).tolist() == [min(length, lengths[m] - t) for m, t in places]
            for row, place in enumerate(places):
                seen[row].append(place)
        for own in seen:
            order = tuple(dict.fromkeys(m for m, _ in own))
            whole = [(m, t) for m in order for t in range(0, lengths[m], length)]
            assert own == whole and sorted(order) == chosen.tolist()
            orders.add(order)
    assert len(orders) > 2  # they differ between rows and epochs
    assert drawn(0).places(windows + 2, rows) == sampler.places(windows + 2, rows)
    other = drawn(1)
    assert any(other.places(i, rows) != sampler.places(i, rows) for i in range(windows))


def test_rows_that_are_spread_do_not_end_together(tmp_path: Path) -> None:
    """And are those of rows that are not, some windows ahead."""
    store = open_store([str(write_npz(tmp_path / "a.npz", random_episodes([12] * 5)))])
    windows = WindowSampler(store, np.arange(5), 4, ReturnSpec(), 0)
    together, spread = (StreamSampler(windows, store.lengths, spread) for spread in (False, True))
    for i in range(20):
        assert together.begins(i, 6).tolist() == [i % 3 == 0] * 6
        assert spread.begins(i, 6).tolist() == [(i + row // 2) % 3 == 0 for row in range(6)]
        ahead = [together.places(i + row // 2, 6)[row] for row in range(6)]
        assert spread.places(i, 6) == ahead


def cut(batch: Batch, start: int) -> Batch:
    """K steps of it."""
    part = slice(start, start + K)
    whole = {"episode_returns"}
    return Batch(**{n: v if n in whole else v[:, part] for n, v in vars(batch).items()})


def long_batch(steps: int, discrete: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(2)
    actions: Any = torch.rand(3, steps, A, generator=generator) * 2 - 1
    return Batch(
        observations=torch.randn(3, steps, S, generator=generator),
        actions=torch.randint(A, (3, steps), generator=generator) if discrete else actions,
        returns_to_go=torch.rand(3, steps, generator=generator),
        timesteps=torch.arange(steps).expand(3, steps),
        mask=torch.ones(3, steps, dtype=torch.bool),
        episode_returns=torch.zeros(3),
    )


@every_pair
def test_windows_with_the_state_are_the_whole_episode(kind: str, config: type[AgentConfig]) -> None:
    """Their errors are those of one forward pass over all tokens; and the second window's differ
    without the state, unless nothing is remembered."""
    agent, batch = make(kind, config).train(), long_batch(3 * K)
    agent.carried = agent.backbone.init_state(3)
    parts = [agent.per_step_loss(cut(batch, start)) for start in (0, K, 2 * K)]
    agent.carried = None
    together = agent.per_step_loss(batch)
    torch.testing.assert_close(torch.cat(parts, 1), together, atol=1e-5, rtol=1e-4)
    alone = agent.per_step_loss(cut(batch, K))
    assert torch.allclose(alone, parts[1], atol=1e-6) == (kind == "pointwise")
    parts[2].sum().backward()  # nothing of the windows before is in its graph


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # PyTorch's, and a kernel's
@pytest.mark.parametrize(("length", "width", "states"), [(7, 5, 4), (45, 19, 11)])
def test_the_continued_scan_has_the_gradients_of_the_recurrence(
    gate: bool, dtype: torch.dtype, length: int, width: int, states: int
) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    u, dt = draw(2, length, width), draw(2, length, width).exp() * 0.3
    A, B, C = -draw(width, states).exp(), draw(2, length, states), draw(2, length, states)
    D, z = draw(width), draw(2, length, width) if gate else None
    state, weight = draw(2, width, states), draw(2, length, width)
    inputs = [t.requires_grad_() for t in (u, dt, A, B, C, D, z) if t is not None]
    found = {}
    for name, scan in (("ours", selective_scan_step), ("slow", reference.scan_from)):
        y, new = scan(u, dt, A, B, C, D, z, state)
        found[name] = [y, new.detach(), *torch.autograd.grad((y * weight).sum(), inputs)]
    for ours, slow in zip(found["ours"], found["slow"], strict=True):
        close = {torch.float64: 1e-9, torch.float32: 2e-4}[dtype]
        torch.testing.assert_close(ours, slow, atol=close, rtol=close)


def test_held_out_streams_are_judged_with_what_they_remember(tmp_path: Path) -> None:
    """As by one pass over the episode; windows on their own lose something else."""
    episodes = random_episodes([7, 14], S, A)
    store = open_store([str(write_npz(tmp_path / "a.npz", episodes))])
    config = stream_config(tmp_path / "a.npz", "mamba", batch_size=5)
    agent, chosen = make("mamba"), np.array([1])
    windows = WindowSampler(store, chosen, K, ReturnSpec(), 0)
    found = validation_loss(agent, StreamSampler(windows, store.lengths[chosen]), config)
    whole = WindowSampler(store, chosen, 14, ReturnSpec(), 0).windows(np.zeros(1, np.int64))
    assert found == pytest.approx(agent.loss(whole).item(), rel=1e-5)
    assert abs(found - validation_loss(agent, windows, config)) > 1e-4


def stream_config(toy_file: Path, kind: str, **train_fields: Any) -> RunConfig:
    fields = {
        "env": "point-run", "data": {"sources": [str(toy_file)]},
        "agent": {"kind": "return_conditioned", "context_length": 6, "returns": {"scale": 20},
                  "backbone": {"kind": kind, "width": 16, "layers": 1, "dropout": 0.1}},
        "train": {"steps": 8, "batch_size": 4, "learning_rate": 3e-3, "warmup_steps": 2,
                  "stream": True, "checkpoint_interval": 4} | train_fields,
    }  # fmt: skip
    return run_config(fields, {}, "test")


@every_backbone
def test_a_stream_resumes_bit_for_bit(kind: str, toy_file: Path, tmp_path: Path) -> None:
    assert train(stream_config(toy_file, kind), tmp_path / "whole", CPU)
    assert train(stream_config(toy_file, kind, steps=4), tmp_path / "parts", CPU)
    assert train(stream_config(toy_file, kind), tmp_path / "parts", CPU, resume=True)
    mine, theirs = (
        load_agent(agent_path(tmp_path / name)).state_dict() for name in ("parts", "whole")
    )
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name


def test_what_a_stream_cannot_be_is_one_sentence(toy_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="precision is bfloat16, but a state that is carried"):
        stream_config(toy_file, "mamba", precision="bfloat16")
    override = {"data": {"weights": [1.0]}}
    plain = run_config(to_plain(stream_config(toy_file, "mamba")), override, "test")
    with pytest.raises(UserError, match=r"data.weights draws .* train.stream takes every episode"):
        train(plain, tmp_path / "run", CPU)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_a_cue_further_back_than_a_window_is_learnt_on_streams_alone(
    stream: bool, tmp_path: Path
) -> None:
    """T-Maze of 30 steps, windows of 10. (A Mamba does not find it in as many steps.)"""
    behaviour, provenance = behaviour_for("t-maze-30", "expert", None)
    collect("t-maze-30", behaviour, 15_000, "decision-seq/t-maze-30/expert-v0", 0, provenance)
    path = Path(__file__).parents[1] / "configs" / "t-maze.yaml"
    assignments = {
        "train.stream": str(stream).lower(),
        "train.batch_size": "48",
        "train.steps": "1200",
        "agent.context_length": "10",
        "agent.backbone.kind": "gated_deltanet",
        "data.windows": "any",
    }
    config = load_run_config(path, [f"{key}={value}" for key, value in assignments.items()])
    train(config, tmp_path / "run", CPU)
    agent = load_agent(agent_path(tmp_path / "run"))
    rows = rollout(agent, "t-maze-30", [1.0], 100, 0, "stream")
    success = np.mean([row.episode_return for row in rows])
    assert success > 0.95 if stream else success < 0.65
