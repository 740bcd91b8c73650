"""Mixers along time: each formula against a direct loop, the energy, streaming, learning."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from small_mixers import (
    D,
    M,
    P,
    build,
    dense,
    every_length,
    gelu_integral,
    randn,
    row,
    same,
    seen,
)
from torch import Tensor

from decision_seq.backbones import Layout
from decision_seq.backbones.imixer import IMixerConfig
from decision_seq.backbones.mixer import (
    ChannelMixer,
    MixerConfig,
    Mixing,
    ParallelBlock,
    SerialBlock,
    TokenMixer,
)
from decision_seq.errors import UserError

every_mixing = pytest.mark.parametrize("mixing", ["vanilla", "symmetric", "asymmetric"])
every_block = pytest.mark.parametrize("block", ["serial", "parallel"])
every_position = pytest.mark.parametrize("positions", ["absolute", "toeplitz"])


def config(**fields: object) -> MixerConfig:
    defaults = {"width": D, "layers": 2, "dropout": 0.0, "hidden": M}
    return MixerConfig(**defaults | fields)  # type: ignore[arg-type]


def token_mixer(**fields: object) -> TokenMixer:
    block = build(config(**fields)).blocks[0]
    assert isinstance(block, SerialBlock)
    return block.mixer


# ---- formulas ------------------------------------------------------------------------------


@every_mixing
@every_position
@every_length
def test_token_mixing_equals_a_loop_over_positions(
    mixing: str, positions: str, length: int
) -> None:
    mixer, x = token_mixer(mixing=mixing, positions=positions), randn(2, length, D)
    W = mixer.W.weight[..., 0]  # [rows, P, m]
    H = torch.zeros(2, length, M, D, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for t in range(length):
        for s in seen(t):
            H[:, t] += row(W, t)[t - s][:, None] * x[:, None, s]
        if mixing != "vanilla":
            expected[:, t] += torch.einsum("m,bmd->bd", row(W, t)[0], F.gelu(H[:, t]))
        if mixing != "symmetric":
            assert mixer.V is not None
            for u in seen(t):
                back = row(mixer.V.weight[:, :, 0], t)[t - u]  # [m]
                expected[:, t] += torch.einsum("m,bmd->bd", back, F.gelu(H[:, u]))
    same(mixer(x), expected)
    same(mixer.step(x, mixer.init_state(2, x.device, x.dtype))[0], expected)


@every_mixing
def test_channel_mixing_is_its_formula(mixing: str) -> None:
    mixer, g = ChannelMixer(config(mixing=mixing)).double(), randn(2, 3, D)
    phi = F.gelu(g @ mixer.W.T)
    expected = phi @ mixer.W if mixing != "vanilla" else torch.zeros_like(g)
    if mixing != "symmetric":
        assert mixer.V is not None
        expected = expected + phi @ mixer.V.T
    same(mixer(g), expected)


@every_mixing
def test_blocks_are_their_formulas(mixing: Mixing) -> None:
    x = randn(2, P, D)
    serial = build(config(mixing=mixing)).blocks[0]
    middle = x + serial.mixer(serial.norm_mixer(x))  # type: ignore[operator]
    same(serial(x), middle + serial.mlp(serial.norm_mlp(middle)))  # type: ignore[operator]
    thrice = build(config(mixing=mixing, block="parallel", n_iter=3)).blocks[0]
    assert isinstance(thrice, ParallelBlock)
    y = x
    for _ in range(3):
        y = y + thrice.mixer(thrice.norm_mixer(y)) + thrice.mlp(thrice.norm_mixer(y))
    same(thrice(x), y)


@every_position
@every_block
def test_asymmetric_with_no_v_is_symmetric(block: str, positions: str) -> None:
    asymmetric = build(config(mixing="asymmetric", block=block, positions=positions))
    symmetric = build(config(mixing="symmetric", block=block, positions=positions))
    weights = asymmetric.state_dict()
    for name in weights:
        if "V" in name:
            weights[name].zero_()
    kept = {name: t for name, t in weights.items() if "V" not in name}
    symmetric.load_state_dict(kept)
    x = randn(2, 2 * P, D)
    same(asymmetric(x[:, :P]), symmetric(x[:, :P]))
    same(asymmetric(x), symmetric(x))


@every_mixing
@every_length
def test_toeplitz_is_absolute_with_the_same_weights_in_every_row(mixing: str, length: int) -> None:
    toeplitz = token_mixer(mixing=mixing, positions="toeplitz")
    absolute = token_mixer(mixing=mixing)
    reached = torch.arange(P) <= torch.arange(P)[:, None]  # [row, lag]
    with torch.no_grad():
        for name, parameter in absolute.named_parameters():
            parameter.copy_(toeplitz.get_parameter(name) * reached[:, :, None, None])
    same(toeplitz(randn(2, length, D)), absolute(randn(2, length, D)))


# ---- the energy ----------------------------------------------------------------------------


def energy(block: ParallelBlock, x_t: Tensor, g_t: Tensor, past: Tensor, t: int) -> Tensor:
    """E_t, given the normalised tokens before it [t, D], and g_t free of x_t."""
    weight = row(block.mixer.W.weight[..., 0], t)  # [P, m]
    H = weight[0][:, None] * g_t + sum(weight[t - s][:, None] * past[s] for s in range(t))
    length = math.sqrt(D) * (x_t - x_t.mean()).norm()
    hidden = gelu_integral(H).sum() + gelu_integral(block.mlp.W @ g_t).sum()
    return x_t @ g_t - length - hidden


def test_the_symmetric_parallel_block_descends_the_energy() -> None:
    block = build(config(mixing="symmetric", block="parallel")).blocks[0]
    assert isinstance(block, ParallelBlock)
    block.norm_mixer.eps = 0.0  # the Lagrangian's gradient has none
    x = randn(1, P, D)
    update = block(x) - x
    g = block.norm_mixer(x).detach()[0]
    for t in range(P):
        x_t, g_t = x[0, t].clone(), g[t].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(energy(block, x_t, g_t, g[:t], t), g_t)
        same(-gradient + x_t, update[0, t])
        velocity = update[0, t].detach() - x_t  # with the decay term it does descend

        def along(tau: Tensor, start: Tensor, way: Tensor, t: int) -> Tensor:
            now = start + tau * way
            return energy(block, now, block.norm_mixer(now), g[:t], t)

        tau = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(along(tau, x_t, velocity, t), tau)
        assert slope < -1e-6


# ---- symmetry breaking ---------------------------------------------------------------------


@every_position
@every_block
def test_eta_is_zero_when_symmetric_and_near_one_when_independent(
    block: str, positions: str
) -> None:
    def etas(mixing: str, no_v: bool = False) -> list[float]:
        settings = config(
            mixing=mixing, block=block, positions=positions, hidden=64, width=32, layers=1
        )
        module = build(settings).blocks[0]
        assert isinstance(module, SerialBlock)
        if no_v:
            assert module.mixer.V is not None and module.mlp.V is not None
            torch.nn.init.zeros_(module.mixer.V.weight)
            torch.nn.init.zeros_(module.mlp.V)
        assert module.eta().keys() == {"token", "channel"}
        return [float(v) for v in module.eta().values()]

    assert etas("symmetric") == [0.0, 0.0]
    assert etas("asymmetric", no_v=True) == [0.0, 0.0]
    assert etas("vanilla") == pytest.approx([1.0, 1.0], abs=0.15)
    assert min(etas("asymmetric")) > 1e-3


def test_eta_of_the_token_module_is_that_of_its_matrices() -> None:
    mixer = token_mixer(mixing="asymmetric")
    assert mixer.V is not None
    W1, V = mixer.W.matrix(P), mixer.V.matrix(P)  # [P m, P], [P, P m]
    own = torch.eye(P, dtype=torch.float64).repeat_interleave(M, dim=1)  # hidden units of t
    transposed = W1.T * own
    W2 = V + transposed
    expected = (W2 - transposed).square().sum() / (W2.square().sum() + transposed.square().sum())
    same(mixer.eta(), expected.detach())


def test_the_penalty_is_lambda_times_the_squares_of_v() -> None:
    backbone = build(config(mixing="asymmetric", symmetry_penalty=0.3))
    squares = [p.square().sum() for name, p in backbone.named_parameters() if "V" in name]
    assert len(squares) == 4  # token and channel, two layers
    penalty = backbone.penalty()
    assert isinstance(penalty, Tensor)
    same(penalty, 0.3 * torch.stack(squares).sum())
    penalty.backward()
    for name, parameter in backbone.named_parameters():
        if "V" in name:
            same(parameter.grad, 0.6 * parameter.detach())  # type: ignore[arg-type]
    assert build(config(mixing="asymmetric")).penalty() == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_iter": 2}, "n_iter is 2, which needs block parallel"),
        ({"hidden": 0}, "hidden and n_iter must be at least 1, got 0, 1"),
        ({"symmetry_penalty": -1.0}, "symmetry_penalty is -1.0; it must be at least 0"),
        ({"symmetry_penalty": 1.0}, "needs mixing asymmetric; vanilla has nothing to penalise"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**fields)


# ---- streaming, maps, learning -------------------------------------------------------------

STREAMED = {
    **{
        f"{mixing}-{positions}": config(mixing=mixing, positions=positions)
        for mixing in ("vanilla", "symmetric", "asymmetric")
        for positions in ("absolute", "toeplitz")
    },
    "parallel": config(mixing="asymmetric", block="parallel", n_iter=2),
    "imixer": IMixerConfig(width=D, layers=2, dropout=0.0, hidden=M, n_iter=2),
}


@pytest.mark.parametrize("name", STREAMED)
def test_streaming_with_resets_equals_forward_of_every_episode(name: str) -> None:
    backbone, x = build(STREAMED[name]), randn(3, 3 * P, D)
    begins = torch.zeros(3, 3 * P, dtype=torch.bool)
    begins[0, 4] = begins[1, 7] = begins[1, 9] = True  # lane 2 runs through
    state, outputs = backbone.init_state(3, dtype=torch.float64), []
    for t in range(3 * P):
        state = backbone.reset(state, begins[:, t])
        y, state = backbone.step(x[:, t : t + 1], state)
        outputs.append(y)
    streamed = torch.cat(outputs, dim=1)
    for lane in range(3):
        cuts = [0, *begins[lane].nonzero().flatten().tolist(), 3 * P]
        for first, stop in itertools.pairwise(cuts):
            expected = backbone(x[lane : lane + 1, first:stop])[0]
            same(streamed[lane, first:stop], expected)


def test_the_token_map_of_the_vanilla_mixer_is_its_linearised_product() -> None:
    mixer, x = token_mixer(), randn(2, P, D)
    assert mixer.V is not None
    W, V = dense(mixer.W.weight, P), dense(mixer.V.weight, P)
    squares = torch.zeros(2, P, P, dtype=torch.float64)
    for lane in range(2):
        for channel in range(D):
            H = (W @ x[lane, :, channel]).detach().requires_grad_()
            (slope,) = torch.autograd.grad(F.gelu(H).sum(), H)
            squares[lane] += (V @ torch.diag(slope) @ W).detach() ** 2
    same(mixer.token_map(x)[:, 0], (squares / D).sqrt())


LEARNERS = {
    "vanilla": MixerConfig(),
    "symmetric": MixerConfig(mixing="symmetric"),
    "parallel-toeplitz": MixerConfig(
        mixing="asymmetric", block="parallel", n_iter=2, positions="toeplitz"
    ),
    "imixer": IMixerConfig(),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_it_learns_to_repeat_what_was_three_tokens_ago(name: str) -> None:
    torch.manual_seed(0)
    settings = dataclasses.replace(LEARNERS[name], width=16, layers=2, dropout=0.0)
    backbone = settings.build(Layout(context_length=8)).train()
    read, head = torch.nn.Linear(4, 16), torch.nn.Linear(16, 4)
    parameters = [*backbone.parameters(), *read.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for _ in range(60):
        x = torch.randn(32, 8, 4)
        error = (head(backbone(read(x)))[:, 3:] - x[:, :-3]).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        losses.append(error.item())
    assert losses[0] < 3  # the variance of the target is 1
    assert sum(losses[-5:]) / 5 < 0.5
