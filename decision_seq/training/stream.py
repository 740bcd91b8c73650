"""Training as one streams: a batch's windows go on where those of the batch before ended, and the
backbone's state with them, without gradient (truncated backpropagation through time). What a window
learns may so lie further back than it is long, as far as the state holds it by itself."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from decision_seq.agents import SequenceAgent
from decision_seq.backbones.contract import State
from decision_seq.data.windows import Batch


def begin(agent: SequenceAgent, state: State | None, begins: Tensor) -> State:
    """`state`, but new in the rows [B] that begin an episode; None: before the first window."""
    if state is None:
        return agent.backbone.init_state(len(begins), agent.device, agent.dtype)
    return agent.backbone.reset(state, begins)


def loss_after(
    agent: SequenceAgent, state: State | None, batch: Batch, loss: Callable[[Batch], Tensor]
) -> tuple[Tensor, State | None]:
    """The agent's loss [] of a batch whose rows go on from `state`, and the state after it; None:
    windows on their own."""
    agent.carried = state
    try:
        return loss(batch), agent.carried
    finally:  # whoever else uses the agent starts anew
        agent.carried = None


def forget(state: State, skip: Tensor) -> State:
    """New in all rows where `skip` [] is 1: the batch was not finite, and nothing after it would
    be."""
    return [{name: t.masked_fill(skip.bool(), 0) for name, t in part.items()} for part in state]
