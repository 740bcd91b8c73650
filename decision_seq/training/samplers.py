"""What a run draws its batches from: windows or streams, to learn from and held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from decision_seq.data.store import EpisodeStore
from decision_seq.data.streams import Sampler, StreamSampler
from decision_seq.data.transforms import as_conditioned, hold_out, top_fraction
from decision_seq.data.windows import Hindsight, WindowSampler
from decision_seq.errors import UserError
from decision_seq.run_config import RunConfig
from decision_seq.training.validation import validation_samplers


def make_samplers(
    config: RunConfig,
    store: EpisodeStore,
    device: torch.device,
    hindsight: Hindsight | None = None,
) -> tuple[Sampler, dict[str, Sampler]]:
    """Windows or streams to learn from, and held-out ones by what their loss is called ({} if there
    are none)."""
    stream = config.train.stream
    if stream and config.data.weights:
        raise UserError(
            "data.weights draws windows from sources by their share, but train.stream takes every "
            "episode in turn; leave out one of them"
        )
    if stream and hindsight is not None:
        raise UserError(
            "goals in hindsight are drawn anew for every window, but train.stream carries a state "
            "from one to the next; leave out train.stream"
        )
    returns = config.agent.returns
    kept = top_fraction(store, config.data.top_fraction)
    store = as_conditioned(store, returns)
    training, held_out = hold_out(kept, config.data.validation_fraction, config.seed)

    def sampler(
        episodes: np.ndarray,
        weights: Sequence[float] = config.data.weights,
        spread: bool = False,
    ) -> Sampler:
        windows = WindowSampler(
            store,
            episodes,
            config.agent.context_length,
            returns,
            config.seed,
            device,
            full=config.data.windows == "full" and not stream,
            weights=weights,
            stack=config.agent.frame_stack,
            hindsight=hindsight,
        )
        return StreamSampler(windows, store.lengths[episodes], spread) if stream else windows

    return sampler(training, spread=True), validation_samplers(held_out, store, sampler)
