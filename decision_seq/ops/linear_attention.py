"""Attention without softmax, whose past decays: the masked matrix products that the selective state
spaces since Mamba-2 (arXiv:2405.21060), the mLSTM and the gated delta rule amount to.

Within chunks of CHUNK tokens it is a matrix, between them a state, so that cost is linear in the
number of tokens. In the dtype of its inputs, also under autocast: what adds up over a thousand
tokens must not be in half precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64  # tokens whose mutual influence is one matrix; a window of 20 steps is a single chunk


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    own: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """y_l = h_l q_l with h_l = exp(g_l) h_{l-1} + v_l k_l^T.

    Args:
        q, k: queries and keys, [B, H, L, N]; or [B, 1, L, N], the same ones for every head.
        v: values, [B, H, L, P].
        log_decay: g, at most 0, [B, H, L].
        state: h before the first token, [B, H, P, N]; None is zeros, and says that the state after
            the last token is not wanted.
        own: the values of which tokens read their own, in place of v, [B, H, L, P]; so v_l may
            depend on token l + 1.

    Returns:
        y, [B, H, L, P], and the state after the last token or None.
    """
    outputs, keep = [], state is not None
    with torch.autocast(v.device.type, enabled=False):
        # one split each: slices in the loop would each cost a gradient of the whole sequence
        parts = (q, k, v, log_decay, v if own is None else own)
        chunks = zip(*(t.split(CHUNK, dim=2) for t in parts), strict=True)
        remaining = v.shape[2]
        for q_, k_, v_, g_, own_ in chunks:
            remaining -= v_.shape[2]
            M = influence(q_, k_, g_)
            if own is None:
                y = M @ v_
            else:
                y = M.tril(-1) @ v_ + M.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) * own_
            if state is not None:
                y = y + g_.cumsum(-1).exp().unsqueeze(-1) * (q_ @ state.transpose(-1, -2))
            if keep or remaining:
                state = advance(k_, v_, g_, state)
            outputs.append(y)
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)), state


def influence(q: Tensor, k: Tensor, log_decay: Tensor) -> Tensor:
    """(q_l . k_s) exp(g_{s+1} + ... + g_l) [B, H, L, L] of tokens among themselves, zero above the
    diagonal; shapes as in `linear_attention`."""
    return (q @ k.transpose(-1, -2)).tril() * decay_between(log_decay)


def decay_between(log_decay: Tensor) -> Tensor:
    """[B, H, L] -> exp(g_{s+1} + ... + g_l) in row l, column s, [B, H, L, L]; 1 above the diagonal,
    where the sum is empty. Differences of a running sum would be the same, but lose three digits of
    the gradients of g."""
    length = log_decay.shape[-1]
    seen = torch.ones(length, length, device=log_decay.device, dtype=log_decay.dtype).tril()
    return (seen @ (log_decay.unsqueeze(-1) * seen.tril(-1))).exp()


def advance(k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> Tensor:
    """The state [B, H, P, N] after tokens that bring v k^T each; as in `linear_attention`."""
    to_end = log_decay.flip(-1).cumsum(-1).flip(-1) - log_decay  # over (s, L]
    new = (v * to_end.exp().unsqueeze(-1)).transpose(-1, -2) @ k
    if state is None:
        return new
    return new + log_decay.sum(-1).exp()[..., None, None] * state
