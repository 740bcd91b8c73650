"""Training as one streams: a batch's windows go on where those of the batch before ended, and the
backbone's state with them, without gradient (truncated backpropagation through time). What a window
learns may so lie further back than it is long, as far as the state holds it by itself."""

from __future__ import annotations

from torch import Tensor

from decision_seq.agents import SequenceAgent
from decision_seq.backbones.contract import State
from decision_seq.data.streams import StreamSampler


def new_state(agent: SequenceAgent, rows: int) -> State:
    """The state before the first window of each of `rows`."""
    return agent.backbone.init_state(rows, agent.device, agent.dtype)


def begin(agent: SequenceAgent, sampler: StreamSampler, step: int, rows: int) -> None:
    """Forget the past of the rows of batch number `step` that begin an episode."""
    assert agent.carried is not None
    agent.carried = agent.backbone.reset(agent.carried, sampler.begins(step, rows))


def forget(agent: SequenceAgent, skip: Tensor) -> None:
    """Forget the past of all rows where `skip` [] is 1: the batch was not finite, and nothing after
    it would be."""
    assert agent.carried is not None
    agent.carried = [
        {name: t.masked_fill(skip.bool(), 0) for name, t in layer.items()}
        for layer in agent.carried
    ]
