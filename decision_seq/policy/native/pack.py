"""An agent's weights as one block of float32 for the native engine (csrc/policy.c).

First numbers that say what follows, 4 bytes each, then arrays in the order in which C takes them.
Rows are padded with zeros to whole tiles; a matrix [outputs, inputs] lies as tiles of TILE outputs,
[tiles][inputs][TILE], which is the order in which it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from decision_seq.agents.base import SequenceAgent
from decision_seq.agents.behaviour_cloning import BehaviourCloning
from decision_seq.agents.return_conditioned import ReturnConditioned
from decision_seq.backbones.attention import Attention
from decision_seq.backbones.block import Block
from decision_seq.backbones.conv import KindConv
from decision_seq.backbones.mamba import Mamba
from decision_seq.backbones.pointwise import Pointwise

MAGIC, TILE, ALIGNED = 0x51455344, 64, 16
KINDS = ("return_to_go", "observation", "action")  # in the order of csrc/policy.c
AGENTS = (ReturnConditioned, BehaviourCloning)  # they act as `SequenceAgent` does


def unpackable(agent: SequenceAgent) -> str:
    """Why C cannot act for `agent`, or "". A class derived from a known one may do otherwise."""
    if agent.encoder is not None:
        return "it sees frames"
    if agent.codec is not None:
        return "its actions have several parts"
    if agent.dtype is not torch.float32:
        return f"its weights are {agent.dtype}"
    if agent.device.type != "cpu":
        return f"it is on {agent.device}"
    if type(agent) not in AGENTS:
        return f"{type(agent).__name__} acts in a way of its own"
    mixers: list[Any] = [block.mixer for block in agent.backbone.blocks]
    unknown = [type(mixer).__name__ for mixer in mixers if type(mixer) not in MIXERS]
    unknown += [type(b).__name__ for b in agent.backbone.blocks if type(b) is not Block]
    unknown += ["rotary positions" for m in mixers if isinstance(m, Attention) and m.rotary]
    mlps: list[Any] = [getattr(block, "mlp", None) for block in agent.backbone.blocks]
    unknown += [
        type(mlp[1]).__name__ for mlp in mlps if not unknown and type(mlp[1]) is not nn.GELU
    ]
    return f"C does not know {unknown[0]}" if unknown else ""


def pack(agent: SequenceAgent) -> np.ndarray:
    """The block, 1-d float32, for an agent that is not `unpackable`."""
    config, spec, embedding = agent.config, agent.spec, agent.embedding
    blocks: list[Any] = list(agent.backbone.blocks)
    width = config.backbone.width
    times = 0 if embedding.timestep is None else embedding.timestep.num_embeddings
    arrays = [row(agent.observation_mean), row(agent.observation_std), row(agent.action_scale)]
    if spec.discrete:
        arrays[-1] = np.zeros(padded(spec.action_dim), np.float32)
    for kind in config.tokens:
        embed: Any = embedding.embed[kind]
        arrays.append(matrix(embed) if isinstance(embed, nn.Linear) else row(embed.weight))
    if embedding.timestep is not None:
        arrays.append(row(embedding.timestep.weight))
    arrays.append(norm(embedding.norm))
    layers = []
    for block in blocks:
        index = list(MIXERS).index(type(block.mixer))
        sizes, own = MIXERS[type(block.mixer)](block.mixer)
        layers += [index, *sizes, *[0] * (7 - len(sizes))]
        arrays += [norm(block.norm_mixer), norm(block.norm_mlp), *own]
        arrays += [matrix(block.mlp[0]), matrix(block.mlp[2])]
    arrays += [norm(agent.backbone.norm), matrix(agent.action_head)]
    kinds = [KINDS.index(kind) for kind in config.tokens]
    head = np.array(
        [
            *(MAGIC, width, len(blocks), blocks[0].mlp[0].out_features, config.context_length),
            *(times, spec.observation_shape[0], spec.action_dim, spec.discrete),
            *(len(kinds), *kinds, *[0] * (3 - len(kinds))),
        ],
        np.int32,
    )
    eps = np.array([embedding.norm.eps, agent.backbone.norm.eps, 0], np.float32)
    ints = np.concatenate([head, eps.view(np.int32), np.array(layers, np.int32)])
    ints = np.pad(ints, (0, -len(ints) % ALIGNED))
    return np.concatenate([ints.view(np.float32), *(array.ravel() for array in arrays)])


def padded(width: int) -> int:
    """Numbers that a row of `width` takes."""
    return -(-width // TILE) * TILE


def row(values: Tensor) -> np.ndarray:
    """[..., width] with zeros after each row."""
    array = values.detach().cpu().numpy().astype(np.float32)
    array = np.atleast_1d(array)
    spare = padded(array.shape[-1]) - array.shape[-1]
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, spare)])


def matrix(layer: nn.Linear) -> np.ndarray:
    """A linear map: its weights in tiles, then its bias, zeros if it has none."""
    return linear(layer.weight, layer.bias)


def linear(weight: Tensor, bias: Tensor | None = None) -> np.ndarray:
    """The same of weight [outputs, inputs]."""
    tiles = row(weight.t()).reshape(weight.shape[1], -1, TILE).swapaxes(0, 1)
    return np.concatenate([tiles.ravel(), row(weight[:, 0] * 0 if bias is None else bias)])


def norm(layer: nn.LayerNorm) -> np.ndarray:
    """Weight, then bias."""
    return np.concatenate([row(layer.weight), row(layer.bias)])


def pack_attention(mixer: Attention) -> tuple[list[int], list[np.ndarray]]:
    """Heads, window; keys and values, queries, output."""
    width = mixer.out.in_features
    ask, tell = mixer.qkv.weight.split([width, 2 * width])
    ask_bias, tell_bias = mixer.qkv.bias.split([width, 2 * width])
    arrays = [linear(tell, tell_bias), linear(ask, ask_bias), matrix(mixer.out)]
    return [mixer.heads, mixer.window], arrays


def pack_conv(mixer: KindConv) -> tuple[list[int], list[np.ndarray]]:
    """Kinds, kernel size; the filter of each kind, by lag, and its bias."""
    kinds, kernel_size, _ = mixer.weight.shape
    return [kinds, kernel_size], [row(torch.cat([mixer.weight, mixer.bias.unsqueeze(1)], dim=1))]


def pack_mamba(mixer: Mamba) -> tuple[list[int], list[np.ndarray]]:
    """E, N, kernel size and the rank of dt; what csrc/mixers.c names."""
    channels, _, kernel_size = mixer.conv1d.weight.shape
    into, gate = mixer.in_proj.weight.chunk(2)
    assert mixer.conv1d.bias is not None
    by_lag = (
        mixer.conv1d.weight.squeeze(1).flip(1).t()
    )  # [kernel_size, E], tap k - 1 meets the newest
    decay = -torch.exp(mixer.A_log.float()).t() / np.log(2)  # [N, E]
    arrays = [
        *(linear(into), linear(gate), row(torch.cat([by_lag, mixer.conv1d.bias.unsqueeze(0)]))),
        *(matrix(mixer.x_proj), matrix(mixer.dt_proj), row(decay), row(mixer.D)),
        matrix(mixer.out_proj),
    ]
    return [channels, mixer.d_state, kernel_size, mixer.dt_rank], arrays


def pack_pointwise(mixer: Pointwise) -> tuple[list[int], list[np.ndarray]]:
    """The linear map."""
    return [], [matrix(mixer.linear)]


MIXERS: dict[type[nn.Module], Callable[[Any], tuple[list[int], list[np.ndarray]]]] = {
    Attention: pack_attention,  # in the order of csrc/mixers.c
    KindConv: pack_conv,
    Mamba: pack_mamba,
    Pointwise: pack_pointwise,
}
