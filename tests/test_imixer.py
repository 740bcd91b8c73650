"""iMixer: dense matrices, the fixed point, the contraction and its power iteration."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from small_mixers import D, M, P, build, dense, every_length, randn, same
from torch import Tensor

from decision_seq.backbones.imixer import IMixer, IMixerConfig

GELU_SLOPE = 1.1289


def imixer(**fields: object) -> IMixer:
    settings = IMixerConfig(**{"width": D, "dropout": 0.0, "hidden": M} | fields)  # type: ignore[arg-type]
    mixer = build(settings).blocks[0].mixer
    assert isinstance(mixer, IMixer)
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return mixer


def biases(bias: Tensor, length: int) -> Tensor:
    return torch.cat([bias[min(t, P - 1)] for t in range(length)])[:, None]


def contracted(layer: torch.nn.Module, c: float, length: int) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    sigma = torch.linalg.svdvals(dense(weight, P))[0]
    return dense(weight, length) / max(1.0, sigma.item() / c)


def converge(mixer: IMixer) -> None:
    """Let the power iteration finish."""
    mixer.train()
    with torch.no_grad():
        for _ in range(300):
            mixer.S1.matrix(1)
            mixer.S2.matrix(1)
    mixer.eval()


@every_length
@pytest.mark.parametrize("n_iter", [0, 1, 3])
def test_imixer_equals_dense_matrices(n_iter: int, length: int) -> None:
    mixer, x = imixer(n_iter=n_iter), randn(1, length, D)
    if n_iter:
        converge(mixer)
        S1, S2 = (contracted(s, 0.85, length) for s in (mixer.S1, mixer.S2))
        c1, c2 = (biases(s.bias, length) for s in (mixer.S1, mixer.S2))  # type: ignore[arg-type]
    W1, W2 = dense(mixer.W1.weight, length), dense(mixer.W2.weight, length)
    b1, b2 = biases(mixer.W1.bias, length), biases(mixer.W2.bias, length)  # type: ignore[arg-type]
    z = z0 = W1 @ x[0] + b1  # the plain MLP along time when n_iter = 0
    for _ in range(n_iter):
        z = z0 + S2 @ F.gelu(S1 @ F.gelu(z) + c1) + c2
    expected = (W2 @ F.gelu(z) + b2)[None]
    torch.testing.assert_close(mixer(x), expected, rtol=1e-8, atol=1e-8)


def residual(mixer: IMixer, z: Tensor) -> Tensor:
    """F(z) for z [P m, N]."""
    return mixer.iterate(z, 1) - z


def test_imixer_converges_to_its_fixed_point() -> None:
    assert IMixerConfig().contraction < 1 / GELU_SLOPE
    mixer = imixer(n_iter=1)
    grow(mixer)
    converge(mixer)
    z0 = 3 * randn(P * M, 2)
    z = mixer.iterate(z0, 300)
    F_z = mixer.iterate(z, 1) - z  # iterate(z, 1) = z + F(z)
    same(z - F_z, z0)
    distances = [(mixer.iterate(z0, n) - z).norm() for n in range(4)]
    bound = (0.85 * GELU_SLOPE) ** 2
    for before, after in itertools.pairwise(distances):
        assert after <= bound * before


def test_the_inner_module_is_a_contraction() -> None:
    mixer = imixer(n_iter=1)
    grow(mixer)
    converge(mixer)
    bound = (0.85 * GELU_SLOPE) ** 2
    largest = 0.0
    for seed in range(20):
        z = 2 * randn(P * M, 1, seed=seed)
        jacobian = torch.autograd.functional.jacobian(lambda z: residual(mixer, z), z)
        largest = max(largest, float(torch.linalg.svdvals(jacobian.view(P * M, P * M))[0]))
    assert 0.1 < largest <= bound < 1


def grow(mixer: IMixer) -> None:
    """Make the inner matrices large enough that the bound is active."""
    with torch.no_grad():
        for layer in (mixer.S1, mixer.S2):
            layer.weight.mul_(5)


def test_sigma_follows_the_weights_in_training_and_only_there() -> None:
    mixer, x = imixer(n_iter=1), randn(1, P, D)
    layer = mixer.S1
    truth = torch.linalg.svdvals(dense(layer.weight, P))[0]
    start = (layer.spectral.u @ dense(layer.weight, P)).norm()
    assert abs(start / truth - 1) < 0.05  # already near before training
    grow(mixer)
    before = layer.spectral.u.clone()
    mixer(x)
    mixer.step(x, mixer.init_state(1, x.device, x.dtype))
    assert torch.equal(layer.spectral.u, before)
    converge(mixer)
    assert not torch.equal(layer.spectral.u, before)
    for inner in (mixer.S1, mixer.S2):
        same(torch.linalg.svdvals(inner.matrix(P))[0], torch.tensor(0.85, dtype=torch.float64))
        assert torch.linalg.svdvals(inner.matrix(2))[0] <= 0.85
    assert "S1.spectral.u" in mixer.state_dict()
    assert not [name for name in mixer.state_dict() if "index" in name]


def test_two_forwards_before_one_backward() -> None:
    mixer = imixer(n_iter=2).train()
    (mixer(randn(1, 3, D)) + mixer(randn(1, 3, D, seed=2))).sum().backward()
    assert mixer.S1.weight.grad is not None


def test_the_gradient_goes_through_the_scale() -> None:
    mixer = imixer(n_iter=1)
    grow(mixer)
    converge(mixer)
    mixer.S1.weight.grad = None
    mixer.S1.matrix(P).square().sum().backward()
    moved = mixer.S1.weight.grad
    assert moved is not None  # scaling W changes nothing, so the gradient is orthogonal to it
    assert abs((moved * mixer.S1.weight).sum()) < 1e-8 < moved.norm()


def test_a_token_map_can_be_had_while_acting() -> None:
    mixer = imixer(n_iter=1)
    with torch.inference_mode():
        seen_map = mixer.token_map(randn(1, 2 * P, D))
    assert seen_map.shape == (1, 1, 2 * P, 2 * P)
    assert seen_map.triu(1).abs().max() == 0 and seen_map[0, 0, -1, -P:].min() > 0
