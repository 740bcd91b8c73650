"""What a run draws its batches from: windows or streams to learn from, and held-out windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from decision_seq.data.store import EpisodeStore
from decision_seq.data.streams import StreamSampler
from decision_seq.data.transforms import as_conditioned, hold_out, top_fraction
from decision_seq.data.windows import Hindsight, WindowSampler
from decision_seq.errors import UserError
from decision_seq.run_config import RunConfig
from decision_seq.training.validation import validation_samplers

Sampler = WindowSampler | StreamSampler


def make_samplers(
    config: RunConfig,
    store: EpisodeStore,
    device: torch.device,
    hindsight: Hindsight | None = None,
) -> tuple[Sampler, dict[str, WindowSampler]]:
    """Windows to learn from, and held-out ones by what their loss is called ({} if there are
    none)."""
    returns = config.agent.returns
    kept = top_fraction(store, config.data.top_fraction)
    store = as_conditioned(store, returns)
    training, held_out = hold_out(kept, config.data.validation_fraction, config.seed)

    def windows(
        episodes: np.ndarray,
        weights: Sequence[float] = config.data.weights,
        full: bool = config.data.windows == "full",
    ) -> WindowSampler:
        return WindowSampler(
            store,
            episodes,
            config.agent.context_length,
            returns,
            config.seed,
            device,
            full=full,
            weights=weights,
            stack=config.agent.frame_stack,
            hindsight=hindsight,
        )

    validation = validation_samplers(held_out, store, windows)
    if not config.train.stream:
        return windows(training), validation
    if config.data.weights:
        raise UserError(
            "data.weights draws windows from sources by their share, but train.stream takes every "
            "episode in turn; leave out one of them"
        )
    if hindsight is not None:
        raise UserError(
            "goals in hindsight are drawn anew for every window, but train.stream carries a state "
            "from one to the next; leave out train.stream"
        )
    return StreamSampler(windows(training, full=False), store.lengths[training]), validation
