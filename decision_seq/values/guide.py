"""What a critic adds to an agent's error at every step; acting is untouched by it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from decision_seq.agents.base import SequenceAgent
from decision_seq.agents.spec import AgentConfig
from decision_seq.data.store import EpisodeStore
from decision_seq.data.transforms import as_conditioned
from decision_seq.data.windows import Batch
from decision_seq.values.critic import Critic, ValuesConfig
from decision_seq.values.fit import ensure_values, read_diagnostics

LARGEST = 100.0  # weight of a step, as in implicit Q-learning


@dataclass(frozen=True)
class Guide:
    """Value guidance of one agent.

    With `guidance`, QCS's term (arXiv:2402.02017), - lambda(R) min_i Q_i(s, predicted action), with
    lambda(R) = max(q_min, 100 q_scale (return_star - R / R_max)) / mean |Q| and R is the return of
    the step's episode: the worse it is, the less its actions are a model. Where returns are
    negative, R and R_max are what they are above the lowest. With `advantage_weight`
    beta, the error itself is weighed by exp(beta (Q(s, a) - V(s)) / c), at most 100, of the data's
    own action, as implicit Q-learning does (arXiv:2110.06169), with MARWIL's unit c, the root mean
    square of the advantage (Wang et al., 2018): beta means the same whatever a reward is worth.

    Args:
        critic: frozen.
        config: the agent's.
        magnitude: mean over the data of |min_i Q_i(s, a)|.
        advantage_rms: c.
        lowest_return: of the data's episodes, in units of the agent's return scale; at most 0.
        best_return: of the data's episodes, above the lowest: R_max.
    """

    critic: Critic
    config: AgentConfig
    magnitude: float
    advantage_rms: float
    lowest_return: float
    best_return: float

    def __call__(
        self, errors: Tensor, predicted: Tensor, values: dict[str, Tensor], batch: Batch
    ) -> Tensor:
        """[B, K] from errors [B, K], predictions [B, K, A] and what the agent's `preprocess` made
        of the observations and actions of `batch`."""
        actions = values["action"]
        seen = values["observation"] if self.critic.encoder is None else batch.observations
        with torch.no_grad():
            states = self.critic.features(seen)
        if self.config.advantage_weight:
            with torch.no_grad():
                advantage = self.critic.q(states, actions).amin(0) - self.critic.value(states)
                exponent = self.config.advantage_weight * advantage / self.advantage_rms
                weight = exponent.exp().clamp(max=LARGEST)
            errors = errors * weight
        if self.config.guidance is None:
            return errors
        settings, q = self.config.guidance, self.critic.q
        predicted = predicted.float()
        each = q.expected(states, predicted) if q.discrete else q(states, predicted)  # [E, B, K]
        reached = (batch.episode_returns - self.lowest_return) / self.best_return  # [B]
        shortfall = settings.return_star - reached
        strength = (100 * settings.q_scale * shortfall).clamp(min=settings.q_min) / self.magnitude
        return errors - strength.unsqueeze(1) * each.amin(0)


def guide_for(
    agent: SequenceAgent, store: EpisodeStore, run: Path, values: ValuesConfig, seed: int
) -> Guide | None:
    """What guides the agent in training, or None where its config asks for nothing. Fits the values
    first where they are not in the cache; they are left in the run folder.

    Args:
        agent: as its dataset made it.
        store: the dataset, as it is stored.
        run: run folder.
        values: how to fit.
        seed: the run's.
    """
    config = agent.config
    if config.guidance is None and not config.advantage_weight:
        return None
    critic = ensure_values(run, store, values, seed, agent.action_scale.cpu(), config)
    returns = as_conditioned(store, config.returns).episode_returns / config.returns.scale
    lowest = min(float(returns.min()), 0.0)
    best = max(float(returns.max()) - lowest, 1e-6)
    found = read_diagnostics(run)
    magnitude, rms = (max(found[name], 1e-6) for name in ("q_magnitude", "advantage_rms"))
    return Guide(critic.to(agent.device), config, magnitude, rms, lowest, best)
