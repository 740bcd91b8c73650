"""Windows: every step reachable, draws that stay what they were, mixtures by weight."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_episodes, write_npz
from hypothesis import given, settings
from hypothesis import strategies as st

from decision_seq.data.episodes import Episodes
from decision_seq.data.store import EpisodeStore, open_store, returns_to_go
from decision_seq.data.transforms import ReturnSpec
from decision_seq.data.windows import WindowSampler
from decision_seq.errors import UserError


def sampler_for(episodes: Episodes, tmp_path: Path, length: int = 5, **kw: object) -> WindowSampler:
    store = open_store([str(write_npz(tmp_path / "windows.npz", episodes))])
    kept = kw.get("kept", np.arange(store.episodes))
    return WindowSampler(store, kept, length, ReturnSpec(scale=10.0), seed=0)  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6), k=st.integers(1, 9))
def test_windows_equal_a_loop_over_rows(
    lengths: list[int], k: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    episodes = random_episodes(lengths)
    sampler = sampler_for(episodes, tmp_path_factory.mktemp("w"), length=k)
    assert sampler.steps == sum(lengths)
    batch = sampler.windows(torch.arange(sampler.steps))
    to_go = returns_to_go(episodes.rewards, episodes.offsets)
    row = 0
    for start, stop in zip(episodes.offsets[:-1], episodes.offsets[1:], strict=True):
        for first in range(start, stop):
            valid = min(k, stop - first)
            real, pad = slice(first, first + valid), slice(valid, None)
            assert batch.mask[row].tolist() == [True] * valid + [False] * (k - valid)
            np.testing.assert_array_equal(
                batch.observations[row, :valid], episodes.observations[real]
            )
            np.testing.assert_array_equal(batch.actions[row, :valid], episodes.actions[real])
            np.testing.assert_allclose(
                batch.returns_to_go[row, :valid], to_go[real] / 10, rtol=1e-6
            )
            assert batch.timesteps[row, :valid].tolist() == list(
                range(first - start, first - start + valid)
            )
            for field in (batch.observations, batch.actions, batch.returns_to_go, batch.timesteps):
                assert not field[row, pad].any()
            row += 1


def test_a_window_alone_is_the_window_among_others(tmp_path: Path) -> None:
    """All at once they are gathered row by row, since those at the table's end overhang it; most
    alone are cut out as one piece."""
    sampler = sampler_for(random_episodes([3, 9, 1, 7]), tmp_path, length=4)
    together = sampler.windows(torch.arange(20))
    for i in range(20):
        alone = sampler.windows(torch.tensor([i]))
        for field in dataclasses.fields(together):
            wanted, got = getattr(together, field.name)[i : i + 1], getattr(alone, field.name)
            assert got.dtype == wanted.dtype and torch.equal(got, wanted), (i, field.name)


@pytest.mark.parametrize("index", [0, 1, 2**40])
def test_draws_stay_what_they_were(index: int, tmp_path: Path) -> None:
    """A run that is resumed, or repeated from its record, must meet the same batches."""
    sampler = sampler_for(random_episodes([50]), tmp_path)
    sampler.batch(7, 3)  # whatever was drawn before
    generator = np.random.Generator(np.random.Philox(key=0, counter=index << 64))
    places = [(0, start) for start in generator.integers(50, size=9)]
    assert sampler.places(index, 9) == places


def test_starts_are_uniform_over_all_steps(tmp_path: Path) -> None:
    episodes = random_episodes([1, 30, 9])
    sampler = sampler_for(episodes, tmp_path)
    first = {tuple(o): i for i, o in enumerate(episodes.observations)}
    counts = np.zeros(40)
    for i in range(100):
        for row in sampler.batch(i, 200).observations[:, 0].numpy():
            counts[first[tuple(row)]] += 1
    expected = counts.sum() / 40
    assert ((counts - expected) ** 2 / expected).sum() < 73  # chi-squared, 39 degrees, p = 0.001


def test_batches_depend_on_seed_and_index_only(tmp_path: Path) -> None:
    sampler = sampler_for(random_episodes([50]), tmp_path)
    third = sampler.batch(3, 8).observations
    sampler.batch(0, 8)
    assert torch.equal(third, sampler.batch(3, 8).observations)
    assert not torch.equal(third, sampler.batch(4, 8).observations)


def test_only_the_chosen_episodes_are_drawn(tmp_path: Path) -> None:
    episodes = random_episodes([4, 5, 6])
    sampler = sampler_for(episodes, tmp_path, kept=np.array([0, 2]))
    assert sampler.steps == 10
    drawn = sampler.windows(torch.arange(10)).observations[:, 0].numpy()
    np.testing.assert_array_equal(drawn, np.delete(episodes.observations, slice(4, 9), axis=0))


def test_windows_of_a_table_that_lies_column_by_column(tmp_path: Path) -> None:
    sampler = sampler_for(random_episodes([9, 12]), tmp_path, length=4)
    store = open_store([str(tmp_path / "windows.npz")])
    store = dataclasses.replace(store, observations=np.asfortranarray(store.observations))
    turned = WindowSampler(store, np.arange(2), 4, ReturnSpec(scale=10.0), seed=0)
    assert torch.equal(turned.batch(3, 8).observations, sampler.batch(3, 8).observations)


def test_a_pickled_sampler_holds_the_data_once_and_draws_the_same(tmp_path: Path) -> None:
    """As spawned processes and Ray's workers get it."""
    sampler = sampler_for(random_episodes([200] * 20), tmp_path, length=20)
    batch = sampler.batch(7, 64)
    pickled = pickle.dumps(sampler)
    step = (3 + 2 + 1) * 4 + 8  # bytes: observation, action, return-to-go; timestep
    # and what is drawn from: two places a step, and the return of its episode
    assert len(pickled) < 4000 * (step + 24)
    copy = pickle.loads(pickled)
    for field in dataclasses.fields(batch):
        assert torch.equal(getattr(copy.batch(7, 64), field.name), getattr(batch, field.name))


# ---- mixtures ------------------------------------------------------------------------------


def sampler(store: EpisodeStore, kept: np.ndarray, **settings: Any) -> WindowSampler:
    return WindowSampler(store, kept, 2, ReturnSpec(), seed=3, **settings)


def sources_drawn(drawn: WindowSampler, store: EpisodeStore, batches: int) -> np.ndarray:
    """How often each source was drawn from, as shares."""
    ends = np.cumsum(store.episodes_per_source)
    episodes = [place[0] for i in range(batches) for place in drawn.places(i, 500)]
    counts = np.bincount(np.searchsorted(ends, episodes, side="right"), minlength=len(ends))
    return counts / counts.sum()


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4),
    data=st.data(),
)
def test_mixtures_draw_by_weight_and_uniformly_within_a_source(
    lengths: list[list[int]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("mixture")
    files = [
        str(write_npz(folder / f"{i}.npz", random_episodes(part, seed=i)))
        for i, part in enumerate(lengths)
    ]
    store = open_store(files)
    weights = [data.draw(st.integers(1, 5)) for _ in files]
    kept = data.draw(
        st.lists(st.integers(0, store.episodes - 1), min_size=1, unique=True).map(sorted)
    )
    drawn = sampler(store, np.array(kept), weights=weights)
    shares = sources_drawn(drawn, store, 8)
    source = np.searchsorted(np.cumsum(store.episodes_per_source), kept, side="right")
    expected = np.where(np.isin(np.arange(len(files)), source), weights, 0)
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.06)
    rows = np.concatenate([np.arange(*store.offsets[m : m + 2]) for m in kept])
    places = [p for i in range(8) for p in drawn.places(i, 500)]
    seen = {int(store.offsets[m]) + step for m, step in places}
    assert seen <= set(rows.tolist())
    if len(rows) * max(expected) < 100:
        assert seen == set(rows.tolist())


def test_mixtures_are_pure_and_no_weights_change_nothing(tmp_path: Path) -> None:
    files = [
        str(write_npz(tmp_path / f"{i}.npz", random_episodes([30 * i], seed=i))) for i in (1, 2)
    ]
    store, kept = open_store(files), np.arange(2)
    weighted = sampler(store, kept, weights=(3.0, 1.0))
    third = weighted.places(3, 64)
    weighted.batch(0, 64)
    assert weighted.places(3, 64) == third != weighted.places(4, 64)
    # what was drawn before there were mixtures, which a resumed run must draw again
    generator = np.random.Generator(np.random.Philox(key=3, counter=5 << 64))
    rows = generator.integers(90, size=8)
    assert sampler(store, kept).places(5, 8) == [
        (int(row >= 30), int(row if row < 30 else row - 30)) for row in rows
    ]
    with pytest.raises(UserError, match="3 weights for 2 sources"):
        sampler(store, kept, weights=(1, 1, 1))
    huge = sampler(store, kept, weights=(1e308, 1e308)).places(0, 64)  # their sum is infinite
    assert huge == sampler(store, kept, weights=(1, 1)).places(0, 64)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0, float("nan")]])
def test_weights_are_one_a_source_and_positive(weights: list[float]) -> None:
    from decision_seq.run_config import run_config

    plain = {"env": "point-run", "data": {"sources": ["a.npz", "b.npz"], "weights": weights}}
    with pytest.raises(UserError, match="weights"):
        run_config(plain, {}, "test")
