"""MLP-Mixers over the patches of an image, as published: every patch sees every other.

vanilla: token mixing, then channel mixing, each behind a layer norm per token (arXiv:2105.01601).
symmetric, asymmetric: both at once behind one layer norm over tokens and channels together, the
way back being the transpose of the way in, or that and a free part (arXiv:2406.12220).
imixer: vanilla with an iterated token module (arXiv:2304.13061).

P = patches, D = width. What differs from the published code: docs/hopfield.md.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.backbones.mixer import symmetry_breaking
from decision_seq.config import register
from decision_seq.errors import UserError
from decision_seq.model.encoders.base import (
    ImageEncoder,
    ImageEncoderConfig,
    ImageShape,
)
from decision_seq.ops.spectral import SpectralScale


class MixingModule(nn.Module):
    """A mixing module: [..., n] -> [..., n] through m hidden units."""

    def penalty(self) -> Tensor | float:
        """What training adds to the loss on account of the weights."""
        return 0.0

    @abstractmethod
    def matrices(self) -> tuple[Tensor, Tensor]:
        """The way in W1 [m, n] and the way back W2 [n, m]."""


class VanillaModule(MixingModule):
    """W2 phi(W1 x + b1) + b2."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.inward = linear(size, hidden)
        self.outward = linear(hidden, size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] -> [..., n]"""
        return self.outward(F.gelu(self.inward(x)))

    def matrices(self) -> tuple[Tensor, Tensor]:
        return self.inward.weight, self.outward.weight


class SymmetricModule(MixingModule):
    """W^T phi(W x), the gradient of sum Phi(W x)."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.W = nn.Parameter(nn.init.xavier_uniform_(torch.empty(hidden, size)))

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] -> [..., n]"""
        return F.linear(F.gelu(F.linear(x, self.W)), self.matrices()[1])

    def matrices(self) -> tuple[Tensor, Tensor]:
        return self.W, self.W.mT


class AsymmetricModule(SymmetricModule):
    """(W^T + V) phi(W x), and lambda * (sum of squares of V) in the loss."""

    def __init__(self, size: int, hidden: int, weight: float) -> None:
        super().__init__(size, hidden)
        self.V = nn.Parameter(nn.init.xavier_uniform_(torch.empty(size, hidden)))
        self.weight = weight  # lambda

    def matrices(self) -> tuple[Tensor, Tensor]:
        return self.W, self.W.mT + self.V

    def penalty(self) -> Tensor | float:
        return self.weight * self.V.square().sum()


class IterativeModule(VanillaModule):
    """z_0 = W1 x + b1; z_{k+1} = z_0 + F(z_k), F(z) = S2 phi(S1 phi(z)) with biases, k < n_iter;
    out = W2 phi(z_n) + b2. S1 and S2 are held below spectral norm c, which makes F a contraction
    for c < 0.8858; a converged z satisfies z - F(z) = z_0."""

    def __init__(self, size: int, hidden: int, config: IMixerConfig) -> None:
        super().__init__(size, hidden)
        self.n_iter = config.n_iter
        self.first = linear(hidden, hidden)
        self.second = linear(hidden, hidden)
        limit, rounds = config.contraction, config.power_iterations
        self.scale_first = SpectralScale(self.first.weight, limit, rounds)
        self.scale_second = SpectralScale(self.second.weight, limit, rounds)

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] -> [..., n]"""
        return self.outward(F.gelu(self.solve(self.inward(x))))

    def solve(self, start: Tensor) -> Tensor:
        """z_n from z_0: [..., m] -> [..., m]"""
        if self.n_iter == 0:
            return start
        first = self.scale_first(self.first.weight)
        second = self.scale_second(self.second.weight)
        z = start
        for _ in range(self.n_iter):
            inner = F.linear(F.gelu(z), first, self.first.bias)
            z = start + F.linear(F.gelu(inner), second, self.second.bias)
        return z


class SerialBlock(nn.Module):
    """x + tokens(norm(x)), then x + channels(norm(x)), the norms per token."""

    def __init__(self, tokens: MixingModule, channels: MixingModule, width: int) -> None:
        super().__init__()
        self.norm_tokens, self.norm_channels = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens, self.channels = tokens, channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, P, D] -> [B, P, D]"""
        x = x + self.tokens(self.norm_tokens(x).mT).mT
        return x + self.channels(self.norm_channels(x))


class ParallelBlock(nn.Module):
    """x + tokens(g) + channels(g), g = the norm of x over tokens and channels together, n_iter
    times with the same weights.

    The norm has no weights: one for each unit would take the energy away from the symmetric mixer.
    """

    def __init__(self, tokens: MixingModule, channels: MixingModule, n_iter: int) -> None:
        super().__init__()
        self.tokens, self.channels, self.n_iter = tokens, channels, n_iter

    def forward(self, x: Tensor) -> Tensor:
        """[B, P, D] -> [B, P, D]"""
        for _ in range(self.n_iter):
            g = F.layer_norm(x, x.shape[1:])
            x = x + self.tokens(g.mT).mT + self.channels(g)
        return x


@dataclass(frozen=True)
class PatchMixerConfig(ImageEncoderConfig):
    """Fields of all mixers over patches."""

    width: int = 128  # D, features a patch, and an image
    patch: int = 12  # side of a square patch, in pixels; must divide height and width
    layers: int = 4  # blocks
    token_hidden: int = 64  # hidden units of token mixing, for each channel
    channel_hidden: int = 512  # hidden units of channel mixing, for each patch

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "patch", "layers", "token_hidden", "channel_hidden"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @abstractmethod
    def make_block(self, patches: int) -> nn.Module:
        """One block for P patches."""

    def build(self, shape: ImageShape) -> PatchMixer:
        return PatchMixer(self, shape)


@register("vanilla", "MLP-Mixer: token mixing, then channel mixing")
@dataclass(frozen=True)
class VanillaConfig(PatchMixerConfig):
    """MLP-Mixer (arXiv:2105.01601)."""

    def make_block(self, patches: int) -> nn.Module:
        tokens = VanillaModule(patches, self.token_hidden)
        return SerialBlock(tokens, VanillaModule(self.width, self.channel_hidden), self.width)


@dataclass(frozen=True)
class ParallelConfig(PatchMixerConfig):
    """Fields of the parallel mixers (arXiv:2406.12220)."""

    n_iter: int = 1  # how often a block is applied

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_iter < 1:
            raise UserError(f"n_iter is {self.n_iter}; it must be at least 1")

    @abstractmethod
    def make_module(self, size: int, hidden: int) -> MixingModule:
        """Token or channel mixing."""

    def make_block(self, patches: int) -> nn.Module:
        tokens = self.make_module(patches, self.token_hidden)
        return ParallelBlock(tokens, self.make_module(self.width, self.channel_hidden), self.n_iter)


@register("symmetric", "parallel mixer with W and its transpose: energy descent")
@dataclass(frozen=True)
class SymmetricConfig(ParallelConfig):
    """The parallel symmetric mixer."""

    def make_module(self, size: int, hidden: int) -> MixingModule:
        return SymmetricModule(size, hidden)


@register("asymmetric", "the symmetric mixer and a free, penalised way back")
@dataclass(frozen=True)
class AsymmetricConfig(ParallelConfig):
    """The parallel mixer with broken symmetry."""

    symmetry_penalty: float = 0.0  # lambda, of the sum of squares of V; large: symmetric

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.symmetry_penalty < 0:
            raise UserError(f"symmetry_penalty is {self.symmetry_penalty}; it must be at least 0")

    def make_module(self, size: int, hidden: int) -> MixingModule:
        return AsymmetricModule(size, hidden, self.symmetry_penalty)


@register("imixer", "MLP-Mixer whose token mixing is a fixed-point iteration")
@dataclass(frozen=True)
class IMixerConfig(PatchMixerConfig):
    """iMixer (arXiv:2304.13061)."""

    n_iter: int = 4  # iterations; 0: the plain MLP
    contraction: float = 0.85  # c; the paper has 0.9, a contraction needs less than 0.8858
    power_iterations: int = 8  # for the largest singular values, each training step

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_iter < 0 or self.power_iterations < 1:
            raise UserError(
                f"n_iter must be at least 0 and power_iterations at least 1, "
                f"got {self.n_iter}, {self.power_iterations}"
            )
        if self.contraction <= 0:
            raise UserError(f"contraction is {self.contraction}; it must be above 0")

    def make_block(self, patches: int) -> nn.Module:
        tokens = (
            IterativeModule(patches, self.token_hidden, self)
            if self.n_iter
            else VanillaModule(patches, self.token_hidden)
        )
        return SerialBlock(tokens, VanillaModule(self.width, self.channel_hidden), self.width)


class PatchMixer(ImageEncoder):
    """Patches, blocks, the mean over patches, layer norm."""

    def __init__(self, config: PatchMixerConfig, shape: ImageShape) -> None:
        super().__init__()
        channels, height, width = shape
        side, self.features = config.patch, config.width
        if height % side or width % side:
            raise UserError(f"patch is {side}, which does not divide images of {height} x {width}")
        self.embed = nn.Conv2d(channels, config.width, side, stride=side)
        fan_in = channels * side * side
        nn.init.trunc_normal_(self.embed.weight, std=fan_in**-0.5)
        nn.init.zeros_(self.embed.bias)  # type: ignore[arg-type]
        patches = (height // side) * (width // side)
        self.blocks = nn.Sequential(*(config.make_block(patches) for _ in range(config.layers)))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D]"""
        x = self.embed(images).flatten(2).mT  # [B, P, D]
        return self.norm(self.blocks(x).mean(dim=1))

    def penalty(self) -> Tensor | float:
        return sum(module.penalty() for module in self._mixing())

    def symmetry_breaking(self) -> dict[str, float]:
        """eta of token and channel mixing, the mean over blocks."""
        found: dict[str, list[float]] = {}
        for block in self.blocks:
            for name, module in block.named_children():
                if isinstance(module, MixingModule):
                    there, back = module.matrices()
                    found.setdefault(name, []).append(float(symmetry_breaking(there.mT, back)))
        return {name: sum(values) / len(values) for name, values in found.items()}

    def _mixing(self) -> list[MixingModule]:
        return [module for module in self.modules() if isinstance(module, MixingModule)]


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear map as the published mixers start it."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
