"""The whole attention agent against transformers' Decision Transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from decision_seq.agents import AgentSpec, SequenceAgent
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.backbones.attention import AttentionConfig
from decision_seq.data.transforms import ReturnSpec

WIDTH = 24


def test_attention_agent_equals_transformers_decision_transformer() -> None:
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    steps, observation_dim, action_dim, width, heads = 6, 5, 3, WIDTH, 2
    config = ReturnConditionedConfig(
        context_length=steps,
        returns=ReturnSpec(scale=1.0),
        backbone=AttentionConfig(width=width, layers=3, heads=heads),
    )
    ours = SequenceAgent(config, AgentSpec((observation_dim,), action_dim, False, max_timestep=29))
    reference = DecisionTransformerModel(
        DecisionTransformerConfig(
            state_dim=observation_dim,
            act_dim=action_dim,
            hidden_size=width,
            max_ep_len=30,
            n_layer=3,
            n_head=heads,
            activation_function="gelu",
        )
    )
    torch.manual_seed(1)  # only now: what the reference draws depends on its version
    with torch.no_grad():  # no weight at zero or one, or an exchange of two would not show
        for parameter in ours.parameters():
            parameter.normal_(mean=0.1, std=0.3)
    reference.load_state_dict(decision_transformer_weights(ours, reference), strict=True)
    ours.eval(), reference.eval()

    states, actions = torch.randn(2, steps, observation_dim), torch.rand(2, steps, action_dim)
    returns, timesteps = torch.rand(2, steps), torch.tensor([[4], [20]]) + torch.arange(steps)
    with torch.no_grad():
        predicted = ours(ours.preprocess(states, actions, returns), timesteps)
        expected = reference(
            states=states, actions=actions, returns_to_go=returns[..., None], timesteps=timesteps
        )
    torch.testing.assert_close(predicted, expected.action_preds, rtol=1e-5, atol=1e-5)
    assert predicted.abs().max() < 0.99 and predicted.std(dim=1).min() > 0.01  # not saturated


def decision_transformer_weights(ours: SequenceAgent, reference: nn.Module) -> dict[str, Tensor]:
    """Our weights by transformers' names. What it has besides (heads for state and return, GPT-2's
    positions, which are all position 0) is kept or zero."""
    source = ours.state_dict()
    prefixes = {
        "embed_timestep": "embedding.timestep",
        "embed_return": "embedding.embed.return_to_go",
        "embed_state": "embedding.embed.observation",
        "embed_action": "embedding.embed.action",
        "embed_ln": "embedding.norm",
        "encoder.ln_f": "backbone.norm",
        "predict_action.0": "action_head",
    }
    for layer in range(3):
        theirs, mine = f"encoder.h.{layer}", f"backbone.blocks.{layer}"
        prefixes |= {
            f"{theirs}.ln_1": f"{mine}.norm_mixer",
            f"{theirs}.attn.c_attn": f"{mine}.mixer.qkv",
            f"{theirs}.attn.c_proj": f"{mine}.mixer.out",
            f"{theirs}.ln_2": f"{mine}.norm_mlp",
            f"{theirs}.mlp.c_fc": f"{mine}.mlp.0",
            f"{theirs}.mlp.c_proj": f"{mine}.mlp.2",
        }
    weights = {}
    for name, tensor in reference.state_dict().items():
        module, leaf = name.rsplit(".", 1)
        if module in prefixes:
            value = source.pop(f"{prefixes[module]}.{leaf}")
            tensor = value.t() if ".c_" in name and leaf == "weight" else value  # GPT-2's Conv1D
        weights[name] = torch.zeros_like(tensor) if module == "encoder.wpe" else tensor
    left = set(source) - {"observation_mean", "observation_std", "action_scale"}
    assert not left, left
    return weights
