"""Does the simulator agree with the recording? Two ways to ask, both on a sample.

From the seed: where a source stores the seed of every episode, the environment is reset with it
and the recorded actions are played for the first steps. Any environment can be asked that way.

Single steps: observations of Hopper, HalfCheetah, Walker2d and Ant hold the whole state except the
position along the track, which changes neither motion nor reward. Positions and velocities are set
from an observation, the recorded action applied, and next observation and reward compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from decision_seq.data.columns import ROUNDING, least_deviation, magnitude, numbers_in
from decision_seq.data.episodes import Episodes
from decision_seq.spaces.steps import StepForm

SAMPLE = 256  # single steps
SEEDED_EPISODES, SEEDED_STEPS = 8, 20  # few steps, since rounding grows in a chaotic system
# Deviations are in units of a column's usual change in one step (its standard deviation), or of 1
# where it never changes. Float32 recordings of the same simulator agree to 2e-5; actions off by
# 10 % deviate by 0.1.
TOLERANCE = 0.02
TOLERATED_SHARE = 0.05  # of the sample: contacts amplify rounding
AMPLIFIED = 100  # times, at most: rounding of a state that is set, after a step
HIDDEN_POSITIONS = {"Hopper": 1, "HalfCheetah": 1, "Walker2d": 1, "Ant": 2}
VELOCITY_CLIP = {"Hopper": 10.0, "Walker2d": 10.0}  # of the observed velocities

Found = tuple[Literal["error", "warning"], int, str]


def replay_single_steps(episodes: Episodes, env: gym.Env[Any, Any]) -> Found | None:
    """Severity, count and message where recording and simulator disagree, or None.

    None also where the environment's state cannot be rebuilt from an observation.
    """
    name = (env.spec.id if env.spec else "").split("-")[0]
    if name not in HIDDEN_POSITIONS:
        return None
    rows = _sample(episodes, name, env)
    if not len(rows):
        return None
    deviations = _deviations(episodes, env, rows, HIDDEN_POSITIONS[name])  # [rows, columns + 1]
    return _found(episodes, env, rows, deviations, "replayed one by one")


def replay_from_seeds(episodes: Episodes, env: gym.Env[Any, Any]) -> Found | None:
    """The same for whole beginnings of episodes, where their seeds are known."""
    rows, simulated, form = [], [], StepForm(env)
    for m, seed in enumerate(episodes.seeds[:SEEDED_EPISODES]):
        observation, _ = env.reset(seed=seed)
        start = int(episodes.offsets[m])
        for row in range(start, min(start + SEEDED_STEPS, int(episodes.offsets[m + 1]))):
            before = np.array(form.observe(observation))  # it may be changed by the step
            before = _flat(before[None], episodes.info)[0]
            observation, reward, *_ = env.step(form.action(_row(episodes, row)))
            rows.append(row)
            simulated.append(np.append(before, float(reward)))
    if not rows:
        return None
    if episodes.info.get("rewards") == "clipped":
        simulated = [np.append(row[:-1], np.clip(row[-1], -1, 1)) for row in simulated]
    recorded = np.column_stack(
        [_flat(episodes.observations[rows], episodes.info), episodes.rewards[rows]]
    )
    some = _flat(episodes.observations[: 4 * SAMPLE], episodes.info)
    usual = _usual(np.diff(some, axis=0), some, episodes.rewards)
    differences = np.abs(np.array(simulated) - recorded) - ROUNDING * np.abs(recorded)
    return _found(episodes, env, np.array(rows), differences / usual, "replayed from stored seeds")


def _flat(observations: np.ndarray, info: Mapping[str, Any]) -> np.ndarray:
    """[N, ...] -> [N, S] float64; of records their vectors, without images; nothing of images that
    JPEG changed."""
    observations = numbers_in(observations)
    if "images" in info and observations.ndim > 2:
        observations = observations[:, :0]
    return observations.reshape(len(observations), -1).astype(np.float64)


def _usual(changes: np.ndarray, seen: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """[S + 1] what deviations of S observation columns and the reward are measured in: the standard
    deviation of `changes` [n, S] from step to step and of `rewards` [n], or 1 where that is no more
    than rounding of what is `seen` [N, S]."""
    if len(changes) == 0:
        changes = np.zeros_like(seen)
    deviation = np.append(changes.std(axis=0), rewards.std(dtype=np.float64))
    size = np.append(magnitude(seen), magnitude(rewards))
    return np.where(deviation > least_deviation(size), deviation, 1.0)


def _found(
    episodes: Episodes,
    env: gym.Env[Any, Any],
    rows: np.ndarray,
    deviations: np.ndarray,
    how: str,
) -> Found | None:
    """What to say about `deviations` [rows, columns], if too many are beyond the tolerance."""
    worst = np.nan_to_num(deviations, nan=np.inf).max(axis=1)
    wrong = worst > TOLERANCE
    if wrong.mean() <= TOLERATED_SHARE:
        return None
    column = int(np.median(deviations[wrong], axis=0).argmax())
    is_reward = column == deviations.shape[1] - 1
    first = int(rows[wrong].min())
    episode = int(np.searchsorted(episodes.offsets, first, side="right")) - 1
    return (
        "error" if wrong.mean() > 0.5 else "warning",
        int(wrong.sum()),
        f"{int(wrong.sum())} of {len(rows)} steps {how} in {env.spec and env.spec.id} come out "
        f"differently (by {np.median(worst[wrong]):.2g} of a step's usual change, tolerance "
        f"{TOLERANCE}; most in {'reward' if is_reward else f'observation column {column}'}), first "
        f"at episode {episode}, step {first - int(episodes.offsets[episode])}",
    )


def _row(episodes: Episodes, row: int) -> Any:
    """A recorded action, discrete ones as the environment counts them."""
    if episodes.actions.ndim == 1:
        return int(episodes.actions[row]) + episodes.info.get("action_start", 0)
    return np.array(episodes.actions[row])


def _sample(episodes: Episodes, name: str, env: gym.Env[Any, Any]) -> np.ndarray:
    """Rows whose next row is the next step, finite, and within the observed velocities' clip."""
    model = env.unwrapped.model  # type: ignore[attr-defined]
    first_velocity = model.nq - HIDDEN_POSITIONS[name]
    rows = np.setdiff1d(np.arange(len(episodes.rewards) - 1), episodes.offsets[1:] - 1)
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(rows, min(4 * SAMPLE, len(rows)), replace=False))
    both = np.concatenate([episodes.observations[rows], episodes.observations[rows + 1]], axis=1)
    fine = np.isfinite(both).all(axis=1) & np.isfinite(episodes.actions[rows]).all(axis=1)
    fine &= np.isfinite(episodes.rewards[rows])
    velocities = episodes.observations[rows][:, first_velocity : first_velocity + model.nv]
    fine &= (np.abs(velocities) < VELOCITY_CLIP.get(name, np.inf)).all(axis=1)
    return rng.permutation(rows[fine])[:SAMPLE]


def _deviations(
    episodes: Episodes, env: gym.Env[Any, Any], rows: np.ndarray, hidden: int
) -> np.ndarray:
    """[rows, columns + 1] differences of observations and reward beyond rounding, in usual
    changes."""
    simulator: Any = env.unwrapped
    model = simulator.model
    width = model.nq - hidden + model.nv  # contact forces, which Ant adds, depend on the past
    before = episodes.observations[rows, :width].astype(np.float64)
    after = episodes.observations[rows + 1, :width].astype(np.float64)
    rewards = episodes.rewards[rows].astype(np.float64)
    recorded = np.column_stack([after, rewards])
    env.reset(seed=0)
    simulated = np.empty_like(recorded)
    for i, row in enumerate(rows):
        position = np.concatenate([np.zeros(hidden), before[i, : model.nq - hidden]])
        simulator.set_state(position, before[i, model.nq - hidden :])
        observation, reward, *_ = simulator.step(_row(episodes, row))
        simulated[i] = np.append(observation[:width], reward)
    rounding = AMPLIFIED * ROUNDING * np.append(magnitude(before), magnitude(rewards))
    return (np.abs(simulated - recorded) - rounding) / _usual(after - before, before, rewards)
