"""Data and the environment they are used with: the same one, or a sentence that says otherwise."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import torch
from conftest import random_episodes, write_npz
from gymnasium import spaces
from minari.data_collector.episode_buffer import EpisodeBuffer

from decision_seq.agents import AgentSpec, SequenceAgent, load_agent
from decision_seq.agents.fit import check_fit
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.backbones.mamba import MambaConfig
from decision_seq.config import to_plain
from decision_seq.data import from_episodes, import_dataset, open_store
from decision_seq.data.tools.check import examine
from decision_seq.data.tools.collect import collect
from decision_seq.data.tools.distribution import action_lines
from decision_seq.data.tools.export import to_minari, to_npz
from decision_seq.envs.reference_scores import references, scoring
from decision_seq.envs.registry import make
from decision_seq.errors import UserError, say_once
from decision_seq.eval.rollout import rollout
from decision_seq.eval.rollout.protocol import evaluate_agent
from decision_seq.run_config import run_config
from decision_seq.run_folder import agent_path
from decision_seq.training.loop import train

CHEETAH, WALKER = "HalfCheetah-v5", "Walker2d-v5"  # as wide as each other
TRICKY = "Hopper-v5?terminate_when_unhealthy=false"


def npz(path: Path, env: str, width: int = 17, actions: int = 6, **meta: Any) -> str:
    episodes = random_episodes([30, 30], width, actions)
    return str(write_npz(path, episodes, meta=np.array(json.dumps({"env_id": env, **meta}))))


def still(_rng: Any, env: gym.Env[Any, Any]) -> Callable[[np.ndarray], np.ndarray]:
    shape = env.action_space.shape or ()
    return lambda _observation: np.zeros(shape, np.float32)


def config(env: str, source: str) -> Any:
    agent = {"preset": "decision-mamba", "context_length": 3, "backbone": {"width": 8, "layers": 1}}
    plain = {
        "env": env,
        "data": {"sources": [source]},
        "agent": agent,
        "train": {"steps": 1, "batch_size": 2, "checkpoint_interval": 1},
    }
    return run_config(plain, {}, "test")


def trained(env: str, source: str, run: Path) -> dict[str, Any]:
    """dataset.json of a run of one step."""
    train(config(env, source), run, torch.device("cpu"))
    return json.loads((run / "dataset.json").read_text())


# ---- several sources ------------------------------------------------------------------------


def test_two_bodies_are_not_one_dataset(tmp_path: Path) -> None:
    sources = [npz(tmp_path / "hc.npz", CHEETAH), npz(tmp_path / "w.npz", WALKER)]
    for use in (open_store, examine, lambda s: import_dataset(s, "both")):
        with pytest.raises(UserError, match=r"w\.npz: is of Walker2d-v5, but .*of HalfChee"):
            use(sources)
    with pytest.raises(UserError, match="sources of one dataset"):  # nor in a folder
        open_store([str(tmp_path)])


def test_variants_of_one_environment_are_spoken_of(tmp_path: Path) -> None:
    sources = [npz(tmp_path / f"{v}.npz", f"Walker2d-{v}") for v in ("v4", "v5")]
    store = open_store(sources)
    assert "env_id" not in store.info and store.info["env_ids"] == ["Walker2d-v4", "Walker2d-v5"]
    assert [f.rule for f in store.findings] == ["environments"]
    assert "environments" in [f.rule for f in examine(sources).findings]
    kept = import_dataset(sources, "both")
    assert kept.info["env_ids"] == store.info["env_ids"]
    more = open_store(["both", npz(tmp_path / "again.npz", "Walker2d-v4")])
    assert more.info["env_ids"] == store.info["env_ids"]
    with pytest.raises(UserError, match="is of HalfCheetah-v5, but"):
        open_store(["both", npz(tmp_path / "hc.npz", CHEETAH)])
    with pytest.raises(UserError, match="HalfCheetah-v5 is another environment"):
        trained(CHEETAH, "both", tmp_path / "run")


def test_arguments_tell_sources_apart(tmp_path: Path) -> None:
    plain, tricky = (
        npz(tmp_path / "p.npz", "Hopper-v5", 11, 3),
        npz(tmp_path / "t.npz", TRICKY, 11, 3),
    )
    other = npz(tmp_path / "o.npz", "Hopper-v5?healthy_reward=3", 11, 3)
    assert [f.rule for f in open_store([plain, tricky]).findings] == ["environments"]
    with pytest.raises(UserError, match=r"is of Hopper-v5\?healthy_reward=3, but"):
        open_store([tricky, other])
    import_dataset([other], "as-plain", env="hopper")  # the way out, for who knows better
    assert open_store(["as-plain", plain]).info["env_id"] == "Hopper-v5"


def test_a_source_that_names_none_is_the_others(tmp_path: Path) -> None:
    bare = str(write_npz(tmp_path / "bare.npz", random_episodes([30], 17, 6), meta=None))
    store = open_store([bare, npz(tmp_path / "hc.npz", CHEETAH)])
    assert store.info["env_id"] == CHEETAH and not store.findings


# ---- data and config ------------------------------------------------------------------------


def test_data_of_another_body_are_not_trained_on(tmp_path: Path) -> None:
    source = npz(tmp_path / "hc.npz", CHEETAH)
    with pytest.raises(UserError, match=r"of HalfCheetah-v5; Walker2d-v5 is another"):
        trained("walker2d", source, tmp_path / "run")
    assert not (tmp_path / "run" / "dataset.json").exists()
    assert trained("halfcheetah", source, tmp_path / "right")["env_id"] == CHEETAH


def test_the_data_alone_say_what_they_are_from(tmp_path: Path) -> None:
    bare = str(write_npz(tmp_path / "bare.npz", random_episodes([30], 17, 6), meta=None))
    assert trained("walker2d", bare, tmp_path / "run")["env_id"] is None


def test_another_version_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    say_once.cache_clear()
    source = npz(tmp_path / "old.npz", "Walker2d-v2")
    assert trained("walker2d", source, tmp_path / "run")["env_id"] == "Walker2d-v2"
    assert capsys.readouterr().err.count("Walker2d-v5 is another version") == 1


def test_an_agent_is_not_put_into_another_body() -> None:
    spec = AgentSpec((17,), 6, False, 9, CHEETAH)
    check_fit(spec, make("halfcheetah"))
    with pytest.raises(UserError, match="Walker2d-v5 is another environment"):
        check_fit(spec, make("walker2d"))


def test_arguments_of_the_data_are_arguments_of_the_run(tmp_path: Path) -> None:
    source = npz(tmp_path / "t.npz", TRICKY, 11, 3)
    with pytest.raises(UserError, match=r"arguments; write `env: Hopper-v5\?terminate_when"):
        trained("hopper", source, tmp_path / "run")
    assert trained(TRICKY, source, tmp_path / "right")["env_id"] == TRICKY


def test_check_compares_what_the_data_say_with_env(tmp_path: Path) -> None:
    source = npz(tmp_path / "hc.npz", CHEETAH)
    found = {f.rule: f for f in examine([source], "walker2d").findings}
    assert found["environment"].severity == "error" and CHEETAH in str(found["environment"])
    assert "environment" not in [f.rule for f in examine([source], "halfcheetah").findings]


# ---- Minari ---------------------------------------------------------------------------------


def collected(name: str, env: str, **options: Any) -> str:
    """A Minari dataset of two short episodes, made without our help."""
    world, buffers = gym.make(env, **options), []
    for seed in range(2):
        seen, _ = world.reset(seed=seed)
        rows: list[list[Any]] = [[seen], [], [], [], []]
        for _ in range(12):
            action = np.full(3, 0.1, np.float32)
            out = world.step(action)[:4]
            for row, value in zip(rows, (out[0], action, *out[1:]), strict=True):
                row.append(value)
        buffer = [np.array(rows[0]), np.array(rows[1]), *rows[2:]]
        keys = ("observations", "actions", "rewards", "terminations", "truncations")
        buffers.append(EpisodeBuffer(id=seed, **dict(zip(keys, buffer, strict=True))))
    minari.create_dataset_from_buffers(name, buffers, env=world)
    return name


def test_minaris_arguments_are_kept_and_used(tmp_path: Path) -> None:
    source = collected(
        "mine/still-v0", "Hopper-v5", terminate_when_unhealthy=False, max_episode_steps=12
    )
    name = f"{TRICKY.split('?')[0]}?max_episode_steps=12&terminate_when_unhealthy=false"
    assert open_store([source]).info["env_id"] == name
    notes = examine([source]).findings
    assert [(f.severity, f.rule) for f in notes] == [("note", "arguments")]
    assert name in str(notes[0])
    with pytest.raises(UserError, match="made with other arguments"):
        trained("hopper", source, tmp_path / "run")
    trained(name, source, tmp_path / "right")
    for to, out in ((to_npz, str(tmp_path / "out.npz")), (to_minari, "mine/out-v0")):
        to(open_store([source]), out)
        assert open_store([out]).info["env_id"] == name


def test_another_reward_is_found_by_replaying(tmp_path: Path) -> None:
    collect("hopper?forward_reward_weight=5", still, 60, "mine/fast-v0", 0, {"behaviour": "still"})
    assert open_store(["mine/fast-v0"]).info["env_id"] == "Hopper-v5?forward_reward_weight=5"
    assert minari.load_dataset("mine/fast-v0").storage.metadata.get("ref_min_score") is None
    rules = [f.rule for f in examine(["mine/fast-v0"], "hopper").findings]
    assert set(rules) >= {"replay", "environment"}
    assert [f.rule for f in examine(["mine/fast-v0"]).findings] == ["arguments"]


def test_the_environment_that_data_are_to_be_evaluated_in_is_right(tmp_path: Path) -> None:
    source = collected("mine/first-v0", "Hopper-v5", healthy_reward=2.0)
    text = json.dumps({"eval_env_spec": gym.spec("Hopper-v5").to_json()})
    dataset = minari.load_dataset(source)
    dataset.storage.update_metadata(json.loads(text))
    store = open_store([source])
    assert store.info["env_id"] == "Hopper-v5?healthy_reward=2"
    assert store.info["eval_env_id"] == "Hopper-v5"
    trained("hopper", source, tmp_path / "run")
    with pytest.raises(UserError, match="write `env: Hopper-v5` in"):
        trained("hopper?healthy_reward=3", source, tmp_path / "other")


def test_wrappers_that_were_recorded_through_are_named() -> None:
    world = gym.wrappers.ClipAction(gym.make("Pendulum-v1"))
    buffer = EpisodeBuffer(
        id=0,
        observations=np.zeros((4, 3), np.float32),
        actions=np.zeros((3, 1), np.float32),
        rewards=[0.0] * 3,
        terminations=[False] * 3,
        truncations=[False, False, True],
    )
    minari.create_dataset_from_buffers("mine/wrapped-v0", [buffer], env=world)
    (finding,) = [f for f in open_store(["mine/wrapped-v0"]).findings if f.rule == "wrappers"]
    assert "ClipAction" in finding.message


# ---- D4RL's Ant -----------------------------------------------------------------------------


def ant_file(path: Path) -> str:
    rng, end = np.random.default_rng(0), np.zeros(120, bool)
    seen = np.zeros((120, 111), np.float32)
    seen[:, :27] = rng.normal(size=(120, 27))
    end[59::60] = True
    columns = {
        "observations": seen,
        "actions": rng.uniform(-1, 1, (120, 8)).astype(np.float32),
        "rewards": np.ones(120, np.float32),
        "terminals": np.zeros(120, bool),
        "timeouts": end,
    }
    with h5py.File(path, "w") as file:
        for key, column in columns.items():
            file[key] = column
    return str(path)


def test_d4rls_ant_has_an_environment(tmp_path: Path) -> None:
    source = ant_file(tmp_path / "ant_medium-v2.hdf5")
    assert "misfit" not in [f.rule for f in examine([source]).findings]
    for other in ("Ant-v4", "Ant-v5"):
        (misfit,) = [f for f in examine([source], other).findings if f.rule == "misfit"]
        assert "decision-seq/D4RLAnt-v2 gives that shape" in misfit.fix
        with pytest.raises(UserError, match=r"width 111, but Ant-v\d gives .*D4RLAnt-v2 gives the"):
            trained(other, source, tmp_path / other)
    summary = trained("d4rl-ant", source, tmp_path / "run")
    assert summary["env_id"] == "Ant-v2"
    assert summary["normalized_score_mean"] == pytest.approx(100 * (60 + 325.6) / (3879.7 + 325.6))


# ---- scores ---------------------------------------------------------------------------------


def test_references_are_the_runs_then_the_datas_then_the_tables() -> None:
    table = references("Hopper-v5")
    assert list(scoring("Hopper-v5")) == ["d4rl"]
    assert scoring("Hopper-v5", data=table["d4rl"]) == table
    both = scoring("Hopper-v5", data=(0.0, 50.0))
    assert list(both.items()) == [("data", (0.0, 50.0)), *table.items()]
    assert list(scoring("Hopper-v5", data=(0, 50), run=(1, 2))) == ["run", "data", "d4rl"]
    assert scoring("Elsewhere-v0") == {}
    assert references("Hopper-v5?healthy_reward=2") == {} == references(TRICKY)
    assert references("AdroitHandDoor-v1") == {"d4rl": (-56.512833, 2880.5693087298737)}


# ---- discrete actions that do not begin at 0 ------------------------------------------------


class Doors(gym.Env):
    """Takes 1, 2 or 3, and says in its observation which it was."""

    observation_space = spaces.Box(-9, 9, (2,), np.float32)

    def __init__(self, start: int = 1) -> None:
        self.action_space = spaces.Discrete(3, start=start)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.time += 1
        seen = np.array([action, self.time], np.float32)
        return seen, float(action == self.action_space.start), False, self.time >= 9, {}


@pytest.fixture
def doors():  # type: ignore[no-untyped-def]
    gym.register("Doors-v0", Doors, max_episode_steps=9)
    yield "Doors-v0"
    del gym.registry["Doors-v0"]


def episodes(start: int) -> list[dict[str, Any]]:
    return [
        {
            "observations": np.random.default_rng(m).normal(size=(9, 2)),
            "actions": np.arange(9) % 3 + start,
            "rewards": np.ones(9),
            "terminated": True,
            "truncated": False,
        }
        for m in range(3)
    ]


def spec_of(source: Any) -> AgentSpec:
    agent = ReturnConditionedConfig(context_length=3, backbone=MambaConfig(width=8, layers=1))
    return SequenceAgent.for_dataset(agent, source).spec


@pytest.mark.parametrize("start", [1, -1, 0])
def test_actions_are_kept_from_0_and_given_back(start: int, doors: str, tmp_path: Path) -> None:
    env = f"{doors}?start={start}"
    collect(env, lambda rng, _: lambda _: rng.integers(3) + start, 90, "mine/doors-v0", 0,
            {"behaviour": "any"})  # fmt: skip
    store = open_store(["mine/doors-v0"])
    assert store.info["action_start"] == start and set(store.actions.tolist()) == {0, 1, 2}
    assert [f for f in examine(["mine/doors-v0"]).findings if f.severity != "note"] == []
    assert spec_of(store).action_start == start
    check_fit(spec_of(store), make(env))
    with pytest.raises(UserError, match="discrete actions"):
        check_fit(spec_of(store), make(f"{doors}?start=2"))
    to_npz(store, str(tmp_path / "doors.npz"))
    to_minari(store, "mine/again-v0")
    with np.load(tmp_path / "doors.npz") as file:
        assert set(file["actions"].tolist()) == {start, start + 1, start + 2}
    for again in ("mine/again-v0", str(tmp_path / "doors.npz")):
        kept = open_store([again])
        assert np.array_equal(kept.actions, store.actions)
        assert kept.info["action_start"] == start


def test_actions_of_a_source_that_names_no_space(doors: str) -> None:
    ones = from_episodes(episodes(1), "ones")
    check_fit(spec_of(ones), make(doors))
    below = from_episodes(episodes(-1), "below")
    assert below.info["action_start"] == -1 and set(below.actions.tolist()) == {0, 1, 2}
    assert [f.rule for f in below.findings] == ["below-zero"]
    check_fit(spec_of(below), make(f"{doors}?start=-1"))
    zeros = from_episodes(episodes(0), "zeros")
    with pytest.raises(UserError, match="actions 0 to 2, but Doors-v0 takes 1 to 3"):
        check_fit(spec_of(zeros), make(doors))
    check_fit(spec_of(zeros), make(f"{doors}?start=0"))
    mixed = open_store(["zeros", "below"])  # counted from the lower start
    assert mixed.info["action_start"] == -1
    assert action_lines(mixed)[0].endswith("-1: 16.7 %, 0: 33.3 %, 1: 33.3 %, 2: 16.7 %")
    assert mixed.actions.tolist() == [1, 2, 3] * 9 + [0, 1, 2] * 9


# ---- collecting -----------------------------------------------------------------------------


class Shared(gym.Env):
    """Gives and takes one buffer, as some simulators do, and never ends."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self) -> None:
        self.buffer = np.zeros(1, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.buffer[:] = 0
        return self.buffer, {}

    def step(self, action: np.ndarray) -> Any:
        self.buffer += 1
        action *= 0  # clipped in place, say
        return self.buffer, 1.0, False, False, {}


def test_what_is_collected_is_what_was_seen_and_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decision_seq.data.tools.collect.ENDLESS", 6)
    gym.register("Shared-v0", Shared)
    own = np.full(1, 0.5, np.float32)

    def half(_rng: Any, _env: Any) -> Callable[[np.ndarray], np.ndarray]:
        def act(_observation: np.ndarray) -> np.ndarray:
            own[:] = 0.5
            return own

        return act

    try:
        collect("Shared-v0", half, 6, "mine/shared-v0", 0, {"behaviour": "half"})
        examined = examine(["mine/shared-v0"])  # which plays the actions again
    finally:
        del gym.registry["Shared-v0"]
    store = open_store(["mine/shared-v0"])
    assert store.observations[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert store.actions[:, 0].tolist() == [0.5] * 6 == examined.episodes.actions[:, 0].tolist()
    assert "replay" not in [f.rule for f in examined.findings]
    assert store.truncated.tolist() == [False] * 5 + [True] and not store.terminated.any()


def acted(env: str, source: str, run: Path, **protocol: Any) -> list[dict[str, Any]]:
    """Rows of an evaluation of a run of one step; `env` is the evaluation's alone."""
    plan = {"targets": [5], "episodes": 2, **protocol}
    plain = to_plain(config(open_store([source]).info.get("env_id", env), source)) | {"eval": plan}
    trained_in = run_config(plain, {}, "test")
    if not run.exists():
        train(trained_in, run, torch.device("cpu"))
    agent = load_agent(agent_path(run, "last"))
    return evaluate_agent(agent, dataclasses.replace(trained_in, env=env), run, 1, "last")


def test_rows_say_whose_references_they_are_scored_by(tmp_path: Path) -> None:
    plain = npz(tmp_path / "plain.npz", "Hopper-v5", 11, 3)
    own = npz(tmp_path / "own.npz", "Hopper-v4", 11, 3, ref_min=0, ref_max=50)
    bare = npz(tmp_path / "bare.npz", TRICKY, 11, 3)

    def said(*arguments: Any, **protocol: Any) -> tuple[Any, ...]:
        row = acted(*arguments, **protocol)[0]
        assert row["normalized_score"] == row["normalized_scores"].get(row["score_reference"])
        if row["reference_returns"]:
            low, high = row["reference_returns"]
            wanted = 100 * (row["episode_return"] - low) / (high - low)
            assert row["normalized_score"] == pytest.approx(wanted)
        return row["env"], row["score_reference"], row["reference_returns"]

    d4rl = (-20.272305, 3234.3)
    assert said("hopper", plain, tmp_path / "a") == ("Hopper-v5", "d4rl", d4rl)
    named = said("hopper", plain, tmp_path / "a", score_reference=[0, 10])
    assert named == ("Hopper-v5", "run", (0, 10))
    assert said("Hopper-v4", own, tmp_path / "b") == ("Hopper-v4", "data", (0, 50))
    assert said("hopper", own, tmp_path / "b") == ("Hopper-v5", "data", (0, 50))
    # neither the data's nor D4RL's are of an environment that is made with other arguments
    other = "Hopper-v5?healthy_reward=2"
    assert said(other, own, tmp_path / "b") == (other, None, None)
    assert said(TRICKY, bare, tmp_path / "c") == (TRICKY, None, None)


def test_an_agent_acts_in_what_the_data_took(doors: str, tmp_path: Path) -> None:
    """Doors asserts that it is given 1, 2 or 3; its reward is for 1."""
    first = [dict(e, actions=np.ones(9, int)) for e in episodes(1)]
    for number, data in enumerate((episodes(1), first)):
        name = f"doors-{number}"
        from_episodes(data, name, env=doors)
        agent = SequenceAgent.for_dataset(
            ReturnConditionedConfig(context_length=3, backbone=MambaConfig(width=8, layers=1)),
            open_store([name]),
        ).eval()
        with torch.no_grad():
            agent.action_head.bias[:] = torch.tensor([9.0, 3, 2, 1])[: agent.spec.action_dim]
        taken: list[np.ndarray] = []
        (row,) = rollout(agent, doors, [5.0], 1, 0, "window", actions=taken)
        # 0, which the data never took, is the likeliest; the nearest that there is, is taken
        assert {int(action[0]) for action in taken} == {1} and row.episode_return == 9
    collect(f"{doors}?start=-1", lambda *_: lambda _: -1, 18, "mine/low-v0", 0, {"behaviour": "x"})
    (row, _) = acted(f"{doors}?start=-1", "mine/low-v0", tmp_path / "run")
    assert row["length"] == 9
