"""SequenceAgent: what is predicted from tokens, and the loss. How a trained agent acts is
`decision_seq.policy`.

An agent owns all it needs to act: observation statistics, return and action scales are buffers, so
a checkpoint acts in the environment with nothing but itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.agents.spec import AgentConfig, AgentSpec
from decision_seq.backbones import Layout
from decision_seq.backbones.contract import EVERY, State
from decision_seq.data.origin import recorded
from decision_seq.data.store import EpisodeStore
from decision_seq.data.transforms import ObservationNorm
from decision_seq.data.windows import Batch, Hindsight
from decision_seq.errors import UserError
from decision_seq.model.actions.part import number_errors
from decision_seq.model.encoders.choice import chosen_encoders, observation_encoder
from decision_seq.model.tokens import TokenEmbedding
from decision_seq.ops.layers import Dropout

# errors [B, K], predicted actions [B, K, A], what `preprocess` made, the batch -> errors [B, K]
Guide = Callable[[Tensor, Tensor, dict[str, Tensor], Batch], Tensor]
# feeds the named tokens of a step to the backbone, in order -> features [lanes, D] at the last
Extend = Callable[[tuple[str, ...]], Tensor]


class SequenceAgent(nn.Module):
    """Predicts a_t from the output at the last token before it, which is s_t unless an agent says
    otherwise. B windows, K steps, T tokens a step, D = width."""

    def __init__(self, config: AgentConfig, spec: AgentSpec) -> None:
        super().__init__()
        self.codec = spec.action_codec
        if config.temperature and not spec.discrete and self.codec is None:
            raise UserError(
                f"agent.temperature is {config.temperature}, but the data's actions are continuous "
                "and are not sampled; leave it out"
            )
        if config.loss != "mse" and spec.discrete:
            raise UserError(
                f"agent.loss is {config.loss}, but the data's actions are discrete and learned by "
                "cross-entropy; leave it out"
            )
        if config.encoder is not None and not spec.frames:
            raise UserError(
                f"agent.encoder is {config.encoder.kind}, which is for frames, but the data's "
                f"observations are vectors of width {spec.observation_shape[0]}; leave it out"
            )
        self.config, self.spec = config, spec
        # not saved: what values add to the loss, and while a stream is trained or validated on the
        # backbone's state after the window before
        self.guide: Guide | None = None
        self.carried: State | None = None
        width = config.backbone.width
        self.encoder = observation_encoder(
            spec.observation_shape,
            spec.observation_space,
            config.encoder,
            config.encoders,
            config.frame_stack,
        )
        self.embedding = TokenEmbedding(
            config.tokens,
            self.features,
            spec.action_dim,
            spec.discrete,
            spec.max_timestep,
            width,
            bounded=spec.frames,
            timestep_init=config.timestep_init,
            others=self.token_widths,
        )
        self.dropout = Dropout(config.backbone.dropout)
        self.backbone = config.backbone.build(Layout(config.context_length, len(config.tokens)))
        self.action_head = nn.Linear(width, spec.action_dim)
        self.observation_mean: Tensor
        self.observation_std: Tensor
        self.action_scale: Tensor
        if not spec.frames:
            self.register_buffer("observation_mean", torch.zeros(spec.observation_shape))
            self.register_buffer("observation_std", torch.ones(spec.observation_shape))
        self.register_buffer("action_scale", torch.ones(() if spec.discrete else spec.action_dim))

    @classmethod
    def for_dataset(cls, config: AgentConfig, store: EpisodeStore) -> SequenceAgent:
        """An untrained agent that fits the data: widths, statistics, longest episode."""
        if store.info.get("rewards") == "clipped" and not config.returns.clipped:
            raise UserError(
                f"{store.name}: holds rewards clipped to [-1, 1]; set agent.returns.clipped to "
                "true, so that what an environment gives is counted alike, and give targets in "
                "clipped returns"
            )
        if store.info.get("rewards") == "none" and "return_to_go" in config.tokens:
            raise UserError(
                f"{store.name}: has no rewards, which {config.kind} learns from; train an agent "
                "that imitates, agent.preset: bc or agent.kind: behaviour_cloning"
            )
        start, seen = store.info.get("action_start", 0), None
        if store.discrete:
            seen = (start + int(store.actions.min()), start + int(store.actions.max()))
        table, acts = store.observation_table, store.action_table
        spec = AgentSpec(
            observation_shape=store.observations.shape[1:],
            action_dim=acts.features if acts else store.action_dim,
            discrete=store.discrete,
            max_timestep=int(store.lengths.max()) - 1,
            env=store.info.get("eval_env_id") or next(iter(recorded(store.info)), None),
            action_count_known="action_count" in store.info,
            action_start=start,
            actions_seen=seen,
            observation_space=table,
            action_space=acts,
        )
        if spec.frames:  # a checkpoint names what it holds
            config = replace(
                config,
                frame_stack=config.frame_stack or store.frame_stack,
                **chosen_encoders(spec.observation_shape, table, config.encoder, config.encoders),
            )
        agent = config.agent(config, spec)
        if agent.encoder is not None:
            agent.encoder.fit(store.observations)
        else:
            norm = ObservationNorm.of(store.observations, table.scaled if table else None)
            agent.observation_mean.copy_(torch.as_tensor(norm.mean))
            agent.observation_std.copy_(torch.as_tensor(norm.std))
        if agent.codec is not None:
            agent.action_scale.copy_(torch.from_numpy(agent.codec.scale(store.actions)))
        elif not spec.discrete:  # actions beyond [-1, 1] are brought into tanh's range
            scale = np.abs(store.actions).max(axis=0).clip(min=1.0)
            agent.action_scale.copy_(torch.from_numpy(scale))
        return agent

    # ---- training -------------------------------------------------------------------------

    def loss(self, batch: Batch, valid: Tensor | None = None) -> Tensor:
        """Mean over valid steps of `per_step_loss`; in training with `penalty`. `valid` [] is
        what their sum is divided by, where the batch is a share of a larger one."""
        penalty = self.penalty() if self.training else 0.0  # not an error: no validation
        valid = batch.mask.sum() if valid is None else valid
        return (self.per_step_loss(batch) * batch.mask).sum() / valid + penalty

    def penalty(self) -> Tensor | float:
        """What training adds to the loss on account of the weights."""
        encoder = 0.0 if self.encoder is None else self.encoder.penalty()
        return self.backbone.penalty() + encoder

    def per_step_loss(self, batch: Batch) -> Tensor:
        """[B, K] error of every step: the action's."""
        values = self.preprocess(batch.observations, batch.actions, batch.returns_to_go)
        return self.action_errors(self(values, batch.timesteps), values, batch)

    def action_errors(self, predicted: Tensor, values: dict[str, Tensor], batch: Batch) -> Tensor:
        """[B, K]: error of predictions [B, K, A] of the actions in `values`, from `preprocess`; in
        training with what values add to it."""
        errors = self.imitation_errors(predicted, values["action"])
        guide = self.guide if self.training else None
        return errors if guide is None else guide(errors, predicted, values, batch)

    def imitation_errors(self, predicted: Tensor, actions: Tensor) -> Tensor:
        """[B, K]: squared error of predictions [B, K, A], in training that of `agent.loss`, or
        cross-entropy if discrete."""
        predicted = predicted.float()
        if self.spec.discrete:
            return F.cross_entropy(predicted.transpose(1, 2), actions, reduction="none")
        loss = self.config.loss if self.training else "mse"  # agents are compared by one
        if self.codec is not None:
            return self.codec.errors(predicted, actions, loss)
        return number_errors(predicted, actions, loss)

    def forward(self, values: dict[str, Tensor], timesteps: Tensor) -> Tensor:
        """Actions for every step of the windows.

        Args:
            values: normalised inputs by token kind, from `preprocess`.
            timesteps: [B, K] int64.

        Returns:
            [B, K, A]: tanh-squashed actions in units of `action_scale`, or logits if discrete.
        """
        tokens = self.dropout(self.embedding(values, timesteps))  # [B, K * T, D]
        actions = slice(self.action_position, None, len(self.config.tokens))
        return self.predict(self.mix(tokens, actions))  # features [B, K, D]

    def mix(self, tokens: Tensor, output_slice: slice = EVERY) -> Tensor:
        """Tokens [B, L, D] -> features [B, l, D] at the l tokens of the slice. On streams the
        windows before are seen too, through a state that has no gradient."""
        if self.carried is None:
            return self.backbone(tokens, output_slice)
        features, state = self.backbone.step(tokens, self.carried, output_slice)
        self.carried = [{name: t.detach() for name, t in layer.items()} for layer in state]
        return features

    def preprocess(
        self, observations: Tensor, actions: Tensor, returns_to_go: Tensor
    ) -> dict[str, Tensor]:
        """Raw observations [.., S] (or stacks of images [.., n, H, W(, C)], or bytes of records
        [.., n, bytes]), actions [.., A] and scaled returns [..] as network inputs."""
        if self.codec is not None:
            actions = self.codec.encode(actions)
        return {
            "return_to_go": returns_to_go,
            "observation": self.encoder(observations)
            if self.encoder is not None
            else (observations - self.observation_mean) / self.observation_std,
            "action": actions if self.spec.discrete else actions / self.action_scale,
        }

    def predict(self, features: Tensor) -> Tensor:
        """Features at the last tokens before actions [.., D] -> action prediction [.., A]."""
        action = self.action_head(features)
        if self.codec is not None:
            return self.codec.squash(action)
        return action if self.spec.discrete else torch.tanh(action)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.action_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.action_head.weight.dtype

    @property
    def features(self) -> int:
        """Numbers that `preprocess` makes of an observation: S, or the features of an image."""
        return self.spec.observation_shape[0] if self.encoder is None else self.encoder.features

    @property
    def token_widths(self) -> dict[str, int]:
        """Numbers of tokens of other kinds that `preprocess` makes."""
        return {}

    @property
    def hindsight(self) -> Hindsight | None:
        """Goals that training puts in the place of the data's."""
        return None

    @property
    def action_position(self) -> int:
        """Index among a step's tokens of the one where its action is read."""
        return len(self.config.inputs) - 1

    def forward_step(self, values: dict[str, Tensor], extend: Extend) -> Tensor:
        """Predictions for one environment step of every lane, as `forward` gives them at the step.

        Args:
            values: the step's inputs by token kind, from `preprocess`. An agent that makes up a
                token itself writes it there.
            extend: feeds tokens of the step to the backbone.

        Returns:
            [lanes, A]
        """
        return self.predict(extend(self.config.inputs))
