"""Mixers over the patches of an image: shapes, formulas, symmetries, energy, iteration."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_mixers import gelu_integral
from torch import Tensor, nn

from decision_seq.config import build, to_plain
from decision_seq.errors import UserError
from decision_seq.model.encoders import ImageEncoderConfig
from decision_seq.model.encoders.mixers import (
    IMixerConfig,
    IterativeModule,
    ParallelBlock,
    PatchMixer,
    PatchMixerConfig,
    SerialBlock,
    SymmetricModule,
    VanillaModule,
)
from decision_seq.ops.spectral import SpectralScale

SHAPE = (2, 6, 9)  # C, H, W
PATCHES, WIDTH = 6, 8
SMALL = {"width": WIDTH, "patch": 3, "layers": 2, "token_hidden": 5, "channel_hidden": 7}
KINDS = sorted(
    kind
    for kind, config in ImageEncoderConfig.registry.items()
    if issubclass(config, PatchMixerConfig)
)
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str, **fields: object) -> PatchMixer:
    torch.manual_seed(0)
    encoder = build(ImageEncoderConfig, {"kind": kind} | SMALL | fields, "test").build(SHAPE)
    assert isinstance(encoder, PatchMixer)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "bias" in name:
                parameter.normal_(std=0.3)  # zero biases would hide that they are there
    return encoder.double()


def images(batch: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64)


def tokens(batch: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, PATCHES, WIDTH, generator=generator, dtype=torch.float64)


# ---- every encoder -------------------------------------------------------------------------


def test_the_published_kinds_are_there() -> None:
    assert {"vanilla", "symmetric", "asymmetric", "imixer"} <= set(KINDS)


@every_kind
def test_images_become_normalised_features(kind: str) -> None:
    encoder = make(kind)
    nn.init.zeros_(encoder.norm.bias)
    features = encoder(images())
    assert features.shape == (3, WIDTH)
    torch.testing.assert_close(features.mean(1), torch.zeros(3, dtype=torch.float64))
    alone = torch.cat([encoder(image[None]) for image in images()])
    torch.testing.assert_close(features, alone)


@every_kind
def test_patches_are_cut_row_by_row(kind: str) -> None:
    encoder, x = make(kind), images()
    embed = encoder.embed
    assert embed.bias is not None
    for row in range(2):
        for column in range(3):
            patch = x[:, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            expected = torch.einsum("bcij,dcij->bd", patch, embed.weight) + embed.bias
            token = embed(x).flatten(2).mT[:, 3 * row + column]
            torch.testing.assert_close(token, expected)


@every_kind
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    encoder = make(kind)
    (encoder(images()) ** 3).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@every_kind
def test_every_patch_reaches_every_other(kind: str) -> None:
    block = make(kind).blocks[0]
    jacobian = torch.autograd.functional.jacobian(block, tokens(batch=1))[0, :, :, 0]
    assert (jacobian.abs().amax((1, 3)) > 1e-4).all()  # [P, P]


@every_kind
def test_patches_may_be_renamed_if_the_weights_are(kind: str) -> None:
    """The order of patches is known to token mixing alone: permuting tokens permutes outputs once
    token weights are permuted with them, and not before."""
    encoder, x = make(kind), tokens()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    block = encoder.blocks[0]
    before = block(x)
    assert (block(x[:, order]) - before[:, order]).abs().max() > 1e-3
    inward = {"inward.weight", "W"}
    outward = {"outward.weight", "outward.bias", "V"}
    with torch.no_grad():
        for name, parameter in block.tokens.named_parameters():
            if name in inward:
                parameter.copy_(parameter[:, order])
            elif name in outward:
                parameter.copy_(parameter[order])
    torch.testing.assert_close(block(x[:, order]), before[:, order])


@every_kind
def test_channels_are_mixed_alike_for_all_patches_and_patches_for_all_channels(kind: str) -> None:
    block, x = make(kind).blocks[0], tokens()
    for module, y in ((block.channels, x), (block.tokens, x.mT)):
        alone = torch.stack([module(y[:, i]) for i in range(y.shape[1])], dim=1)
        torch.testing.assert_close(module(y), alone)


@every_kind
def test_config_survives_a_file(kind: str) -> None:
    config = ImageEncoderConfig.registry[kind](**SMALL)  # type: ignore[arg-type]
    assert build(ImageEncoderConfig, to_plain(config), "file") == config


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("vanilla", {"patch": 4}, "patch is 4, which does not divide images of 6 x 9"),
        ("vanilla", {"layers": 0}, "layers is 0"),
        ("symmetric", {"n_iter": 0}, "n_iter is 0"),
        ("asymmetric", {"symmetry_penalty": -1.0}, "symmetry_penalty is -1.0"),
        ("imixer", {"n_iter": -1}, "n_iter"),
        ("imixer", {"contraction": 0.0}, "contraction is 0.0"),
        ("imixers", {}, "nearest is `imixer`"),
    ],
)
def test_bad_fields_are_one_sentence(kind: str, fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(kind, **fields)


# ---- the formulas, by loops ----------------------------------------------------------------


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def loop(module: nn.Module, x: Tensor) -> Tensor:
    """A mixing module on one vector [n], unit by unit."""
    inward, outward = module.matrices()  # type: ignore[operator]
    hidden, out = [], torch.zeros_like(x)
    for m in range(len(inward)):
        bias = module.inward.bias[m] if isinstance(module, VanillaModule) else 0.0
        hidden.append(gelu((inward[m] * x).sum() + bias))
    for i in range(len(x)):
        bias = module.outward.bias[i] if isinstance(module, VanillaModule) else 0.0
        out[i] = sum(outward[i, m] * hidden[m] for m in range(len(hidden))) + bias
    return out


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
def test_parallel_block_equals_a_loop(kind: str) -> None:
    block, x = make(kind, n_iter=2).blocks[0], tokens(batch=1)
    assert isinstance(block, ParallelBlock)
    y = x[0].detach()
    with torch.no_grad():
        for _ in range(2):
            g = (y - y.mean()) / (y.var(correction=0) + 1e-5).sqrt()
            new = y.clone()
            for d in range(WIDTH):
                new[:, d] += loop(block.tokens, g[:, d])
            for p in range(PATCHES):
                new[p] += loop(block.channels, g[p])
            y = new
        torch.testing.assert_close(block(x)[0], y)


def test_vanilla_block_equals_a_loop() -> None:
    block, x = make("vanilla").blocks[0], tokens(batch=1)
    assert isinstance(block, SerialBlock)
    y = x[0].clone()
    with torch.no_grad():
        g = F.layer_norm(y, (WIDTH,)) * block.norm_tokens.weight + block.norm_tokens.bias
        for d in range(WIDTH):
            y[:, d] += loop(block.tokens, g[:, d])
        g = F.layer_norm(y, (WIDTH,)) * block.norm_channels.weight + block.norm_channels.bias
        for p in range(PATCHES):
            y[p] += loop(block.channels, g[p])
        torch.testing.assert_close(block(x)[0], y)


# ---- symmetry and energy -------------------------------------------------------------------


def test_asymmetric_without_v_is_symmetric() -> None:
    asymmetric, symmetric = make("asymmetric"), make("symmetric")
    weights = asymmetric.state_dict()
    symmetric.load_state_dict({k: v for k, v in weights.items() if not k.endswith(".V")})
    assert (asymmetric(images()) - symmetric(images())).abs().max() > 1e-3
    with torch.no_grad():
        for name, parameter in asymmetric.named_parameters():
            if name.endswith(".V"):
                parameter.zero_()
    torch.testing.assert_close(asymmetric(images()), symmetric(images()), rtol=0, atol=1e-14)


def test_penalty_is_lambda_times_the_sum_of_squares_of_v() -> None:
    encoder = make("asymmetric", symmetry_penalty=0.3)
    squares = [p.square().sum() for n, p in encoder.named_parameters() if n.endswith(".V")]
    assert len(squares) == 4  # tokens and channels of two blocks
    torch.testing.assert_close(encoder.penalty(), 0.3 * sum(squares))
    for kind in ("vanilla", "symmetric", "imixer"):
        assert make(kind).penalty() == 0


def test_symmetry_breaking_by_kind() -> None:
    assert make("symmetric").symmetry_breaking() == {"tokens": 0, "channels": 0}
    wide = {"width": 256, "token_hidden": 256, "channel_hidden": 256}
    start = make("vanilla", **wide).symmetry_breaking()
    assert start == pytest.approx({"tokens": 1, "channels": 1}, abs=0.1)
    start = make("asymmetric", **wide).symmetry_breaking()  # V^2 / (W^2 + (W^T + V)^2)
    assert start == pytest.approx({"tokens": 1 / 3, "channels": 1 / 3}, abs=0.05)


def energy(block: ParallelBlock, x: Tensor, g: Tensor, eps: float) -> Tensor:
    """E = x.g - L(x) - sum Phi(W g) - sum Phi(g C^T) [B], L = N sqrt(var x + eps), of x [B, P, D].

    Layer norm over tokens and channels together is the gradient of L, GELU that of Phi; a step of
    dx/dt = W^T phi(W g) + phi(g C^T) C - x lowers E, because L is convex (arXiv:2406.12220).
    """
    assert isinstance(block.tokens, SymmetricModule)
    assert isinstance(block.channels, SymmetricModule)
    own = (x * g).sum((1, 2)) - PATCHES * WIDTH * (x.var((1, 2), correction=0) + eps).sqrt()
    hidden = gelu_integral(block.tokens.W @ g).sum((1, 2))
    return own - hidden - gelu_integral(g @ block.channels.W.mT).sum((1, 2))


def symmetric_block(scale: float) -> ParallelBlock:
    block = make("symmetric").blocks[0]
    assert isinstance(block, ParallelBlock)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(scale)
    return block


def test_what_neurons_show_is_the_gradient_of_their_lagrangian() -> None:
    x = 2 * tokens().requires_grad_()
    length = PATCHES * WIDTH * (x.var((1, 2), correction=0) + 1e-5).sqrt()
    (norm,) = torch.autograd.grad(length.sum(), x)
    torch.testing.assert_close(norm, F.layer_norm(x, (PATCHES, WIDTH)))
    (phi,) = torch.autograd.grad(gelu_integral(x).sum(), x)
    torch.testing.assert_close(phi, gelu(x))


def test_symmetric_block_is_one_descent_step_without_the_decay() -> None:
    block, x = symmetric_block(1.0), tokens()
    g = F.layer_norm(x, (PATCHES, WIDTH)).requires_grad_()
    (gradient,) = torch.autograd.grad(energy(block, x, g, eps=1e-5).sum(), g)
    torch.testing.assert_close(block(x) - x, -gradient + x, rtol=0, atol=1e-10)


@torch.no_grad()
def test_energy_of_the_symmetric_mixer_falls_along_descent() -> None:
    for scale in (0.3, 1.0, 3.0):
        block, x, energies = symmetric_block(scale), tokens(), []
        for _ in range(50):
            g = F.layer_norm(x, (PATCHES, WIDTH))
            energies.append(energy(block, x, g, eps=1e-5))
            x = x + 0.05 * (block(x) - x - x)
        path = torch.stack(energies)
        assert (path.diff(dim=0) < 0).all() and (path[-1] < path[0] - 0.05).all()


@torch.no_grad()
def test_a_residual_block_is_half_a_step_of_twice_the_size() -> None:
    """Layer norm does not see the size of x, so x + f lies where (x + f) / 2 does."""
    block, x = symmetric_block(1.0), tokens()
    whole, half = (
        energy(block, y, F.layer_norm(y, (PATCHES, WIDTH), eps=0.0), eps=0.0)
        for y in (block(x), x + 0.5 * (block(x) - x - x))
    )
    torch.testing.assert_close(whole, half)


# ---- the iteration -------------------------------------------------------------------------


def iterated(**fields: object) -> IterativeModule:
    torch.manual_seed(3)
    config = IMixerConfig(**SMALL | fields)  # type: ignore[arg-type]
    module = IterativeModule(PATCHES, config.token_hidden, config).double()
    with torch.no_grad():
        for layer in (module.first, module.second):
            layer.weight.normal_(std=1.0)
            layer.bias.normal_()
    for _ in range(5):  # power iterations happen in training only
        module(tokens().mT)
    return module.eval()


def test_no_iteration_is_the_plain_mlp() -> None:
    plain, none = make("vanilla"), make("imixer", n_iter=0)
    none.load_state_dict(plain.state_dict())
    torch.testing.assert_close(none(images()), plain(images()), rtol=0, atol=0)


def test_one_iteration_equals_its_formula() -> None:
    module, x = iterated(n_iter=1, contraction=0.5), tokens().mT
    matrices = []
    for layer in (module.first, module.second):
        largest = torch.linalg.matrix_norm(layer.weight, 2)
        assert largest > 0.5
        matrices.append(0.5 * layer.weight / largest)
    start = x @ module.inward.weight.mT + module.inward.bias
    inner = gelu(start) @ matrices[0].mT + module.first.bias
    z = start + gelu(inner) @ matrices[1].mT + module.second.bias
    expected = gelu(z) @ module.outward.weight.mT + module.outward.bias
    torch.testing.assert_close(module(x), expected)


def test_fixed_point_satisfies_the_implicit_equation_below_the_bound() -> None:
    module = iterated(n_iter=400)
    start = module.inward(tokens().mT)
    z = module.solve(start)
    module.n_iter = 1
    image = module.solve(z) - z  # F(z)
    torch.testing.assert_close(z - image, start, rtol=0, atol=1e-10)


def test_spectral_scale_leaves_small_weights_and_bounds_large_ones() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 4)
    sigma = torch.linalg.matrix_norm(weight, 2)
    scale = SpectralScale(weight, limit=0.85, iterations=8).eval()
    assert torch.linalg.matrix_norm(scale(weight), 2) == pytest.approx(0.85, rel=1e-5)
    small = 0.5 * weight / sigma
    assert torch.equal(scale(small), small)

    other = torch.randn(6, 4)
    before = scale.u.clone()
    scale(other)
    assert torch.equal(scale.u, before)  # evaluation changes nothing
    scale.train()
    for _ in range(20):
        scaled = scale(other)
    assert torch.linalg.matrix_norm(scaled, 2) == pytest.approx(0.85, rel=1e-4)


def test_training_keeps_the_iteration_a_contraction() -> None:
    encoder = make("imixer", contraction=0.85).train()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    for step in range(30):
        optimizer.zero_grad()
        grown = encoder.blocks[0](tokens(seed=step)).square().sum()  # rewards large weights
        (encoder(images(seed=step)).sum() - grown).backward()
        optimizer.step()
    module = encoder.blocks[0].tokens
    assert isinstance(module, IterativeModule)
    assert torch.linalg.matrix_norm(module.first.weight, 2) > 1
    encoder(images())  # the optimiser's last step has not been seen yet
    for name in ("first", "second"):
        scale = getattr(module, f"scale_{name}").eval()
        norm = torch.linalg.matrix_norm(scale(getattr(module, name).weight), 2)
        assert norm <= 0.85 * 1.02
