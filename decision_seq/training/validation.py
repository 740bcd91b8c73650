"""The loss on held-out episodes: of all of them, and of each source of a mixture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch

from decision_seq.agents import SequenceAgent
from decision_seq.data.store import EpisodeStore
from decision_seq.data.streams import Sampler, StreamSampler
from decision_seq.run_config import RunConfig
from decision_seq.training import stream
from decision_seq.training.optim import autocast

VALIDATION_BATCHES = 8


def validation_samplers(
    held_out: np.ndarray, store: EpisodeStore, sampler: Callable[..., Sampler]
) -> dict[str, Sampler]:
    """`validation_loss` and, where there are several sources, `validation_loss/SOURCE` of each: the
    mean over a mixture hides what is lost on the better part of it.

    Args:
        held_out: [M] indices of the held-out episodes; none, no samplers.
        store: the dataset.
        sampler: makes one of episodes, or of a source's alone with `weights=()`.
    """
    if not len(held_out):
        return {}
    samplers = {"validation_loss": sampler(held_out)}
    names = store.name.split(" + ")
    counts = Counter(names)
    ends = np.cumsum(store.episodes_per_source)
    for number, name in enumerate(names if len(names) > 1 else []):
        own = held_out[np.searchsorted(ends, held_out, side="right") == number]
        label = f"{name} ({number})" if counts[name] > 1 else name
        if len(own):
            samplers[f"validation_loss/{label}"] = sampler(own, weights=())
    return samplers


@torch.no_grad()
def validation_loss(agent: SequenceAgent, sampler: Sampler, config: RunConfig) -> float:
    """Mean loss over a fixed set of held-out windows, or over the steps of held-out streams, each
    from the start of an episode on."""
    agent.eval()
    size = config.train.batch_size
    with autocast(agent.device, config.train.precision):
        if isinstance(sampler, StreamSampler):
            return _streamed(agent, sampler, size)
        losses = [agent.loss(sampler.batch(i, size)) for i in range(VALIDATION_BATCHES)]
    return float(torch.stack(losses).mean())


def _streamed(agent: SequenceAgent, sampler: StreamSampler, rows: int) -> float:
    """Of `rows` streams, which go once or more often through as many windows as the longest episode
    has."""
    total, steps, state = 0.0, 0, None
    for i in range(-(-VALIDATION_BATCHES // sampler.longest) * sampler.longest):
        batch = sampler.batch(i, rows)
        state = stream.begin(agent, state, sampler.begins(i, rows))
        loss, state = stream.loss_after(agent, state, batch, agent.loss)
        count = int(batch.mask.sum())
        total, steps = total + float(loss) * count, steps + count
    return total / steps
