"""Fitted Q evaluation (Le, Voloshin and Yue, arXiv:1903.08738): what an agent would return, by data
alone.

    Q_i(s, a) by r + gamma (1 - terminated) Q'_i(s', pi(s'))        the estimate: Q_i(s_0, pi(s_0))

Q' are slow copies of Q. Every Q_i has a start of its own and learns from its own draw of the
episodes with replacement, so that their spread says how much depends on chance. pi is what the
agent does on the data's histories when it is asked for a return: it is not followed beyond them.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decision_seq.agents.base import SequenceAgent
from decision_seq.data.store import EpisodeStore
from decision_seq.data.transforms import ReturnSpec, as_conditioned
from decision_seq.data.windows import WindowSampler
from decision_seq.errors import UserError
from decision_seq.values.critic import ActionValues, ValuesConfig
from decision_seq.values.fit import discounted_returns
from decision_seq.values.transitions import Transitions

BIAS = (
    "an estimate by fitted Q evaluation asks its own Q for actions that the data may not hold, and "
    "usually says too much of agents that act unlike the data"
)
GREEDY = 1e3  # inverse temperature of an agent that takes the likeliest action
WINDOWS = 256  # at once


@dataclass(frozen=True)
class Estimate:
    """What an agent would return, discounted, by each of an ensemble."""

    target: float | None
    values: tuple[float, ...]  # of each Q_i, the mean over the data's first observations
    data: float  # mean discounted return of the data's own episodes
    discount: float
    td_error: float  # mean |r + gamma Q'(s', pi) - Q(s, a)| at the end, in units of the rewards

    @property
    def mean(self) -> float:
        """Over the ensemble."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float:
        """Standard deviation over the ensemble."""
        return float(np.std(self.values))


def estimate(
    agent: SequenceAgent,
    store: EpisodeStore,
    target: float | None,
    config: ValuesConfig,
    seed: int = 0,
) -> Estimate:
    """Evaluate `agent` off-policy.

    Args:
        agent: in eval mode, on the CPU.
        store: episodes to learn from.
        target: return to ask for, in the environment's units; None of an agent that takes none.
        config: how to fit; its `ensemble` is the number of estimates.
        seed: of starts and draws.

    Raises:
        UserError: observations or actions are of a kind that no values are fitted of, or the agent
            makes up a token itself.
    """
    if type(agent).forward_step is not SequenceAgent.forward_step:
        raise UserError(
            f"agents of kind {agent.config.kind} make up their return as they act, which is not "
            "evaluated off-policy; roll them out"
        )
    if agent.spec.frames or store.action_table is not None:
        raise UserError(
            f"{store.name}: images and actions of several parts are not evaluated off-policy; roll "
            "the agent out in an environment, with --env"
        )
    # what the agent would do after an episode's last step is not known: no final observations
    known = dataclasses.replace(store, final_observations=None)
    transitions = Transitions.of(known, agent.action_scale.cpu())
    acts = actions_on_data(agent, store, target)
    returns = discounted_returns(store, config.discount)
    scale = float(np.abs(returns).mean()) or 1.0
    values, error = fitted_q(store, transitions, acts, config, seed, scale)
    own = float(returns[store.offsets[:-1]].mean())
    return Estimate(target, values, own, config.discount, error)


@torch.no_grad()
def actions_on_data(agent: SequenceAgent, store: EpisodeStore, target: float | None) -> Tensor:
    """What the agent would do at every step of the data, after what the data did before: [N, A] in
    units of its action scale, or logits. Histories are half a context long at least, where the
    episode is."""
    k, returns = agent.config.context_length, agent.config.returns
    asked = _asked(store, returns, 0.0 if target is None else target)
    sampler = WindowSampler(asked, np.arange(store.episodes), k, returns, 0)
    step, first = store.timesteps, np.repeat(store.offsets[:-1], store.lengths)
    half = max(k // 2, 1)
    # a window every half a context: of each its second half is read, of an episode's first all
    starts = np.where(k == 1, step, np.maximum(step // half - 1, 0) * half) + first  # [N]
    found = torch.empty(store.steps, agent.spec.action_dim)
    windows, which = np.unique(starts, return_inverse=True)
    for begin in range(0, len(windows), WINDOWS):
        batch = sampler.windows(windows[begin : begin + WINDOWS])
        inputs = agent.preprocess(batch.observations, batch.actions, batch.returns_to_go)
        predicted = agent(inputs, batch.timesteps)  # [B, K, A]
        rows = np.flatnonzero((which >= begin) & (which < begin + WINDOWS))
        found[rows] = predicted[which[rows] - begin, rows - starts[rows]].float()
    if not agent.spec.discrete:
        return found
    warm = agent.config.temperature
    return found / warm if warm else found * GREEDY


def _asked(store: EpisodeStore, returns: ReturnSpec, target: float) -> EpisodeStore:
    """The same episodes with the return-to-go of an agent that was asked for `target`."""
    kept = as_conditioned(store, returns)
    sums = np.cumsum(kept.rewards, dtype=np.float64) - kept.rewards  # before each step
    before = sums - np.repeat(sums[store.offsets[:-1]], store.lengths)
    return dataclasses.replace(kept, returns_to_go=(target - before).astype(np.float32))


def fitted_q(
    store: EpisodeStore,
    transitions: Transitions,
    acts: Tensor,
    config: ValuesConfig,
    seed: int,
    scale: float,
) -> tuple[tuple[float, ...], float]:
    """The estimates of an ensemble for a policy that does `acts` at every step of the data: [N, A]
    or, if discrete, logits [N, A]; and the temporal difference error that is left. What is learned
    are values in units of `scale`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = store.observations.shape[1]
        q = ActionValues(width, acts.shape[1], store.discrete, config)
    slow = copy.deepcopy(q).requires_grad_(False)
    optimizer = torch.optim.Adam(q.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - n / config.steps)
    rng = np.random.default_rng(seed)
    # how often each of the ensemble drew each episode: with replacement, as many as there are
    counts = rng.multinomial(
        store.episodes, np.full(store.episodes, 1 / store.episodes), config.ensemble
    )
    weight = torch.from_numpy(np.repeat(counts, store.lengths, axis=1)).float()  # [E, N]

    def value(network: ActionValues, rows: Tensor) -> Tensor:
        """[E, B] of what the policy does at `rows` [B]."""
        seen = transitions.observe(rows)
        return network.expected(seen, acts[rows]) if store.discrete else network(seen, acts[rows])

    for _ in range(config.steps):
        drawn = transitions.rows[rng.integers(len(transitions.rows), size=config.batch_size)]
        rows = torch.from_numpy(drawn)
        following = (rows + 1).clamp(max=store.steps - 1)
        with torch.no_grad():
            on = config.discount * (1 - transitions.terminated[rows])
            target = transitions.rewards[rows] / scale + on * value(slow, following)
        error = target - q(transitions.observe(rows), transitions.actions[rows])
        optimizer.zero_grad(set_to_none=True)
        (weight[:, rows] * error.square()).mean(1).sum().backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for old, new in zip(slow.parameters(), q.parameters(), strict=True):
                old.lerp_(new, config.target_rate)
    with torch.no_grad():
        firsts = value(q, torch.from_numpy(store.offsets[:-1]))  # [E, M]
    drawn_often = torch.from_numpy(counts).float()
    means = (firsts * drawn_often).sum(1) / drawn_often.sum(1) * scale
    if not torch.isfinite(means).all():
        raise UserError(f"{store.name}: its values are not finite; lower values.learning_rate")
    return (*means.tolist(),), float(error.detach().abs().mean()) * scale
