"""Fitting a critic to a dataset, once for all runs on it: resumable, and kept in the cache."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from decision_seq.agents.spec import AgentConfig
from decision_seq.config import to_plain
from decision_seq.data.store import EpisodeStore
from decision_seq.errors import UserError
from decision_seq.files import atomic_file, cache_dir, exclusive, write_text
from decision_seq.model.encoders.choice import observation_encoder
from decision_seq.progress import progress_bar
from decision_seq.signals import stop_on_signal
from decision_seq.values.critic import Critic, Learner, ValuesConfig
from decision_seq.values.transitions import Transitions

FILE, DIAGNOSTICS, PROGRESS = "values.safetensors", "values.json", "progress.pt"
LAYOUT = 2  # of these files; what an earlier one left in the cache is not read
SAVE_EVERY = 1_000  # steps, for who is killed; a signal saves where it is
SAMPLE, SAMPLE_OF_IMAGES = 10_000, 500  # transitions that the diagnostics look at


def ensure_values(
    run: Path,
    store: EpisodeStore,
    config: ValuesConfig,
    seed: int,
    action_scale: Tensor,
    agent: AgentConfig | None = None,
) -> Critic:
    """The critic of `store`, frozen, and left in the run folder with its diagnostics. One that was
    fitted before, to the same data by the same settings and seed, is taken from the cache.

    Args:
        run: run folder.
        store: the dataset.
        config: how to fit.
        seed: of weights and of what is drawn.
        action_scale: [A], of the agent's actions; [] if they are discrete.
        agent: says by which encoders images are seen; not needed of vectors.

    Raises:
        UserError: actions are of a kind that no values are fitted of, or the fit diverges.
    """
    identity = {"layout": LAYOUT, "data": store.hash, "seed": seed, **to_plain(config)}
    if store.finals_hash:
        identity["finals"] = store.finals_hash
    stack = None
    if agent is not None and store.frames:
        stack = agent.frame_stack
        identity |= to_plain({"encoder": agent.encoder, "encoders": agent.encoders, "n": stack})
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir() / "values" / key
    folder.mkdir(parents=True, exist_ok=True)
    critic = _new(store, config, seed, agent)
    with exclusive(folder / ".lock", wait=True):
        if not (folder / FILE).exists():
            if critic.encoder is not None:  # statistics of images; before the slow copy is made
                critic.encoder.fit(store.observations)
            transitions = Transitions.of(store, action_scale, stack)
            _fit(folder, store, transitions, Learner(critic, config), seed)
    critic.load_state_dict(_read(folder / FILE))
    for name in (FILE, DIAGNOSTICS):
        with atomic_file(run / name) as temporary:
            temporary.write_bytes((folder / name).read_bytes())
    return critic.requires_grad_(False)


def read_diagnostics(run: Path) -> dict[str, Any]:
    """What `diagnose` found of the run's values."""
    return json.loads((run / DIAGNOSTICS).read_text(encoding="utf-8"))


def _new(store: EpisodeStore, config: ValuesConfig, seed: int, agent: AgentConfig | None) -> Critic:
    """Untrained; in eval mode, so that images are never shifted and a step draws nothing."""
    shape, table = store.observations.shape[1:], store.observation_table
    named = (agent.encoder, agent.encoders, agent.frame_stack) if agent else (None, {}, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = observation_encoder(shape, table, *named)
        width = encoder.features if encoder else shape[0]
        return Critic(width, store.action_dim, store.discrete, config, encoder).eval()


def _fit(
    folder: Path, store: EpisodeStore, transitions: Transitions, learner: Learner, seed: int
) -> None:
    critic, config, done = learner.critic, learner.config, 0
    if (folder / PROGRESS).exists():
        state = torch.load(folder / PROGRESS, weights_only=True)
        done = state.pop("step")
        learner.restore(state)
    watched: dict[str, Tensor] = {}
    with stop_on_signal() as stop, progress_bar() as bar:
        task = bar.add_task("values", total=config.steps, completed=done, note="")
        while done < config.steps:
            generator = np.random.Generator(np.random.Philox(key=seed, counter=done))
            watched = learner.step(transitions.draw(generator, config.batch_size))
            done += 1
            if done % 100 == 0:
                bar.update(task, completed=done, note=f"TD error {watched['td_error']:.3f}")
            if (done % SAVE_EVERY == 0 or stop.requested) and done < config.steps:
                _keep(folder / PROGRESS, {"step": done, **learner.state()})
                if stop.requested:
                    raise KeyboardInterrupt(f"{done:,} steps of values are kept, and gone on from")
    if not all(weight.isfinite().all() for weight in critic.parameters()):
        raise UserError(f"{store.name}: its values are not finite; lower values.learning_rate")
    diagnostics = diagnose(critic, transitions, store, config.discount)
    write_text(folder / DIAGNOSTICS, json.dumps(diagnostics, indent=1) + "\n")
    with atomic_file(folder / FILE) as temporary:
        weights = critic.state_dict()
        temporary.write_bytes(save({name: w.contiguous() for name, w in weights.items()}))
    (folder / PROGRESS).unlink(missing_ok=True)
    if stop.requested:  # in the last step
        raise KeyboardInterrupt("all steps of values are kept, and gone on from")


@torch.no_grad()
def diagnose(
    critic: Critic, transitions: Transitions, store: EpisodeStore, discount: float
) -> dict[str, Any]:
    """Temporal difference error, and Q beside the discounted returns that followed in the data, on
    steps of episodes that terminated: those of others went on unseen. `overestimation` is the mean
    of Q less that of the returns, which for better than the data's policy may be above 0."""
    generator = np.random.default_rng(0)
    size = SAMPLE if critic.encoder is None else SAMPLE_OF_IMAGES
    s, a, r, terminated, following = transitions.draw(generator, size)
    s, following = critic.features(s), critic.features(following)
    q, value = critic.q(s, a), critic.value(s)
    target = r + discount * (1 - terminated) * critic.value(following)
    found: dict[str, Any] = {
        "td_error": float((target - q).abs().mean()),
        "q_mean": float(q.amin(0).mean()),
        "q_magnitude": float(q.amin(0).abs().mean()),
        "v_mean": float(value.mean()),
        "advantage_rms": float((q.amin(0) - value).square().mean().sqrt()),
    }
    whole = np.repeat(store.terminated[store.offsets[1:] - 1], store.lengths)  # [steps]
    rows = np.flatnonzero(whole)
    if len(rows):
        some = generator.choice(rows, min(size, len(rows)), replace=False)
        returns = discounted_returns(store, discount)[some]
        seen = critic.features(transitions.observe(torch.from_numpy(some)))
        own = critic.q(seen, transitions.actions[some]).amin(0).numpy()
        found |= {
            "return_mean": float(returns.mean()),
            "overestimation": float(own.mean() - returns.mean()),
            "correlation": float(np.corrcoef(own, returns)[0, 1]) if returns.std() else None,
        }
    return found


def discounted_returns(store: EpisodeStore, discount: float) -> np.ndarray:
    """[steps] float64: what followed each step in its episode, discounted."""
    returns = np.zeros(store.steps)
    for first, stop in zip(store.offsets[:-1], store.offsets[1:], strict=True):
        total = 0.0
        for t in range(stop - 1, first - 1, -1):
            total = store.rewards[t] + discount * total
            returns[t] = total
    return returns


def _keep(path: Path, state: dict[str, Any]) -> None:
    data = io.BytesIO()
    torch.save(state, data)
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.getbuffer())


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        raise UserError(f"{path}: is damaged; delete it, and it is fitted again") from None
