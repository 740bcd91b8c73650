"""Atari: frames and stacks as gymnasium makes them, whole games, protocols, scores, players."""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from decision_seq.agents import AgentSpec, SequenceAgent
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.backbones.mamba import MambaConfig
from decision_seq.behaviours.tiers import behaviour_for
from decision_seq.data.sources import resolve
from decision_seq.data.store import open_store
from decision_seq.data.tools.collect import collect
from decision_seq.data.tools.replay import replay_from_seeds
from decision_seq.data.transforms import ReturnSpec
from decision_seq.data.windows import WindowSampler
from decision_seq.envs import atari
from decision_seq.envs.atari import GAMES, AtariGame
from decision_seq.envs.fastest import open_lanes
from decision_seq.envs.reference_scores import atari_game, normalized_score, references
from decision_seq.envs.registry import env_id, make, versions
from decision_seq.errors import UserError
from decision_seq.eval.rollout.episodes import rollout
from decision_seq.policy import Policy

ale_py = pytest.importorskip("ale_py", reason="needs the extra `atari`")


def test_all_games_by_name() -> None:
    roms = ale_py.roms.get_all_rom_ids()
    assert len(GAMES) == 57 and set(GAMES) <= set(roms)
    assert env_id("space-invaders") == "Atari/SpaceInvaders-nosticky-v0"
    assert env_id("Pong-sticky") == "Atari/Pong-sticky-v0"
    assert env_id("PongNoFrameskip-v4") == env_id("pong")  # what datasets record
    assert env_id("ALE/Pong-v5") == env_id("pong-sticky")
    assert "ale-py" in versions()
    with pytest.raises(UserError, match="the nearest is pong"):
        env_id("pongg")


def test_without_ale_py_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(UserError, match=r"pip install 'decision-seq\[atari\]'"):
        make("pong")


@pytest.mark.parametrize(("name", "seed"), [("pong", 84), ("breakout", 84)])
def test_frames_and_stacks_are_gymnasiums(name: str, seed: int) -> None:
    """A whole game of random actions, from the first stack to the last."""
    gym.register_envs(ale_py)
    plain = gym.make(f"ALE/{name.title()}-v5", frameskip=1, repeat_action_probability=0.0)
    theirs = FrameStackObservation(AtariPreprocessing(plain, noop_max=1), 4, padding_type="zero")
    expected, _ = theirs.reset(seed=0)
    lanes = open_lanes(name, 1)
    stacks = lanes.reset([seed])
    game = lanes.envs[0].unwrapped
    assert isinstance(game, AtariGame) and game.no_ops == 1  # as gymnasium's, for this seed
    assert not stacks[0, :3].any() and stacks[0, 3].any()
    rng, done, steps = np.random.default_rng(0), False, 0
    while not done:
        assert np.array_equal(stacks[0], expected)
        action = rng.integers(lanes.action_space.n)  # type: ignore[attr-defined]
        expected, reward, *ends, _ = theirs.step(action)
        stacks, rewards, *ours = lanes.step(np.array([action]), np.array([True]))
        assert rewards[0] == reward and [end[0] for end in ours] == ends
        done, steps = any(ends), steps + 1
    assert steps > 100 and ends == [True, False]
    lanes.close()


def test_a_lane_depends_on_its_seed_alone() -> None:
    """Three lanes beside each other, which end one after the other, and each alone."""
    actions = np.random.default_rng(0).integers(4, size=(2000, 3))

    def play(which: list[int]) -> tuple[list[float], list[int], list[np.ndarray]]:
        lanes = open_lanes("breakout", len(which))
        seen = lanes.reset([11 + lane for lane in which])
        active = np.ones(len(which), bool)
        returns, lengths = np.zeros(len(which)), np.zeros(len(which), int)
        for step in actions[:, which]:
            if not active.any():
                break
            before = seen
            seen, rewards, terminated, truncated = lanes.step(step, active)
            assert np.array_equal(seen[~active], before[~active]) and not rewards[~active].any()
            returns += rewards
            lengths += active
            active &= ~(terminated | truncated)
        assert not active.any()
        lanes.close()
        return returns.tolist(), lengths.tolist(), list(seen)

    returns, lengths, last = play([0, 1, 2])
    assert len(set(lengths)) > 1
    for lane in (0, 2):
        alone = play([lane])
        assert (alone[0], alone[1]) == ([returns[lane]], [lengths[lane]])
        assert np.array_equal(alone[2][0], last[lane])


def test_sticky_actions_are_another_game_from_the_same_seed() -> None:
    def play(name: str) -> list[int]:
        env = make(name)
        frames = [env.reset(seed=5)[0]]
        frames += [env.step(2 + 3 * (t // 5 % 2))[0] for t in range(60)]
        env.close()
        return [int(frame.sum()) for frame in frames]

    assert play("pong-sticky") == play("pong-sticky") != play("pong") == play("pong")


def test_with_fire_reset_the_ball_is_served() -> None:
    """Also in the second console, in lanes, and in the data that such a game gives."""
    name = "breakout?fire_reset=true"

    def play(name: str, count: int = 40) -> list[np.ndarray]:
        env = make(name)
        frames = [env.reset(seed=1)[0]] + [env.step(0)[0] for _ in range(count)]
        game = env.unwrapped
        assert isinstance(game, AtariGame)
        assert np.array_equal(game.render().shape, (210, 160, 3))
        lives.append(int(game.ram()[57]))  # where Breakout counts them
        env.close()
        return frames

    lives: list[int] = []
    still, served = play("breakout"), play(name)
    assert np.array_equal(still[20], still[40]) and not np.array_equal(served[20], served[40])
    assert lives == [5, 4]  # nobody was there to hit it
    lanes = open_lanes(name, 2)
    lanes.reset([0, 1])
    for _ in range(40):
        stacks = lanes.step(np.zeros(2, int), np.ones(2, bool))[0]
    assert np.array_equal(stacks[1, -1], served[40])
    lanes.close()
    behaviour, provenance = behaviour_for(name, "random", None)
    collect(name, behaviour, 1, "toy/breakout-v0", 0, provenance)
    assert open_store(["toy/breakout-v0"]).info["env_id"] == env_id(name)


def test_a_game_is_cut_off_after_half_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    assert atari.MAX_FRAMES == 108_000
    monkeypatch.setattr(atari, "MAX_FRAMES", 400)
    env = make("breakout")
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(400 // 4)]
    assert ends[-1] == (False, True) and set(ends[:-1]) == {(False, False)}
    env.close()


@pytest.mark.parametrize("name", ["pong", "pong-sticky"])
def test_memory_and_picture_belong_to_what_is_played(name: str) -> None:
    """Pong keeps the two scores in memory; they are checked after a while, then at every step."""
    env = make(name)
    game = env.unwrapped
    assert isinstance(game, AtariGame)
    for seed in (3, 4):  # a second episode
        env.reset(seed=seed)
        rng, total = np.random.default_rng(0), 0.0
        for t in range(250):
            total += float(env.step(rng.integers(6))[1])
            if t > 150:
                memory = game.ram()
                assert int(memory[14]) - int(memory[13]) == total
        assert total < 0 and game.render().shape == (210, 160, 3)
    env.close()


def test_scores_by_both_published_forms() -> None:
    assert references("Atari/Pong-nosticky-v0") == {
        "human": (-20.7, 14.6),
        "gamer-rounded": (-21.0, 15.0),
    }
    assert list(references("Atari/Asterix-sticky-v0")) == ["human"]
    assert references("BreakoutNoFrameskip-v4") == references("ALE/Breakout-v5")
    # as published for Decision Transformer: Breakout 76.9 is 267.5 by the rounded form
    low, high = references("Atari/Breakout-nosticky-v0")["gamer-rounded"]
    assert 100 * (76.9 - low) / (high - low) == pytest.approx(267.5, abs=0.05)
    assert normalized_score("Atari/Seaquest-nosticky-v0", 42054.7) == pytest.approx(100)
    for game in GAMES:
        assert atari_game(atari.game_id(game, False)) == game
    assert atari_game("Hopper-v5") is None and list(references("Hopper-v5")) == ["d4rl"]


def test_a_stored_game_replayed_through_a_rollout_is_what_training_saw() -> None:
    """Stacks, rewards and ends are those of the stored episode, and an agent that meets them step
    by step predicts what it predicts for the window in training."""
    behaviour, provenance = behaviour_for("breakout", "medium", None)
    summary = collect("breakout", behaviour, 300, "own/breakout-v0", 2, provenance)
    assert summary["episodes"] >= 1 and "at random" in provenance["behaviour"]
    episodes = resolve("own/breakout-v0").read()
    assert episodes.observations.shape[1:] == (84, 84) and episodes.observations.dtype == np.uint8
    assert episodes.seeds[0] == 2 and episodes.info["env_id"] == "Atari/Breakout-nosticky-v0"
    assert replay_from_seeds(episodes, make("breakout")) is None  # what `data check` asks

    store = open_store(["own/breakout-v0"])
    length, known = int(store.lengths[0]), 30  # steps
    config = ReturnConditionedConfig(
        context_length=known,
        returns=ReturnSpec(scale=10),
        backbone=MambaConfig(width=16, layers=1, dropout=0.0),
    )
    agent = SequenceAgent.for_dataset(config, store).eval()
    window = WindowSampler(store, np.array([0]), length, config.returns, seed=0)
    batch = window.windows(torch.zeros(1, dtype=torch.int64))
    whole = (batch.observations, batch.actions, batch.returns_to_go, batch.timesteps)
    *columns, timesteps = (column[:, :known] for column in whole)
    with torch.no_grad():
        trained = agent(agent.preprocess(*columns), timesteps)
    predicted: list[torch.Tensor] = []
    agent.action_head.register_forward_hook(lambda *args: predicted.append(args[2][0]))

    lanes = open_lanes("breakout", 1)
    stacks = lanes.reset([episodes.seeds[0]])
    policy = Policy(agent, "window", float(store.episode_returns[0]))
    reward, ended = np.zeros(1), [False, False]
    for t in range(length):
        assert not any(ended)
        assert np.array_equal(stacks[0], batch.observations[0, t].numpy())
        if t < known:
            policy.act(stacks, reward)
            assert np.array_equal(policy.return_to_go, batch.returns_to_go[:, t].numpy())
        policy.action = batch.actions[:, t].numpy()
        stacks, reward, terminated, truncated = lanes.step(policy.action, np.array([True]))
        ended = [bool(terminated[0]), bool(truncated[0])]
        assert reward[0] == episodes.rewards[t]
    assert ended == [True, False]
    assert torch.allclose(torch.stack(predicted), trained[0], atol=1e-4)
    lanes.close()


def test_players_beat_chance() -> None:
    """The expert players; random ones lose every point of Pong and score about 2 in Breakout."""

    def first_rewards(name: str, steps: int, tier: str = "expert") -> list[float]:
        env = make(name)
        env.reset(seed=0)
        act = behaviour_for(name, tier, None)[0](np.random.default_rng(0), env)
        rewards = [float(env.step(act(np.zeros(0)))[1]) for _ in range(steps)]
        env.close()
        return rewards

    pong = first_rewards("pong", 500)
    assert sum(pong) >= 0 and any(pong)
    breakout = first_rewards("breakout", 800)
    assert sum(breakout) > 10 and max(breakout) > 1  # not clipped
    assert sum(first_rewards("pong", 500, "random")) < -5
    assert sum(first_rewards("breakout", 800, "random")) < 10
    with pytest.raises(UserError, match="no player 'simple'; there is: random, medium, expert"):
        behaviour_for("pong", "simple", None)


def test_agents_are_rolled_out_in_several_games_at_once() -> None:
    config = ReturnConditionedConfig(
        context_length=4, backbone=MambaConfig(width=16, layers=1, dropout=0.0), temperature=1.0
    )
    torch.manual_seed(0)
    spec = AgentSpec((84, 84), 4, discrete=True, max_timestep=100)
    agent = config.agent(config, spec).eval()
    rows = rollout(agent, "breakout", [5.0], 2, 3, "stream")
    again = rollout(agent, "breakout", [5.0], 1, 4, "stream")[0]
    assert (rows[1].episode_return, rows[1].length) == (again.episode_return, again.length)
    for row in rows:
        assert row.length > 100 and row.ood is None
        assert row.score_reference == "human" and row.normalized_score == pytest.approx(
            100 * (row.episode_return - 1.7) / (30.5 - 1.7)
        )
        assert set(row.normalized_scores) == {"human", "gamer-rounded"}


def test_agents_of_stable_baselines_are_collected_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sb3 = pytest.importorskip("stable_baselines3", reason="needs the extra `policies`")
    pytest.importorskip("sb3_contrib", reason="needs the extra `policies`")

    class Stacks(gym.Env):  # type: ignore[type-arg]
        """What make_atari_env and VecFrameStack show their agents, newest frame last."""

        observation_space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
        action_space = gym.spaces.Discrete(4)

    model = sb3.A2C("CnnPolicy", Stacks(), seed=0)
    model.save(tmp_path / "a2c.zip")
    with pytest.raises(UserError, match="--trust-policy"):
        behaviour_for("breakout", "a2c", tmp_path / "a2c.zip")
    behaviour, provenance = behaviour_for("breakout", "a2c", tmp_path / "a2c.zip", trust=True)
    env = make("breakout")
    act = behaviour(np.random.default_rng(3), env)
    lanes = open_lanes("breakout", 1)
    frame, stacks = env.reset(seed=0)[0], lanes.reset([0])
    for t in range(8):
        torch.manual_seed(t)
        action = act(frame)
        torch.manual_seed(t)
        assert action == model.predict(np.moveaxis(stacks[0], 0, -1), deterministic=False)[0]
        frame = env.step(action)[0]
        stacks = lanes.step(action[None], np.array([True]))[0]
    assert provenance["behaviour"] == "a2c.zip (Stable-Baselines3)"
    lanes.close()
    env.close()
