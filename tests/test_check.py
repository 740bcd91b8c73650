"""`check` finds what was planted and nothing else; `drop_bad` drops just that, from a copy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import random_episodes, write_npz

from decision_seq.data.episodes import Episodes, from_flat
from decision_seq.data.store import open_store
from decision_seq.data.tools.check import (
    Finding,
    check,
    drop_bad,
    environment_of,
    examine,
    read,
)
from decision_seq.data.tools.export import EXPORTERS
from decision_seq.envs.registry import make, named_by_data
from decision_seq.errors import UserError


def rules(findings: list[Finding]) -> list[str]:
    return [finding.rule for finding in findings]


@pytest.fixture(scope="module")
def hopper() -> Episodes:
    """Ten short episodes of Hopper-v5 under random actions."""
    env = make("hopper")
    rng = np.random.default_rng(0)
    rows: list[tuple] = []
    for seed in range(10):
        observation, _ = env.reset(seed=seed)
        ended = False
        while not ended:
            action = rng.uniform(-1, 1, 3).astype(np.float32)
            following, reward, terminated, truncated, _ = env.step(action)
            rows.append((observation, action, reward, terminated, truncated))
            observation, ended = following, terminated or truncated
    env.close()
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return from_flat("hopper", *columns, info={"env_id": "Hopper-v5"})


def changed(episodes: Episodes, **arrays: np.ndarray) -> Episodes:
    """A copy whose arrays can be spoiled."""
    names = ("observations", "actions", "rewards", "terminated", "truncated")
    copies = {name: getattr(episodes, name).copy() for name in names}
    return dataclasses.replace(episodes, **copies | arrays)


def test_good_data_have_no_findings(hopper: Episodes) -> None:
    env = make("hopper")
    assert check(hopper, env) == []
    assert check(random_episodes([5, 5, 7])) == []
    env.close()


def test_not_finite_names_episode_step_and_column(tmp_path: Path) -> None:
    episodes = random_episodes([5, 5, 7], width=3)
    episodes.observations[7, 2] = np.nan
    episodes.observations[12, 0] = np.inf
    episodes.actions[6, 1] = -np.inf
    episodes.rewards[8] = np.nan
    (finding,) = examine([str(write_npz(tmp_path / "a.npz", episodes, meta=None))]).findings
    assert (finding.severity, finding.rule, finding.count) == ("error", "not-finite", 4)
    assert "observations column 2 at episode 1, step 2" in finding.message
    assert finding.drop == (1, 2)
    with pytest.raises(UserError, match="drop-bad"):
        open_store([str(tmp_path / "a.npz")])


@pytest.mark.parametrize(
    ("width", "actions", "expected"),
    [(4, np.zeros((12, 1), np.float32), "width 4"), (2, np.zeros(12, np.int64), "numbers"),
     (2, np.zeros((12, 3), np.float32), "width 3")],
)  # fmt: skip
def test_data_of_another_environment(width: int, actions: np.ndarray, expected: str) -> None:
    episodes = changed(random_episodes([5, 7], width=width), actions=actions)
    findings = check(episodes, make("point-run"))
    assert rules(findings)[0] == "misfit" and expected in findings[0].message


def test_actions_outside_the_space() -> None:
    episodes = random_episodes([5, 7], width=2, action_dim=1)
    episodes.actions[6] = 1.5
    episodes.actions[3] = -1 - 1e-5  # rounding, tolerated
    for env in (None, make("point-run")):
        (finding,) = check(episodes, env)
        assert (finding.rule, finding.severity, finding.count) == ("actions-outside", "warning", 1)
        assert "first at episode 1, step 1" in finding.message and finding.drop == ()
    numbers = np.zeros(12, np.int64)
    numbers[9] = 2
    cart = changed(random_episodes([5, 7], width=4), actions=numbers)
    (finding,) = check(cart, make("CartPole-v1"))
    assert (finding.rule, finding.severity, finding.drop) == ("actions-outside", "error", (1,))


def test_ends_that_are_double_or_missing(tmp_path: Path) -> None:
    episodes = random_episodes([5, 5, 7])
    episodes.truncated[4] = True
    (finding,) = check(episodes)
    assert finding.rule == "both-ends" and "episode 0, step 4" in finding.message
    at_limit = time_limited([20, 9, 20], truncated=True)  # where both may well be
    at_limit.truncated[28] = False
    assert check(at_limit, make("point-run")) == check(at_limit) == []
    episodes = random_episodes([5, 5, 7])
    episodes.terminated[-1] = False  # the recording stops there
    (finding,) = examine([str(write_npz(tmp_path / "a.npz", episodes, meta=None))]).findings
    assert finding.rule == "without-end" and "first episode 2 after 7 steps" in finding.message
    write_npz(tmp_path / "b.npz", random_episodes([3, 4], seed=1), meta=None)
    (finding,) = examine([str(tmp_path)]).findings  # both files, a first
    assert finding.rule == "without-end" and "first episode 2 after 7 steps" in finding.message
    with pytest.raises(UserError, match="no data are named"):
        examine([])


def time_limited(lengths: list[int], **flags: bool) -> Episodes:
    episodes = random_episodes(lengths, width=2, action_dim=1)
    ends = episodes.offsets[1:] - 1
    for name, value in flags.items():
        getattr(episodes, name)[ends] = value
    return episodes


def test_time_limits_recorded_as_terminations() -> None:
    env = make("point-run")  # at most 20 steps
    trap = time_limited([20, 20, 9, 20], terminated=True, truncated=False)
    (finding,) = check(trap, env)
    assert (finding.rule, finding.count) == ("time-limit", 3)
    assert check(time_limited([20, 20, 9], terminated=False, truncated=True), env) == []
    assert check(time_limited([20, 19, 9], terminated=True, truncated=False), env) == []  # chance
    assert check(trap) == []  # 20 steps say nothing without an environment
    (finding,) = check(time_limited([150, 150, 9], terminated=True, truncated=False))
    assert finding.rule == "time-limit"
    (finding,) = check(time_limited([20, 41, 9], terminated=False, truncated=True), env)
    assert (finding.rule, finding.severity, finding.drop) == ("too-long", "error", (1,))


def test_repeats() -> None:
    episodes = random_episodes([5, 5, 7, 5])
    for array in (episodes.observations, episodes.actions, episodes.rewards):
        array[17:22] = array[:5]
    (finding,) = check(episodes)
    assert (finding.rule, finding.count, finding.drop) == ("repeat", 1, (3,))
    assert "episode 3 repeats episode 0" in finding.message
    assert check(dataclasses.replace(episodes, seeds=(1, 2, 3, 4))) == []  # it happened twice
    assert rules(check(dataclasses.replace(episodes, seeds=(1, 2, 3, 1)))) == ["repeat"]
    episodes.rewards[20] += 1  # same motion, other reward: not a repeat
    assert check(episodes) == []


def shift(episodes: Episodes) -> None:
    episodes.actions[:] = np.roll(episodes.actions, 1, axis=0)


def weaken(episodes: Episodes) -> None:
    episodes.actions *= 0.9


def standardize(episodes: Episodes) -> None:
    o = episodes.observations
    o[:] = (o - o.mean(axis=0)) / o.std(axis=0)


def swap(episodes: Episodes) -> None:
    episodes.observations[:, [1, 2]] = episodes.observations[:, [2, 1]]


def scale_rewards(episodes: Episodes) -> None:
    episodes.rewards *= 0.1


@pytest.mark.parametrize("spoil", [shift, weaken, standardize, swap, scale_rewards])
def test_replay_finds_what_the_simulator_would_not_do(
    spoil: Callable[[Episodes], None], hopper: Episodes
) -> None:
    episodes = changed(hopper)
    spoil(episodes)
    env = make("hopper")
    (finding,) = [f for f in check(episodes, env) if f.rule != "actions-outside"]
    assert (finding.rule, finding.severity) == ("replay", "error")
    assert ("reward" in finding.message.split("most in")[1]) == (spoil is scale_rewards)
    env.close()


def test_replay_tells_walker2d_v4_from_v5() -> None:
    from decision_seq.behaviours.tiers import behaviour_for
    from decision_seq.data.tools.collect import collect

    behaviour, provenance = behaviour_for("walker2d", "medium", None)
    collect("walker2d", behaviour, 200, "own/walker-v0", 0, provenance)
    assert examine(["own/walker-v0"]).findings == []
    found = examine(["own/walker-v0"], "Walker2d-v4").findings
    assert rules(found) == ["replay", "environment"]
    assert "Walker2d-v4 is another version" in str(found[1])


def test_seeds_are_replayed_in_any_environment() -> None:
    from decision_seq.behaviours.tiers import behaviour_for
    from decision_seq.data.tools.collect import collect

    behaviour, provenance = behaviour_for("point-run", "mixed", None)
    collect("point-run", behaviour, 200, "own/toy-v0", 3, provenance)
    episodes = read(["own/toy-v0"])
    assert episodes.seeds == tuple(range(3, 13))
    env = environment_of(episodes, None)
    assert check(episodes, env) == []
    spoiled = changed(episodes)
    spoiled.observations += 0.1
    assert rules(check(spoiled, env)) == ["replay"]
    wrong = dataclasses.replace(episodes, seeds=tuple(range(4, 14)))
    assert rules(check(wrong, env)) == ["replay"]


SIMULATED = [
    "CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0",
    "Swimmer-v5", "Reacher-v5", "Pusher-v5", "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5", "Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Ant-v5",
    "HumanoidStandup-v5", "Ant-v4", "memory-8", "point-run", "pong",
]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["Humanoid-v5", *[pytest.param(n, marks=pytest.mark.slow) for n in SIMULATED]]
)
def test_what_collect_records_is_not_suspected(name: str, tmp_path: Path) -> None:
    """By random actions, of any environment: in Minari, as .npz, and without seeds."""
    from decision_seq.behaviours.tiers import behaviour_for
    from decision_seq.data.tools.collect import collect

    behaviour, provenance = behaviour_for(name, "random", None)
    collect(name, behaviour, 1000, "own/random-v0", 0, provenance)
    path = tmp_path / "random.npz"
    EXPORTERS["npz"](open_store(["own/random-v0"]), str(path))
    with np.load(path) as file:
        np.savez(tmp_path / "x.npz", **{k: v for k, v in file.items() if k != "episode_seeds"})
    for source in ("own/random-v0", str(path), str(tmp_path / "x.npz")):
        assert set(rules(examine([source]).findings)) <= {"constant"}


def test_drop_bad_writes_a_cleaned_copy(tmp_path: Path) -> None:
    episodes = random_episodes([5, 6, 7, 5, 8])
    for array in (episodes.observations, episodes.actions, episodes.rewards):
        array[18:23] = array[:5]
    good = changed(episodes)
    episodes.observations[7] = np.nan
    source = write_npz(tmp_path / "a.npz", episodes)
    before = source.read_bytes()
    dropped = drop_bad(examine([str(source)]), tmp_path / "clean.npz")
    assert [(d["episode"], d["rules"]) for d in dropped] == [(1, ["not-finite"]), (3, ["repeat"])]
    assert json.loads((tmp_path / "clean.npz.dropped.json").read_text())["dropped"] == dropped
    store = open_store([str(tmp_path / "clean.npz")])
    rows = np.r_[0:5, 11:18, 23:31]
    assert list(store.lengths) == [5, 7, 8]
    for name in ("observations", "actions", "rewards", "terminated", "truncated"):
        assert np.array_equal(getattr(store, name), getattr(good, name)[rows])
    assert store.info["env_id"] == "Hopper-v5"
    assert source.read_bytes() == before
    assert rules(examine([str(tmp_path / "clean.npz")], "point-run").findings) == [
        "misfit",
        "environment",
    ]
    for out, expected in (("clean.npz", "exists already"), ("clean.hdf5", "written as .npz")):
        with pytest.raises(UserError, match=expected):
            drop_bad(examine([str(source)]), tmp_path / out)


def test_data_do_not_choose_what_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "stranger.py").write_text("raise SystemExit('this ran')")
    monkeypatch.syspath_prepend(tmp_path)
    episodes = random_episodes([5])
    episodes.info["env_id"] = "stranger:Task-v0"
    assert environment_of(episodes, None) is None
    log = tmp_path / "log.csv"
    log.write_text("episode,observation_0,action_0,reward,terminated\n0,1,1,1,1\n")
    (tmp_path / "log.columns.yaml").write_text("env: stranger:Task-v0")
    assert read([str(log)]).info["env_id"] == "stranger:Task-v0"
    EXPORTERS["minari"](open_store([str(log)]), "mine/strange-v0")
    assert "its environment stranger:Task-v0 is not written" in capsys.readouterr().err
    (tmp_path / "os:stranger.py").write_text("raise SystemExit('this ran')")
    assert named_by_data("os:stranger:Task-v0") is None  # `os` is imported, that file is not
    assert named_by_data("conftest:Task-v0") == "conftest:Task-v0"


def test_nothing_left_is_not_written(tmp_path: Path) -> None:
    episodes = random_episodes([5])
    episodes.rewards[2] = np.inf
    source = write_npz(tmp_path / "a.npz", episodes)
    with pytest.raises(UserError, match="nothing would be left"):
        drop_bad(examine([str(source)]), tmp_path / "clean.npz")
    assert {p.name for p in tmp_path.iterdir()} == {"a.npz"}


def test_the_command_says_errors_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from decision_seq.cli.data import check as command

    episodes = random_episodes([5, 6, 7])
    episodes.observations[7] = np.nan
    source = str(write_npz(tmp_path / "a.npz", episodes, meta=None))
    with pytest.raises(SystemExit) as exit_:
        command((source,), drop_bad=tmp_path / "clean.npz")
    assert exit_.value.code == 1
    assert "error: 3 numbers are NaN or infinite" in capsys.readouterr().out
    command((str(tmp_path / "clean.npz"),))  # returns: no errors
    assert "0 findings, 0 of them errors" in capsys.readouterr().out
