"""The mixers of arXiv:2406.12220 as associative memories, whole and causal.

The tokens are a layer whose Lagrangian is layer norm; the hidden units of token mixing and channel
mixing are two settled layers with GELU. Energy descent of the tokens is then the parallel
symmetric mixer's block, up to the decay -x.
"""

from __future__ import annotations

import math

from torch import Tensor

from decision_seq.hopfield.lagrangians import GELU_SLOPES, Gelu, LayerNorm
from decision_seq.hopfield.memory import AssociativeMemory, Layer, Synapse


def mixer_memory(token: Tensor, channel: Tensor, eps: float = 0.0) -> AssociativeMemory:
    """The published mixer, which mixes all P tokens of an image.

        E = x.g - L(x) - sum Phi(W g) - sum Phi(g C^T),  g = LN(x) over tokens and channels jointly
        dx/dt = W^T phi(W g) + phi(g C^T) C - x

    Args:
        token: W [m, P].
        channel: C [c, D].
        eps: of the layer norm.

    Returns:
        a memory whose state is {"x": [..., P, D]}.
    """
    (hidden, tokens), (channel_hidden, width) = token.shape, channel.shape
    layers = {
        "x": Layer((tokens, width), LayerNorm(eps)),
        "token": Layer((hidden, width), Gelu(), tau=0),
        "channel": Layer((tokens, channel_hidden), Gelu(), tau=0),
    }
    synapses = [
        Synapse("x", "token", token, "mp,pd->md"),
        Synapse("x", "channel", channel, "cd,pd->pc"),
    ]
    return AssociativeMemory(layers, synapses)


def causal_mixer_memory(
    own: Tensor, channel: Tensor, past: Tensor, eps: float = 0.0
) -> AssociativeMemory:
    """Token t of the causal symmetric mixer, with the tokens before it held fixed.

        E_t = x_t.g_t - L(x_t) - sum Phi(H[t]) - sum Phi(C g_t),  H[t] = past + own g_t^T
        dx_t/dt = own^T phi(H[t]) + C^T phi(C g_t) - x_t

    Args:
        own: W[t,:,t] [m], the weights of token t to its own hidden units.
        channel: C [c, D].
        past: [..., m, D] sum over s < t of W[t,:,s] g_s.
        eps: of the layer norm.

    Returns:
        a memory whose state is {"x": [..., D]}.
    """
    channel_hidden, width = channel.shape
    layers = {
        "x": Layer((width,), LayerNorm(eps)),
        "token": Layer((len(own), width), Gelu(), bias=past, tau=0),
        "channel": Layer((channel_hidden,), Gelu(), tau=0),
    }
    synapses = [Synapse("x", "token", own, "m,d->md"), Synapse("x", "channel", channel, "cd,d->c")]
    return AssociativeMemory(layers, synapses)


def largest_mixer_step(memory: AssociativeMemory, x: Tensor) -> Tensor:
    """The longest dt at x that is sure not to raise the energy of a mixer with eps = 0, [...].

    Layer norm's slope has no bound, so `AssociativeMemory.largest_step` has nothing to say; but the
    energy depends on the point g of a sphere of radius R = sqrt(N) alone, N units. With u = x -
    mean x, f the input of the tokens and mu = 0.129 (|W|^2 + |C|^2):
        dt <= |u| / (|u| + max(0, -f.g / R) + mu R / 2).
    Derivation: docs/hopfield.md. x is [..., layer], the layer as in `memory`.
    """
    layer = memory.layers["x"]
    start = x.ndim - len(layer.shape)
    activations = memory.activations({"x": x})
    force = memory.inputs(activations)["x"].flatten(start)  # [..., N]
    g = activations["x"].flatten(start)
    radius = math.sqrt(g.shape[-1])
    spread = (x - x.mean(list(range(start, x.ndim)), keepdim=True)).flatten(start).norm(dim=-1)
    outward = (force * g).sum(-1) / radius
    falls = -GELU_SLOPES[0] * sum(synapse.norm() ** 2 for synapse in memory.synapses)
    return spread / (spread + outward.neg().clamp(min=0) + falls * radius / 2)
