"""Frames: stored once and stacked by index, agents that see frames."""

from __future__ import annotations

import dataclasses
import json
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SIDES, frame_episodes
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from decision_seq.agents import SequenceAgent, load_agent, save_agent
from decision_seq.agents.fit import check_fit
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.agents.spec import AgentConfig, AgentSpec
from decision_seq.backbones import BackboneConfig
from decision_seq.config import build
from decision_seq.data import frames as frames_module
from decision_seq.data.episodes import Episodes, concatenate, from_flat
from decision_seq.data.sources import npz
from decision_seq.data.store import EpisodeStore, checksum, open_folder, open_store, write_store
from decision_seq.data.transforms import ReturnSpec, as_conditioned
from decision_seq.data.windows import WindowSampler
from decision_seq.envs.registry import make
from decision_seq.errors import UserError
from decision_seq.eval.inspect.influence import full_windows, measure_influence
from decision_seq.eval.rollout.episodes import rollout
from decision_seq.model.encoders import ImageEncoderConfig, NatureConfig
from decision_seq.policy import Policy
from decision_seq.run_config import run_config
from decision_seq.training.loop import train
from decision_seq.values.transitions import Transitions


def store_of(episodes: Episodes, folder: Path) -> EpisodeStore:
    write_store(folder, episodes, {})
    return open_folder(folder, "frames")


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    return store_of(frame_episodes([3, 12, 7, 1]), tmp_path / "store")


def sampler(store: EpisodeStore, length: int, returns: ReturnSpec | None = None) -> WindowSampler:
    return WindowSampler(store, np.arange(store.episodes), length, returns or ReturnSpec(), seed=0)


def naive_stack(episodes: Episodes, episode: int, step: int) -> np.ndarray:
    """What a wrapper that starts every episode with a queue of four black frames would show."""
    queue = [np.zeros(episodes.observations.shape[1:], np.uint8)] * 4
    first = episodes.offsets[episode]
    for row in range(first, first + step + 1):
        queue = [*queue[1:], episodes.observations[row]]
    return np.stack(queue)


# ---- stacks by index ------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    length=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_stacks_are_those_of_a_queue(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, seed: int
) -> None:
    episodes = frame_episodes(lengths, seed, sides=(2, 3))
    batches = sampler(store_of(episodes, tmp_path_factory.mktemp("s") / "store"), length)
    batch, places = batches.batch(3, 8), batches.places(3, 8)
    for window, (episode, start) in enumerate(places):
        there = min(length, lengths[episode] - start)
        assert batch.mask[window].tolist() == [True] * there + [False] * (length - there)
        for k in range(there):
            expected = naive_stack(episodes, episode, start + k)
            assert np.array_equal(batch.observations[window, k].numpy(), expected)


def test_an_episode_begins_with_black_frames(store: EpisodeStore) -> None:
    first = sampler(store, 5).windows(torch.tensor([3])).observations[0].numpy()  # episode 1
    row = store.offsets[1]
    for k in range(4):
        assert not first[k, : 3 - k].any()
        assert np.array_equal(first[k, 3 - k :], store.observations[row : row + k + 1])


def test_each_frame_of_a_window_is_there_once(store: EpisodeStore) -> None:
    stacks = sampler(store, 5).batch(0, 2).observations
    assert stacks.dtype == torch.uint8 and stacks.shape == (2, 5, 4, *SIDES)
    assert stacks.untyped_storage().nbytes() == 2 * (5 + 3) * SIDES[0] * SIDES[1]


def resident(kind: str) -> int:
    """Bytes of this process's memory, RssAnon or RssFile."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{kind}:\s+(\d+) kB", status)[1])  # type: ignore[index]


def test_reading_a_dataset_does_not_make_it_resident(tmp_path: Path) -> None:
    store = store_of(frame_episodes([1000] * 6, sides=(84, 84)), tmp_path / "store")
    size = store.observations.nbytes  # 42 MB
    batches = sampler(store, 30)
    batches.batch(0, 4)
    before = {kind: resident(kind) for kind in ("RssAnon", "RssFile")}
    for i in range(50):  # 50 x 4 windows of 33 frames: every page of the file, on average once
        batches.batch(i, 4)
    assert resident("RssFile") - before["RssFile"] < size / 4
    assert resident("RssAnon") - before["RssAnon"] < size / 4


# ---- what sources deliver -------------------------------------------------------------------


def test_stacks_are_stored_as_single_frames(store: EpisodeStore) -> None:
    episodes = frame_episodes([6, 5])
    stacks = np.stack([naive_stack(episodes, m, t) for m in (0, 1) for t in range((6, 5)[m])])
    columns = (episodes.actions, episodes.rewards, episodes.terminated, episodes.truncated)
    same = from_flat("stacks", stacks, *columns, info={})
    assert np.array_equal(same.observations, episodes.observations)
    after = stacks[[1, 7]]
    ended = from_flat("stacks", stacks, *columns, info={}, after=after)
    assert np.array_equal(np.array(ended.final_observations), after[:, -1])
    with pytest.raises(UserError, match=r"no stacks of successive frames, oldest first"):
        from_flat("newest first", stacks[:, ::-1], *columns, info={})
    rgb = from_flat("rgb", np.zeros((11, *SIDES, 3), np.uint8), *columns, info={})
    assert rgb.observations.shape == (11, *SIDES, 3)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz_of_images_is_read_piece_by_piece(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (23, 12, 10), np.uint8)
    arrays = {
        "observations": frames,
        "actions": np.arange(23) % 3,
        "rewards": np.zeros(23, np.float32),
        "terminations": np.arange(23) == 22,
        "truncations": np.zeros(23, bool),
    }
    write(tmp_path / "a.npz", **arrays)
    held: list[int] = []
    monkeypatch.setattr(frames_module, "CHUNK_BYTES", 500)
    monkeypatch.setattr(npz, "release", lambda array: held.append(1))
    read = npz.read(tmp_path / "a.npz")
    assert len(held) == 6 and np.array_equal(read.observations, frames)  # 4 frames a piece
    base = read.observations
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "b.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"b\.npz: cannot be read as \.npz"):
        npz.read(tmp_path / "b.npz")


def test_minari_frames_and_their_action_count(tmp_path: Path) -> None:
    import minari
    from gymnasium import spaces
    from minari.data_collector.episode_buffer import EpisodeBuffer

    episodes = frame_episodes([6, 5])
    episodes.actions[:] = 1  # not all of the space's
    buffers = []
    for m, (a, b) in enumerate(zip(episodes.offsets[:-1], episodes.offsets[1:], strict=True)):
        seen = np.stack([naive_stack(episodes, m, t) for t in range(b - a)])
        buffers.append(
            EpisodeBuffer(
                id=m,
                observations=np.concatenate([seen, seen[-1:]]),
                actions=episodes.actions[a:b],
                rewards=episodes.rewards[a:b].tolist(),
                terminations=episodes.terminated[a:b].tolist(),
                truncations=episodes.truncated[a:b].tolist(),
            )
        )
    with pytest.warns(UserWarning):  # about an author's address
        minari.create_dataset_from_buffers(
            "frames/test-v0",
            buffers,
            observation_space=spaces.Box(0, 255, (4, *SIDES), np.uint8),
            action_space=spaces.Discrete(6),
            jpeg_encoding=False,
        )
    store = open_store(["frames/test-v0"])
    assert np.array_equal(store.observations, episodes.observations)
    assert store.action_dim == 6 and store.frame_stack == 4


def test_sources_are_joined_on_disk() -> None:
    parts = [frame_episodes([3, 2]), frame_episodes([4], seed=1)]
    whole = concatenate(parts, ["a", "b"])
    assert isinstance(whole.observations, np.memmap)
    assert np.array_equal(whole.observations, np.concatenate([p.observations for p in parts]))
    other = dataclasses.replace(parts[1], info={"env_id": "ALE/Breakout-v5"})
    with pytest.raises(UserError, match=r"b: is of .*Breakout-.*, but a of .*Pong.*; sources"):
        concatenate([parts[0], other], ["a", "b"])


def test_a_store_is_written_and_hashed_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = frame_episodes([5, 8])
    whole = store_of(episodes, tmp_path / "whole")
    monkeypatch.setattr(frames_module, "CHUNK_BYTES", 3 * SIDES[0] * SIDES[1])
    pieces = store_of(episodes, tmp_path / "pieces")
    assert pieces.hash == whole.hash == checksum(vars(pieces))
    assert np.array_equal(pieces.observations, episodes.observations)


def test_the_stack_after_an_episode_ends_with_what_was_seen_then(tmp_path: Path) -> None:
    episodes = frame_episodes([3, 12, 1])
    episodes.truncated, episodes.terminated = episodes.terminated, episodes.truncated
    finals = np.random.default_rng(9).integers(0, 256, (3, *SIDES), dtype=np.uint8)
    store = store_of(dataclasses.replace(episodes, final_observations=finals), tmp_path / "store")
    assert store.final_observations is not None
    for n in (1, 4):
        table = Transitions.of(store, torch.ones(()), n)
        last = store.offsets[1:] - 1
        after = table.observe(table.following[torch.from_numpy(np.append(last, 0))])  # and a step
        for m in range(3):
            stack = naive_stack(episodes, m, store.lengths[m] - 1)
            assert np.array_equal(after[m], [*stack[5 - n :], finals[m]])
        assert np.array_equal(after[3], naive_stack(episodes, 0, 1)[4 - n :])


# ---- agents ---------------------------------------------------------------------------------


def agent_config(backbone: str = "mamba", **fields: object) -> AgentConfig:
    small = build(  # type: ignore[type-abstract]
        BackboneConfig, {"kind": backbone, "width": 16, "layers": 2, "dropout": 0.0}, "test"
    )
    settings = {"context_length": 6, "returns": ReturnSpec(scale=2.0), "backbone": small}
    return ReturnConditionedConfig(**(settings | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("backbone", ["attention", "mamba", "conv"])
def test_replaying_an_episode_gives_what_training_computes(
    store: EpisodeStore, backbone: str
) -> None:
    torch.manual_seed(0)
    agent = SequenceAgent.for_dataset(agent_config(backbone), store).eval()
    with torch.no_grad():
        agent.embedding.timestep.weight.normal_()  # it starts at zero and would hide a wrong index
    episode, start = 1, int(store.offsets[1])
    batch = sampler(store, 6, agent.config.returns).windows(torch.tensor([3]))
    values = agent.preprocess(batch.observations, batch.actions, batch.returns_to_go)
    predicted = agent(values, batch.timesteps)[0]  # [6, A]
    seen: list[torch.Tensor] = []
    agent.predict = lambda features, head=agent.action_head: seen.append(head(features)) or seen[-1]  # type: ignore[method-assign,assignment]
    for context in ("window", "stream"):
        seen.clear()
        policy = Policy(agent, context, store.episode_returns[1])
        reward = 0.0
        for t in range(6):
            policy.act(naive_stack(as_episodes(store), episode, t), reward)
            policy.action = store.actions[start + t : start + t + 1]
            reward = store.rewards[start + t]
        torch.testing.assert_close(torch.cat(seen), predicted, rtol=1e-4, atol=1e-5)


def as_episodes(store: EpisodeStore) -> Episodes:
    names = [f.name for f in dataclasses.fields(Episodes)]
    return Episodes(**{name: getattr(store, name) for name in names})


@pytest.mark.parametrize("kind", ["nature", "asymmetric"])
def test_gradients_reach_the_encoder(store: EpisodeStore, kind: str) -> None:
    fields = {"patch": 4, "width": 8, "layers": 1} if kind == "asymmetric" else {}
    encoder = build(  # type: ignore[type-abstract]
        ImageEncoderConfig, {"kind": kind, "random_shift": 2, **fields}, "test"
    )
    if kind == "asymmetric":
        encoder = dataclasses.replace(encoder, symmetry_penalty=0.1)
    torch.manual_seed(0)
    agent = SequenceAgent.for_dataset(agent_config(encoder=encoder), store).train()
    batch = sampler(store, 6, agent.config.returns).batch(0, 4)
    loss = agent.loss(batch)
    loss.backward()
    assert agent.encoder is not None
    for name, parameter in agent.encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    agent.eval()
    assert agent.loss(batch) == agent.loss(batch)  # no shift, no draws
    if kind == "asymmetric":
        penalty = agent.encoder.penalty()
        assert penalty > 0 and agent.penalty().item() == pytest.approx(penalty.item())


def test_bfloat16_sees_the_same_pixels(store: EpisodeStore) -> None:
    torch.manual_seed(0)
    agent = SequenceAgent.for_dataset(agent_config(), store).eval()
    batch = sampler(store, 6, agent.config.returns).batch(0, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert agent.encoder is not None
        assert agent.encoder(batch.observations).dtype == torch.bfloat16
        rough = agent.loss(batch)
    torch.testing.assert_close(rough, agent.loss(batch), rtol=0.02, atol=0.02)


def test_frames_are_inspected_but_have_no_return_prior(store: EpisodeStore) -> None:
    agent = SequenceAgent.for_dataset(agent_config(), store).eval()
    norms = measure_influence(agent, full_windows(store, agent, 6, count=3, seed=0)).norms
    assert np.isfinite(norms).all() and norms.shape == (3, 6 * 3 - 1)
    with pytest.raises(UserError, match=r"auto, which takes vector observations, but .* frames"):
        rollout(agent, "pong", "auto", 1, 0, "window")


def test_a_checkpoint_of_frames_acts_by_itself(store: EpisodeStore, tmp_path: Path) -> None:
    torch.manual_seed(0)
    agent = SequenceAgent.for_dataset(agent_config(), store).eval()
    save_agent(agent, tmp_path / "agent.safetensors")
    loaded = load_agent(tmp_path / "agent.safetensors")
    assert loaded.config.encoder == NatureConfig()  # named, so that another default changes nothing
    batch = sampler(store, 6).batch(0, 4)
    assert torch.equal(loaded.loss(batch), agent.loss(batch))


def test_agents_from_before_frames_are_read(tmp_path: Path) -> None:
    config, spec = agent_config(), AgentSpec((3,), 2, False, 9)
    agent = config.agent(config, spec).eval()
    path = tmp_path / "agent.safetensors"
    save_agent(agent, path)
    with safe_open(path, "pt") as file:
        header, old = file.metadata(), {"observation_dim": 3}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    old |= {"action_dim": 2, "discrete": False, "max_timestep": 9}
    old_config = json.loads(header["config"])
    del old_config["encoder"], old_config["returns"]["clipped"]
    changed = {"spec": json.dumps(old), "config": json.dumps(old_config)}
    path.write_bytes(save(tensors, header | changed))
    assert load_agent(path).spec == spec


def test_vectors_take_no_encoder() -> None:
    with pytest.raises(UserError, match=r"agent.encoder is nature, which is for frames"):
        SequenceAgent(agent_config(encoder=NatureConfig()), AgentSpec((3,), 2, False, 9))


def test_clipped_rewards_count_alike_in_training_and_acting(store: EpisodeStore) -> None:
    returns = ReturnSpec(scale=2.0, clipped=True)
    conditioned = as_conditioned(store, returns)
    rewards = np.clip(store.rewards[3:15], -1, 1)
    assert store.rewards.max() > 1 and conditioned.episode_returns[1] == rewards.sum()
    agent = SequenceAgent.for_dataset(agent_config(returns=returns), store).eval()
    policy, stack = Policy(agent, "stream", 8.0), np.zeros((1, 4, *SIDES), np.uint8)
    policy.act(stack)
    policy.act(stack, 400.0)
    assert policy.return_to_go.tolist() == [(8.0 - 1.0) / 2.0]
    clipped = dataclasses.replace(store, info={"rewards": "clipped"})
    with pytest.raises(UserError, match=r"holds rewards clipped .* set agent.returns.clipped"):
        SequenceAgent.for_dataset(agent_config(), clipped)


# ---- with the games -------------------------------------------------------------------------


def test_wrong_games_are_one_sentence() -> None:
    pytest.importorskip("ale_py")
    pong, breakout = make("pong"), make("breakout")
    spec = AgentSpec((84, 84), 6, True, 9, "PongNoFrameskip-v4", action_count_known=True)
    check_fit(spec, pong)
    with pytest.raises(UserError, match=r"of Atari/Pong-.*; Atari/Breakout-.* is another"):
        check_fit(spec, breakout)
    nameless = dataclasses.replace(spec, env=None)
    with pytest.raises(UserError, match=r"discrete actions 0 to 5, but .*Breakout.* takes 0 to 3"):
        check_fit(nameless, breakout)
    fewer = dataclasses.replace(spec, action_dim=5)
    with pytest.raises(UserError, match=r"discrete actions 0 to 4, but .*Pong.* takes 0 to 5"):
        check_fit(fewer, pong)
    check_fit(dataclasses.replace(fewer, action_count_known=False), pong)
    with pytest.raises(UserError, match=r"observations of width 3, but .* gives shape 84 x 84"):
        check_fit(dataclasses.replace(spec, observation_shape=(3,)), pong)


def test_training_runs_on_frames(tmp_path: Path) -> None:
    pytest.importorskip("ale_py")
    episodes = frame_episodes([9, 8, 7, 6], sides=(84, 84))
    columns = ("observations", "actions", "rewards")
    np.savez(
        tmp_path / "pong.npz",
        **{name: getattr(episodes, name) for name in columns},
        terminations=episodes.terminated,
        truncations=episodes.truncated,
        meta=np.array(json.dumps({"env_id": "PongNoFrameskip-v4", "action_count": 6})),
    )
    backbone = {"width": 8, "layers": 1}
    settings = {
        "env": "pong",
        "data": {"sources": [str(tmp_path / "pong.npz")], "validation_fraction": 0.25},
        "agent": {"preset": "decision-mamba", "context_length": 3, "backbone": backbone},
        "train": {"steps": 4, "batch_size": 2, "log_interval": 1, "checkpoint_interval": 2},
    }
    config = run_config(settings, {"agent": {"encoder": {"kind": "nature", "random_shift": 4}}}, "")
    assert train(config, tmp_path / "run", torch.device("cpu"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert len([row for row in rows if np.isfinite(row.get("loss", np.nan))]) == 4
    assert not (tmp_path / "run" / "return_prior.safetensors").exists()
    other = run_config(settings | {"env": "breakout"}, {}, "")
    with pytest.raises(UserError, match=r"Pong-nosticky-v0; Atari/Breakout-nosticky-v0 is another"):
        train(other, tmp_path / "other", torch.device("cpu"))
