"""T-Maze: what it shows and when, what chance is, and its perfect walks as data."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from decision_seq.behaviours.tiers import behaviour_for
from decision_seq.data.store import open_store
from decision_seq.data.tools.collect import collect
from decision_seq.envs.registry import make
from decision_seq.envs.t_maze import STEPS, TMaze
from decision_seq.errors import UserError

ALONG, UP, BACK, DOWN = range(4)


def walk(env: gym.Env, seed: int, actions: list[int]) -> tuple:
    """Observations [T + 1, 4], rewards [T], and how the walk of at most len(actions) ended."""
    observations, rewards, ends = [env.reset(seed=seed)[0]], [], (False, False)
    for action in actions:
        observation, reward, *ends, _ = env.step(np.int64(action))
        observations.append(observation)
        rewards.append(reward)
        if any(ends):
            break
    return np.array(observations), np.array(rewards), tuple(ends)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_hint_is_shown_once_and_the_flag_at_the_junction(steps: int, seed: int) -> None:
    env = make(f"t-maze-{steps}")
    observations, rewards, ends = walk(env, seed, [ALONG] * (steps - 1) + [UP])
    assert ends[0] and len(rewards) == steps  # and the time limit is reached as well
    y, hint, flag, noise = observations.T
    assert hint.tolist() == [1.0 - 2 * seed] + [0.0] * steps
    assert flag.tolist() == [0.0] * (steps - 1) + [1.0, 1.0]
    assert y.tolist() == [0.0] * steps + [1.0]
    assert set(noise) <= {-1.0, 0.0, 1.0}
    assert rewards.tolist() == [0.0] * (steps - 1) + [1.0 - seed]  # seed 0's goal is up
    assert all(env.observation_space.contains(row) for row in observations)


def test_walls_hold_and_who_dawdles_is_truncated() -> None:
    env = make("t-maze-9")
    observations, rewards, ends = walk(env, 0, [BACK, UP, DOWN] + [ALONG] * 20)
    assert ends == (False, True) and len(rewards) == 9 and not rewards.any()
    assert not observations[:, 0].any() and not observations[:, 2].any()
    _, rewards, ends = walk(env, 0, [ALONG] * 20)  # stands at the junction at last
    assert ends == (False, True) and not rewards.any()


def test_without_the_hint_success_is_one_half() -> None:
    env = make("t-maze-9")
    sums = {
        turn: sum(walk(env, seed, [ALONG] * 8 + [turn])[1][-1] for seed in range(10))
        for turn in (UP, DOWN)
    }
    assert sums == {UP: 5, DOWN: 5}
    unseeded = {float(env.reset()[0][1]) for _ in range(40)}
    assert unseeded == {-1.0, 1.0}


def test_noise_differs_between_seeds_and_repeats_with_one() -> None:
    env = make("t-maze-30")
    first, again, other = (walk(env, seed, [ALONG] * 29)[0][:, 3] for seed in (2, 2, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert {*first} == {-1.0, 0.0, 1.0}


def test_the_data_are_perfect_walks() -> None:
    collect("t-maze-9", *_expert("t-maze-9"))
    store = open_store(["toy/t-maze-v0"])
    assert store.lengths.tolist() == [9] * 20 and store.episode_returns.tolist() == [1.0] * 20
    first, last = store.offsets[:-1], store.offsets[1:] - 1
    goals = store.observations[first, 1]
    assert goals.tolist() == [1.0, -1.0] * 10
    assert np.array_equal(store.actions[last], np.where(goals > 0, UP, DOWN))
    assert not np.delete(store.actions, last).any()


def _expert(env: str) -> tuple:
    behaviour, provenance = behaviour_for(env, "expert", None)
    return behaviour, 9 * 20, "toy/t-maze-v0", 0, provenance


def test_a_maze_without_a_corridor_is_one_sentence() -> None:
    with pytest.raises(UserError, match="steps is 1"):
        TMaze(steps=1)
