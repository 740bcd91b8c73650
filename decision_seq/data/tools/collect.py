"""Collecting: roll a behaviour policy out into a Minari dataset that says where it came from."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import string
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from decision_seq.data.sources import minari_dataset
from decision_seq.envs import registry
from decision_seq.envs.fastest import open_lanes
from decision_seq.envs.lanes import Lanes
from decision_seq.envs.quiet import quiet_mujoco
from decision_seq.envs.reference_scores import reference_returns
from decision_seq.errors import UserError
from decision_seq.files import check_space, workspace
from decision_seq.hardware import torch_device
from decision_seq.settings import Simulator
from decision_seq.spaces.leaf import leaf_of
from decision_seq.variables import variables

TEXT = 1000  # characters of a text in an observation
LANES = 1024  # at most, of another simulator
HEADER = 4000  # bytes that HDF5 keeps about an array, at most
OUTCOMES = ("rewards", "terminations", "truncations")
ENDLESS = 100_000  # steps after which an episode is truncated that does not end by itself
Act = Callable[[np.ndarray], Any]  # observation -> action [A] or index
Behaviour = Callable[[np.random.Generator, gym.Env[Any, Any]], Act]  # at an episode's start


@quiet_mujoco()
def collect(
    env: str,
    behaviour: Behaviour,
    steps: int,
    dataset_id: str,
    seed: int,
    provenance: dict[str, str],
    on_step: Callable[[int], None] = lambda done: None,
    simulator: Simulator = "auto",
) -> dict[str, Any]:
    """Roll `behaviour` out for at least `steps` steps, whole episodes only, and store them.

    Args:
        env: environment name or gymnasium id.
        behaviour: called with a random generator and the environment, once that is reset for an
            episode; returns its policy.
        steps: fewest steps; the last episode is completed, but for one that would never end.
        dataset_id: Minari id to write, which must not exist.
        seed: of environment and policy; episode i uses seed + i for the environment.
        provenance: what to record about the behaviour.
        on_step: called with the number of steps done so far.
        simulator: `warp` plays many episodes side by side, on a GPU if there is one.

    Returns:
        Summary: episodes, steps, return_mean, return_std.

    Raises:
        UserError: bad id, dataset exists, or the storage cannot be written.
    """
    check_id(dataset_id)
    if steps < 1 or seed < 0:
        raise UserError(f"steps is {steps} and seed {seed}; they must be at least 1 and 0")
    environment: Any = registry.make(env)
    limit = max(steps, ENDLESS)  # an environment's own is far below, if it has one
    target = minari_dataset.folder(dataset_id)
    returns: list[float] = []
    done = held = 0
    played = _one_by_one(environment, behaviour, seed, limit)
    if simulator != "auto":
        count = min(LANES, -(-steps // (environment.spec.max_episode_steps or steps)))
        lanes = open_lanes(env, count, simulator=simulator, device=torch_device("auto"))
        played = _side_by_side(lanes, count, behaviour, seed)

    def episodes() -> Iterator[dict[str, Any]]:
        nonlocal done, held
        while done < steps:
            episode = next(played)
            size = sum(map(_size, episode.values()))
            check_space(target, 2 * size + 1_000_000, held)
            held += size
            returns.append(sum(episode["rewards"]))
            done += len(episode["rewards"])
            on_step(min(done, steps))
            yield episode

    with _stored(environment, episodes(), dataset_id, provenance["behaviour"]) as storage:
        summary = {
            "episodes": len(returns),
            "steps": done,
            "return_mean": float(np.mean(returns)),
            "return_std": float(np.std(returns)),
        }
        facts = {**provenance, "seed": seed, **summary}
        if simulator != "auto":
            facts["simulator"] = simulator
        storage.update_metadata({f"collect_{key}": value for key, value in facts.items()})
    environment.close()
    return summary


def check_id(dataset_id: str) -> None:
    """Raise UserError unless `dataset_id` is a free Minari id."""
    first = dataset_id.split("/")[0]
    if not minari_dataset.is_id(dataset_id) or ("/" in dataset_id and len(first) < 2):
        raise UserError(
            f"dataset id {dataset_id!r} is not a Minari id; write it like mine/hopper-medium-v0 "
            "(a namespace has two or more characters)"
        )
    if minari_dataset.folder(dataset_id).exists():
        raise UserError(
            f"dataset {dataset_id}: exists already; choose another with --out, or remove it with "
            f"`minari delete {dataset_id}`"
        )


def _episode(env: Any, start: Callable[[Any], Act], seed: int, limit: int) -> dict[str, Any]:
    """One episode, truncated after `limit` steps."""
    observation, _ = env.reset(seed=seed)
    act = start(env)
    observations, actions = [copy.deepcopy(observation)], []
    rewards, terminations, truncations = [], [], []
    ended = False
    while not ended:
        action = act(observation)
        actions.append(copy.deepcopy(action))  # copies: both may use their buffers again
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(copy.deepcopy(observation))
        rewards.append(float(reward))
        terminations.append(bool(terminated))
        truncations.append(bool(truncated or len(rewards) == limit))
        ended = terminations[-1] or truncations[-1]
    return {
        "seed": seed,
        "observations": _columns(observations),  # [T + 1, ...], nested as the space is
        "actions": _columns(actions),  # [T, ...]
        "rewards": rewards,
        "terminations": terminations,
        "truncations": truncations,
    }


def _one_by_one(env: Any, behaviour: Behaviour, seed: int, limit: int) -> Iterator[dict[str, Any]]:
    """Episodes without end, in order."""
    for number in itertools.count():
        yield _episode(env, partial(behaviour, _rng(seed, number)), seed + number, limit)


def _side_by_side(
    lanes: Lanes, count: int, behaviour: Behaviour, seed: int
) -> Iterator[dict[str, Any]]:
    """The same, a round of all lanes after the other."""
    dtype = lanes.envs[0].observation_space.dtype
    for first in itertools.count(0, count):
        numbers = range(first, first + count)
        seen = [lanes.reset([seed + number for number in numbers])]
        players = [behaviour(_rng(seed, number), lanes.envs[0]) for number in numbers]
        active, made = np.ones(count, bool), []
        while active.any():
            acts = np.stack([act(row) for act, row in zip(players, seen[-1], strict=True)])
            observations, *outcome = lanes.step(acts, active)
            made.append((active.copy(), acts, *outcome))
            seen.append(observations)
            active &= ~(outcome[1] | outcome[2])
        went, actions, *outcomes = map(np.stack, zip(*made, strict=True))  # [steps, lanes, ...]
        observed = np.stack(seen).astype(dtype)
        for lane, length in enumerate(went.sum(axis=0)):
            yield {
                "seed": seed + numbers[lane],
                "observations": observed[: length + 1, lane],
                "actions": actions[:length, lane],
                **{k: v[:length, lane].tolist() for k, v in zip(OUTCOMES, outcomes, strict=True)},
            }


def _rng(seed: int, number: int) -> np.random.Generator:
    """Of an episode."""
    return np.random.default_rng([seed, number])


def _columns(rows: list[Any]) -> Any:
    """Arrays of what the rows hold, nested as these are; texts as a list."""
    first = rows[0]
    if isinstance(first, Mapping):
        return {key: _columns([row[key] for row in rows]) for key in first}
    if isinstance(first, tuple):
        return tuple(_columns([row[i] for row in rows]) for i in range(len(first)))
    return rows if isinstance(first, str) else np.stack([np.asarray(row) for row in rows])


def _storable(space: Any) -> Any:
    """The same, but texts of a class of their own, such as MiniGrid's missions, as gymnasium's."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _storable(below) for key, below in space.spaces.items()})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([_storable(below) for below in space.spaces])
    if isinstance(space, spaces.Text) or leaf_of(space, "", False).kind != "text":
        return space
    return spaces.Text(TEXT, charset=string.printable)


def _size(value: Any) -> int:
    """Bytes that arrays, nested or not, take in HDF5."""
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if isinstance(value, tuple):
        return sum(map(_size, value))
    return np.asarray(value).nbytes + HEADER


@contextlib.contextmanager
def _stored(
    env: Any, episodes: Iterator[dict[str, Any]], dataset_id: str, behaviour: str
) -> Iterator[Any]:
    """Write episodes as they come, under a temporary storage root beside the real one. Yields
    Minari's storage of them, then renames the dataset to where it belongs."""
    import minari
    from minari.data_collector.episode_buffer import EpisodeBuffer

    target = minari_dataset.folder(dataset_id)
    reference = reference_returns(str(registry.identity_of(env.spec)))
    scores = dict(zip(("ref_min_score", "ref_max_score"), reference or (), strict=False))
    with temporary_storage(target) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about e-mail and permalink of an author
        dataset = minari.create_dataset_from_buffers(
            dataset_id,
            (EpisodeBuffer(id=i, **one) for i, one in enumerate(episodes)),
            env=registry.writable(env.spec),
            action_space=env.action_space,
            observation_space=_storable(env.observation_space),
            algorithm_name=behaviour,
            description="Collected by decision-seq from its own rollouts.",
            author="decision-seq",
            jpeg_encoding=False,
            **scores,
        )
        yield dataset.storage
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(temporary / dataset_id, target)
        except OSError:
            if not target.exists():
                raise
            check_id(dataset_id)  # another process was faster, and its copy is kept


@contextlib.contextmanager
def temporary_storage(target: Path) -> Iterator[Path]:
    """Yields a storage root of Minari's, beside the one that `target` is to be renamed into."""
    root = minari_dataset.folder("").resolve()
    try:
        with (
            workspace(root / "collect") as temporary,
            variables(MINARI_DATASETS_PATH=str(temporary)),
        ):
            yield temporary
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror or error}); set MINARI_DATASETS_PATH to "
            "a folder you can write"
        ) from None
