"""Critic: an ensemble of Q(s, a) and one V(s), by implicit Q-learning (arXiv:2110.06169).

    V by the expectile of min_i Q'_i(s, a);   Q_i by r + gamma (1 - terminated) V(s')

Q' are slow copies of Q. No action that the data do not hold is ever asked for.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.errors import UserError
from decision_seq.model.encoders.base import FrameEncoder
from decision_seq.model.encoders.record import RecordEncoder
from decision_seq.ops.adamw import AdamW


@dataclass(frozen=True)
class ValuesConfig:
    """How Q and V are fitted. Defaults are those of implicit Q-learning for locomotion."""

    steps: int = 100_000  # gradient steps
    batch_size: int = 256
    learning_rate: float = 3e-4
    discount: float = 0.99
    expectile: float = 0.7  # of Q over the data's actions: 0.5 is their mean, 1 their maximum
    target_rate: float = 0.005  # by which the slow copies follow
    width: int = 256  # of two hidden layers
    ensemble: int = 2  # Q's, of which the least counts
    layer_norm: bool = True  # in Q and V: keeps what is extrapolated in bounds (arXiv:2302.02948)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "width", "ensemble"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("discount", "expectile", "target_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0, at most 1")
        if self.learning_rate <= 0:
            raise UserError(f"learning_rate is {self.learning_rate}; it must be above 0")


class EnsembleLinear(nn.Module):
    """E linear maps at once: x [E, B, inputs] -> [E, B, outputs]."""

    def __init__(self, ensemble: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)  # as nn.Linear starts
        self.weight = nn.Parameter(torch.empty(ensemble, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(ensemble, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleMLP(nn.Module):
    """E networks of two hidden layers: x [.., inputs] -> [E, .., outputs]."""

    def __init__(
        self, ensemble: int, inputs: int, outputs: int, width: int, layer_norm: bool
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before in (inputs, width):
            norm = [nn.LayerNorm(width)] if layer_norm else []
            layers += [EnsembleLinear(ensemble, before, width), *norm, nn.ReLU()]
        self.layers = nn.Sequential(*layers, EnsembleLinear(ensemble, width, outputs))
        self.ensemble = ensemble

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(1, -1, x.shape[-1]).expand(self.ensemble, -1, -1)
        return self.layers(flat).unflatten(1, x.shape[:-1])


class ActionValues(nn.Module):
    """Q_i(s, a), i to E.

    Args:
        observation_dim: S
        action_dim: A, or the number of discrete actions.
        discrete: actions are indices, and a network has an output for each.
        config: sizes.
    """

    def __init__(
        self, observation_dim: int, action_dim: int, discrete: bool, config: ValuesConfig
    ) -> None:
        super().__init__()
        self.discrete = discrete
        inputs, outputs = observation_dim + action_dim, 1
        if discrete:
            inputs, outputs = observation_dim, action_dim
        self.networks = EnsembleMLP(
            config.ensemble, inputs, outputs, config.width, config.layer_norm
        )

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[E, ..]: s [.., S] standardised, a [.., A] in units of the agent's action scale or, if
        discrete, int64 [..]."""
        if self.discrete:
            values = self.networks(observations)  # [E, .., A]
            index = actions.expand(len(values), *actions.shape).unsqueeze(-1)
            return values.gather(-1, index).squeeze(-1)
        return self.networks(torch.cat([observations, actions], dim=-1)).squeeze(-1)

    def expected(self, observations: Tensor, logits: Tensor) -> Tensor:
        """[E, ..]: the sum over a of softmax(logits)_a Q_i(s, a); logits [.., A]."""
        return (self.networks(observations) * logits.softmax(-1)).sum(-1)


class Critic(nn.Module):
    """Q and V of what `features` makes of observations.

    Args:
        observation_dim: S, or the encoder's features.
        action_dim, discrete, config: as of `ActionValues`.
        encoder: of images, its own; None of vectors. It learns from Q alone.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        discrete: bool,
        config: ValuesConfig,
        encoder: FrameEncoder | RecordEncoder | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.q = ActionValues(observation_dim, action_dim, discrete, config)
        self.v = EnsembleMLP(1, observation_dim, 1, config.width, config.layer_norm)

    def features(self, observations: Tensor) -> Tensor:
        """What Q and V are of: [.., S], vectors as they are; of images what the encoder sees."""
        return observations if self.encoder is None else self.encoder(observations)

    def value(self, observations: Tensor) -> Tensor:
        """V(s) [..] of features."""
        return self.v(observations).squeeze(-1)[0]


class Learner:
    """Gradient steps of a critic, its slow copy and their optimiser."""

    def __init__(self, critic: Critic, config: ValuesConfig) -> None:
        self.critic, self.config = critic, config
        self.slow = copy.deepcopy(critic).requires_grad_(False)
        weights = critic.parameters()
        self.optimizer = AdamW(weights, lr=config.learning_rate, weight_decay=0, fused=True)

    def state(self) -> dict[str, Any]:
        """What resuming needs."""
        return {
            "critic": self.critic.state_dict(),
            "slow": self.slow.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`, bit for bit on a CPU."""
        self.critic.load_state_dict(state["critic"])
        self.slow.load_state_dict(state["slow"])
        self.optimizer.load_state_dict(state["optimizer"])

    def step(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """One step on transitions (s, a, r, terminated, s'). Returns what to watch: the temporal
        difference error |r + gamma V(s') - Q(s, a)|, and the means of Q and V."""
        s, a, r, terminated, following = batch
        critic, settings = self.critic, self.config
        with torch.no_grad():
            least = self.slow.q(self.slow.features(s), a).amin(0)
            later = critic.value(critic.features(following))
            target = r + settings.discount * (1 - terminated) * later
        seen = critic.features(s)
        value, q = critic.value(seen.detach()), critic.q(seen, a)
        error = least - value
        weight = (settings.expectile - (error < 0).to(error)).abs()
        loss = (weight * error.square()).mean() + F.mse_loss(q, target.expand_as(q)) * len(q)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for slow, weight in zip(self.slow.parameters(), critic.parameters(), strict=True):
                slow.lerp_(weight, settings.target_rate)
        return {
            "td_error": (target - q).abs().mean().detach(),
            "q_mean": q.mean().detach(),
            "v_mean": value.mean().detach(),
        }
