"""Mamba-3, single input and output: a state that turns, fed by a trapezoid (arXiv:2603.15569).

Parameter names and shapes are those of `mamba_ssm.Mamba3` with one group and without MIMO.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.backbones.block import BackboneConfig
from decision_seq.backbones.contract import LayerState, Layout, Mixer
from decision_seq.config import register
from decision_seq.errors import UserError
from decision_seq.ops.linear_attention import influence, linear_attention

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4  # of softplus(dt_bias) at initialisation
SLOWEST = 1e-4  # least -A
TURN = 2 * math.pi


@register("mamba3", "selective state space that turns; cost L; streams with a constant-size state")
@dataclass(frozen=True)
class Mamba3Config(BackboneConfig):
    """E = expand * width channels in H heads, each channel with d_state variables, half of which
    turn in pairs."""

    d_state: int = 64  # N
    expand: int = 2
    heads: int = 4  # H; mamba_ssm fixes E / H = 64 instead, which is this at width 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_1("expand")
        if self.d_state < 4 or self.d_state % 4:
            raise UserError(f"d_state is {self.d_state}; it must be a multiple of 4")
        if self.heads < 1 or self.expand * self.width % self.heads:
            channels = self.expand * self.width
            raise UserError(f"heads is {self.heads}; it must divide expand * width = {channels}")

    def make_mixer(self, layout: Layout) -> Mixer:
        return Mamba3(self)


class Tokens(NamedTuple):
    """What the layer makes of its tokens, float32. Heads come before tokens."""

    q: Tensor  # C, turned, [B, H, L, N]
    k: Tensor  # B, turned, [B, H, L, N]
    u: Tensor  # [B, H, L, P]
    log_decay: Tensor  # dt A, [B, H, L]
    now: Tensor  # lambda dt, weight of a token's own input, [B, H, L]
    before: Tensor  # (1 - lambda) dt, weight of the input before, [B, H, L]
    angle: Tensor  # in [0, 2 pi), [B, H, L, N / 4]
    z: Tensor  # gate, [B, L, E]


class Mamba3(Mixer):
    """h_l = a_l h_{l-1} + (1 - lambda_l) dt_l a_l u_{l-1} k_{l-1}^T + lambda_l dt_l u_l k_l^T,
    y_l = (h_l q_l + D u_l) silu(z_l), a_l = exp(dt_l A_l).

    q and k are C and B, normalised, shifted by a bias, and turned by the angle dt_1 theta_1 + ... +
    dt_l theta_l: the same as a state with complex rates A + i theta. A, dt, lambda and theta are
    read from the tokens. The input before is weighed as in the trapezoidal rule, which takes the
    place of Mamba's convolution.
    """

    def __init__(self, config: Mamba3Config) -> None:
        super().__init__()
        self.heads, self.d_state = config.heads, config.d_state
        self.channels = config.expand * config.width  # E
        # gate z, input u, B, C; dt, A and lambda of each head; angles
        self.sizes = [self.channels] * 2 + [self.d_state] * 2 + [self.heads] * 3
        self.sizes.append(self.d_state // 4)
        self.in_proj = nn.Linear(config.width, sum(self.sizes), bias=False)
        low, high = math.log(DT_MIN), math.log(DT_MAX)
        dt = torch.empty(config.heads).uniform_(low, high).exp().clamp(min=DT_FLOOR)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        self.B_bias = nn.Parameter(torch.ones(config.heads, 1, self.d_state))
        self.C_bias = nn.Parameter(torch.ones(config.heads, 1, self.d_state))
        self.B_norm = nn.RMSNorm(self.d_state, eps=1e-5)
        self.C_norm = nn.RMSNorm(self.d_state, eps=1e-5)
        self.D = nn.Parameter(torch.ones(config.heads))
        self.out_proj = nn.Linear(self.channels, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]"""
        tokens = self._tokens(x, None)
        y, _ = trapezoid(tokens, None)
        return self._output(y, tokens)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """The state h, and of the last token u, k and the angle, at least float32."""
        heads, per_head = self.heads, self.channels // self.heads
        shapes = {
            "h": (per_head, self.d_state),
            "u": (1, per_head),
            "k": (1, self.d_state),
            "angle": (self.d_state // 4,),
        }
        zeros = torch.zeros((), device=device, dtype=torch.promote_types(dtype, torch.float32))
        return {name: zeros.repeat(batch_size, heads, *s) for name, s in shapes.items()}

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """[B, n, D], state -> [B, n, D], state"""
        tokens = self._tokens(x, state["angle"])
        # the part of the first token's trapezoid that lies before it decays with the state
        h = state["h"] + (tokens.before[:, :, :1, None] * state["u"].transpose(2, 3)) @ state["k"]
        y, new = trapezoid(tokens, h)
        assert new is not None
        last = {"u": tokens.u[:, :, -1:], "k": tokens.k[:, :, -1:], "angle": tokens.angle[:, :, -1]}
        return self._output(y, tokens), {"h": new, **last}

    @torch.no_grad()
    def token_map(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, H, L, L] float32: what each head's output at token l takes from the
        input u of token s, in absolute size, before skip and gate."""
        tokens = self._tokens(x, None)
        with torch.autocast(x.device.type, enabled=False):
            both = tokens.now + following(tokens.before)  # what later tokens get
            M = influence(tokens.q, tokens.k, tokens.log_decay).abs()
            own = torch.diag_embed(M.diagonal(dim1=-2, dim2=-1) * tokens.now)
            return M.tril(-1) * both.unsqueeze(-2) + own

    @torch.no_grad()
    def memory_length(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, H] float32: tokens until a head's state has decayed to 1/e, were
        every following token as this one: -1 / (dt A)."""
        return -1 / self._tokens(x, None).log_decay.transpose(1, 2)

    def _tokens(self, x: Tensor, angle: Tensor | None) -> Tokens:
        """[B, L, D], and the angle before the first token [B, H, N / 4]; None is zeros."""
        z, *rest = self.in_proj(x).split(self.sizes, dim=-1)
        wide = torch.promote_types(x.dtype, torch.float32)
        u, B, C, dt, A, mix, theta = (t.to(wide) for t in rest)
        dt = F.softplus(dt + self.dt_bias).transpose(1, 2)  # [B, H, L]
        A = -F.softplus(A).clamp(min=SLOWEST).transpose(1, 2)
        mix = mix.sigmoid().transpose(1, 2)  # lambda
        theta = math.pi * torch.tanh(theta).unsqueeze(1)  # [B, 1, L, N / 4]
        # in double: after thousands of tokens a turn more or less must not cost precision
        turned = (dt.unsqueeze(-1) * theta).double().cumsum(2)
        if angle is not None:
            turned = turned + angle.unsqueeze(2)
        turned = (turned % TURN).to(wide)
        with torch.autocast(x.device.type, enabled=False):
            q = rotate(self.C_norm(C).unsqueeze(1) + self.C_bias, turned)
            k = rotate(self.B_norm(B).unsqueeze(1) + self.B_bias, turned)
        u = u.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return Tokens(q, k, u, dt * A, mix * dt, (1 - mix) * dt, turned, z)

    def _output(self, y: Tensor, tokens: Tokens) -> Tensor:
        """[B, H, L, P] -> [B, L, D]"""
        y = (y + self.D[:, None, None] * tokens.u).transpose(1, 2).flatten(2)
        return self.out_proj(y * F.silu(tokens.z.to(y.dtype)))


def trapezoid(tokens: Tokens, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """h_l q_l of `Mamba3` [B, H, L, P], without skip, and the state after the last token.

    A token's input enters twice, with `now` at itself and with `before` of the next one, by then
    decayed once: for all later tokens as if it had entered with both at itself.
    """
    now = tokens.now.unsqueeze(-1) * tokens.u
    both = now + following(tokens.before).unsqueeze(-1) * tokens.u
    return linear_attention(tokens.q, tokens.k, both, tokens.log_decay, state, own=now)


def following(before: Tensor) -> Tensor:
    """[B, H, L], each token's number replaced by that of the next; 0 where none is known."""
    return F.pad(before[:, :, 1:], (0, 1))


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """x [B, H, L, N], of which the first N / 2 features turn in pairs of neighbours by the angles
    [B, H, L, N / 4]."""
    pairs, still = x.chunk(2, dim=-1)
    a, b = pairs.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    return torch.cat([turned, still.expand(*turned.shape)], dim=-1)
