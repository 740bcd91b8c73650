"""Other people's Decision Transformers and Decision Mambas as agents of this package: folders of
transformers' `DecisionTransformerModel`, and state dicts of the official gym codes of both
(arXiv:2106.01345, arXiv:2403.19925)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from decision_seq.agents.base import SequenceAgent
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.agents.spec import AgentSpec
from decision_seq.backbones import BackboneConfig
from decision_seq.backbones.attention import AttentionConfig
from decision_seq.backbones.mamba import MambaConfig
from decision_seq.data.transforms import ReturnSpec
from decision_seq.errors import UserError

# of a layer: ours -> theirs, and whether theirs lies transposed
LAYER = {
    "norm_mixer": ("ln_1", False),
    "norm_mlp": ("ln_2", False),
    "mixer.qkv": ("attn.c_attn", True),
    "mixer.out": ("attn.c_proj", True),
    "mlp.0": ("mlp.c_fc", True),
    "mlp.2": ("mlp.c_proj", True),
}
MAMBA_LAYER = {  # of the official Decision Mamba, which keeps linear layers as they are here
    "norm_mixer": "norm_mamba",
    "mixer": "mamba",
    "norm_mlp": "ln_2",
    "mlp": "mlp_channels",
}
REST = {
    "embedding.embed.return_to_go": "embed_return",
    "embedding.embed.observation": "embed_state",
    "embedding.embed.action": "embed_action",
    "embedding.norm": "embed_ln",
    "action_head": "predict_action.0",
}
TAKEN: dict[str, list[Any]] = {
    "action_tanh": [True],
    "scale_attn_weights": [True],
    "layer_norm_epsilon": [1e-5],
    "activation_function": ["relu", "gelu"],
}


def load_decision_transformer(
    path: Path,
    observation_mean: Sequence[float] | np.ndarray | None = None,
    observation_std: Sequence[float] | np.ndarray | None = None,
    return_scale: float = 1000.0,
    context_length: int = 20,
    heads: int = 1,
    env: str | None = None,
) -> SequenceAgent:
    """An agent that acts as the model does, in eval mode. No code in the files can run.

    Decision Mamba's official loop lays zeros before the first K steps, which its model takes for
    steps; here an episode begins where it begins.

    Args:
        path: a folder of `config.json` and `model.safetensors`, or a state dict of one of the
            official codes: Decision Transformer's, or Decision Mamba's with LayerNorm and actions.
        observation_mean, observation_std: [S], of the data it was trained on; neither form of file
            holds them, model cards do.
        return_scale: what returns were divided by.
        context_length: K, steps that it was trained on; neither form holds it.
        heads: of attention, for a state dict; a folder says it.
        env: environment to act in.

    Raises:
        UserError: files are missing or of another model, or the statistics are not given.
    """
    if observation_mean is None or observation_std is None:
        raise UserError(
            f"{path}: holds no statistics of observations; give observation_mean and "
            "observation_std of the data that it was trained on (its model card has them)"
        )
    config, weights = _read(path)
    try:
        tensors = _translated(weights)
        layers = sum(name.endswith("norm_mixer.weight") for name in tensors)
        width, size = tensors["embedding.embed.observation.weight"].shape
        actions = tensors["action_head.weight"].shape[0]
        times = tensors["embedding.timestep.weight"].shape[0]
    except KeyError as error:
        kind = "Decision Mamba" if _is_mamba(weights) else "Decision Transformer"
        raise UserError(f"{path}: is no {kind}: it lacks {error}") from None
    activation = config.get("activation_function", "relu")
    for name, taken in TAKEN.items():
        if config.get(name, taken[0]) not in taken:
            raise UserError(f"{path}: its {name} is {config[name]}, which no agent here has")
    backbone: BackboneConfig = AttentionConfig(
        width=width, layers=layers, heads=config.get("n_head", heads), activation=activation
    )
    if _is_mamba(weights):
        channels, d_state = tensors["backbone.blocks.0.mixer.A_log"].shape
        kernel = tensors["backbone.blocks.0.mixer.conv1d.weight"].shape[-1]
        expand = channels // width
        backbone = MambaConfig(
            width=width, layers=layers, d_state=d_state, d_conv=kernel, expand=expand
        )
    settings = ReturnConditionedConfig(
        context_length=context_length, returns=ReturnSpec(scale=return_scale), backbone=backbone
    )
    agent = settings.agent(settings, AgentSpec((size,), actions, False, times - 1, env))
    tensors["observation_mean"] = torch.as_tensor(np.asarray(observation_mean, np.float32))
    tensors["observation_std"] = torch.as_tensor(np.asarray(observation_std, np.float32))
    tensors["action_scale"] = agent.action_scale
    try:
        agent.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).split("\n")[1].strip()
        raise UserError(f"{path}: does not fit {backbone.kind} ({first})") from None
    return agent.eval()


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    try:
        if path.is_dir():
            config = json.loads((path / "config.json").read_text("utf-8"))
            return config, load_file(path / "model.safetensors")
        return {}, torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of three readers
        said = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as a Decision Transformer ({said:.200})") from None


def _is_mamba(theirs: Mapping[str, Tensor]) -> bool:
    return "transformer.h.0.mamba.A_log" in theirs


def _translated(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors by our names."""
    root = "encoder" if "encoder.ln_f.weight" in theirs else "transformer"
    names = {ours: (their, False) for ours, their in REST.items()}
    names["backbone.norm"] = (f"{root}.ln_f", False)
    tensors = {"embedding.timestep.weight": theirs["embed_timestep.weight"].float()}
    layers = 0
    while f"{root}.h.{layers}.norm_mamba.weight" in theirs:
        for ours, their in MAMBA_LAYER.items():
            start = f"{root}.h.{layers}.{their}."
            for name in (name for name in theirs if name.startswith(start)):
                own = f"backbone.blocks.{layers}.{ours}.{name.removeprefix(start)}"
                tensors[own] = theirs[name].float()
        layers += 1
    while f"{root}.h.{layers}.ln_1.weight" in theirs:
        for ours, (their, turned) in LAYER.items():
            names[f"backbone.blocks.{layers}.{ours}"] = (f"{root}.h.{layers}.{their}", turned)
        layers += 1
    for ours, (their, turned) in names.items():
        weight = theirs[f"{their}.weight"].float()
        tensors[f"{ours}.weight"] = weight.t().contiguous() if turned else weight
        tensors[f"{ours}.bias"] = theirs[f"{their}.bias"].float()
    if f"{root}.wpe.weight" in theirs:  # transformers adds the position 0 to every token
        first = theirs[f"{root}.wpe.weight"][0].float()
        tensors["embedding.norm.bias"] = tensors["embedding.norm.bias"] + first
    return tensors
