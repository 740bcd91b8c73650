"""The start of the timestep embedding in transformers' DecisionTransformerModel: score by steps.

    python -m benchmarks.timestep_embedding --out transformers.jsonl
    python -m benchmarks.timestep_embedding --out transformers.jsonl --body walker2d
    python -m benchmarks.timestep_embedding --lengths      # of what a token is the sum of

Data, windows, settings and targets are those of configs/compare-medium-expert.yaml, the model is
theirs, rolled out by a window of the last K steps. It starts all its embeddings at N(0, 0.02), that
of the timestep too; Decision Transformer's code starts that at N(0, 1). Three starts are tried:
`own`, `zero` and `published`. A row is the score of a model after some steps; rows that are there
are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from decision_seq.agents import SequenceAgent
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.backbones.mamba import MambaConfig
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.data.transforms import ObservationNorm, ReturnSpec, hold_out
from decision_seq.data.windows import Batch, WindowSampler
from decision_seq.envs.fastest import open_lanes
from decision_seq.envs.reference_scores import normalized_score
from decision_seq.files import read_jsonl
from decision_seq.hardware import hardware

LENGTH, WIDTH, LAYERS, SCALE = 10, 64, 2, 1000.0
STEPS, EVERY, WARMUP, RATE, BATCH, CLIP = 4000, 1000, 200, 2e-3, 64, 0.25
EPISODES = 10
BODIES = {"hopper": ("Hopper-v5", (3600, 1500)), "walker2d": ("Walker2d-v5", (5000, 2500))}
STARTS = ("published", "own", "zero")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--body", choices=BODIES, default="hopper")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(5))
    parser.add_argument("--out", type=Path, default=Path("transformers.jsonl"))
    parser.add_argument("--lengths", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    env, targets = BODIES[arguments.body]
    store = open_store([f"decision-seq/{arguments.body}/{t}-v0" for t in ("medium", "expert")])
    norm = ObservationNorm.of(store.observations)
    if arguments.lengths:
        print_lengths(store, norm)
        return
    done = {(row["env"], row["start"], row["seed"]) for row in read_jsonl(arguments.out)}
    for seed in arguments.seeds:
        for start in arguments.starts:
            if (env, start, seed) in done:
                continue
            rows = []
            for step, model in train(store, norm, start, seed):
                for target in targets:
                    returns = roll_out(model, norm, env, target)
                    rows.append(
                        {"agent": "transformers", "start": start, "seed": seed, "step": step,
                         "env": env, "dataset": store.hash, "target": target,
                         "context": "window", "episode_returns": returns.tolist(),
                         "score": normalized_score(env, float(returns.mean())),
                         "hardware": hardware(torch.device("cpu"))}
                    )  # fmt: skip
                    print(start, seed, step, target, round(rows[-1]["score"] or 0, 1), flush=True)
            with arguments.out.open("a", encoding="utf-8") as file:  # whole runs only
                file.writelines(json.dumps(row) + "\n" for row in rows)


@torch.no_grad()
def print_lengths(store: EpisodeStore, norm: ObservationNorm) -> None:
    """Root mean square length of an untrained token's two summands, in units of sqrt(D)."""
    sampler = WindowSampler(store, np.arange(store.episodes), LENGTH, ReturnSpec(SCALE), 0)
    batch = sampler.batch(0, 1024)
    states = torch.from_numpy((batch.observations.numpy() - norm.mean) / norm.std)
    inputs = {
        "return_to_go": batch.returns_to_go.unsqueeze(-1),
        "observation": states,
        "action": batch.actions,
    }
    torch.manual_seed(0)
    config = ReturnConditionedConfig(
        returns=ReturnSpec(SCALE), backbone=MambaConfig(width=WIDTH, layers=LAYERS)
    )
    for start in ("zero", "published"):
        agent = SequenceAgent.for_dataset(replace(config, timestep_init=start), store)
        embed = {kind: agent.embedding.embed[kind] for kind in inputs}
        show(f"ours, {start}", embed, agent.embedding.timestep, inputs, batch)
    for start in STARTS:
        model = new_model(store, start)
        layers = model.embed_return, model.embed_state, model.embed_action
        embed = dict(zip(inputs, layers, strict=True))
        show(f"transformers, {start}", embed, model.embed_timestep, inputs, batch)


def show(name: str, embed: dict, timestep: Any, inputs: dict[str, Tensor], batch: Batch) -> None:
    lengths = {kind: embed[kind](value)[batch.mask] for kind, value in inputs.items()}
    lengths["timestep"] = timestep(batch.timesteps)[batch.mask]
    words = [f"{kind} {value.square().mean().sqrt():.3f}" for kind, value in lengths.items()]
    print(f"{name}: {', '.join(words)}")


def train(
    store: EpisodeStore, norm: ObservationNorm, start: str, seed: int
) -> Iterator[tuple[int, DecisionTransformerModel]]:
    """Yields the model after every `EVERY` steps."""
    torch.manual_seed(seed)
    model = new_model(store, start)
    episodes, _ = hold_out(np.arange(store.episodes), 0.05, seed)
    sampler = WindowSampler(store, episodes, LENGTH, ReturnSpec(SCALE), seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-4)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            decay = 0.5 * (1 + math.cos(math.pi * max(0, step - WARMUP) / (STEPS - WARMUP)))
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * decay
        batch = sampler.batch(step, BATCH)
        error = predict(model, norm, batch)[batch.mask] - batch.actions[batch.mask]
        optimizer.zero_grad()
        error.square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        if (step + 1) % EVERY == 0:
            yield step + 1, model.eval()
            model.train()


def new_model(store: EpisodeStore, start: str) -> DecisionTransformerModel:
    """Untrained, of our size, without dropout."""
    config = DecisionTransformerConfig(
        state_dim=store.observations.shape[1], act_dim=store.action_dim, hidden_size=WIDTH,
        n_layer=LAYERS, n_head=1, n_inner=4 * WIDTH, n_positions=3 * LENGTH, max_ep_len=1000,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = DecisionTransformerModel(config)
    if start != "own":
        torch.nn.init.normal_(model.embed_timestep.weight, std=float(start == "published"))
    return model


def predict(model: DecisionTransformerModel, norm: ObservationNorm, batch: Batch) -> Tensor:
    """Actions [B, K, A] from windows of raw observations."""
    states = (batch.observations - torch.from_numpy(norm.mean)) / torch.from_numpy(norm.std)
    return model(
        states=states,
        actions=batch.actions,
        returns_to_go=batch.returns_to_go.unsqueeze(-1),
        timesteps=batch.timesteps,
        attention_mask=batch.mask.long(),
    ).action_preds


@torch.no_grad()
def roll_out(
    model: DecisionTransformerModel, norm: ObservationNorm, env: str, target: float
) -> np.ndarray:
    """Returns [EPISODES] by a window of the last K steps, from environment seeds 0 and up."""
    lanes = open_lanes(env, EPISODES)
    seen = [lanes.reset(range(EPISODES))]
    returns, alive = np.zeros(EPISODES), np.ones(EPISODES, bool)
    to_go = [np.full(EPISODES, target, np.float32)]
    acted = [np.zeros((EPISODES, *(lanes.action_space.shape or ())), np.float32)]  # 0 for now's
    while alive.any():
        first = max(0, len(seen) - LENGTH)
        window = Batch(
            torch.from_numpy(np.stack(seen[first:], axis=1)),
            torch.from_numpy(np.stack(acted[first:], axis=1)),
            torch.from_numpy(np.stack(to_go[first:], axis=1) / np.float32(SCALE)),
            torch.arange(first, len(seen)).expand(EPISODES, -1),
            torch.ones(EPISODES, len(seen) - first, dtype=torch.bool),
            torch.zeros(EPISODES),
        )
        acted[-1] = predict(model, norm, window)[:, -1].clamp(-1, 1).numpy()
        observations, rewards, terminated, truncated = lanes.step(acted[-1], alive)
        returns += rewards
        alive &= ~(terminated | truncated)
        seen.append(observations)
        to_go.append(to_go[-1] - rewards.astype(np.float32))
        acted.append(np.zeros_like(acted[-1]))
    lanes.close()
    return returns


if __name__ == "__main__":
    main()
