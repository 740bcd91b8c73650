"""The backbone contract, for every registered backbone; and reference implementations."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.backbones import Backbone, BackboneConfig, Layout
from decision_seq.backbones.attention import Attention, AttentionConfig
from decision_seq.backbones.mamba import STARTS, Mamba, MambaConfig

WIDTH, WINDOW = 24, 9  # WINDOW: 3 steps of 3 tokens
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {  # beside the defaults of every kind
    "attention-rotary": ("attention", {"positions": "rotary", "heads": 3}),
    "imixer-plain": ("imixer", {"n_iter": 0}),
    "mamba-dense": ("mamba", {"dense": 6, "expand": 1}),
    "hybrid-of-windows": ("hybrid", {"mixers": ("mixer", "imixer", "conv", "lstm"), "layers": 4}),
}
for number, (mixing, block) in enumerate(
    itertools.product(("vanilla", "symmetric", "asymmetric"), ("serial", "parallel"))
):  # every two of the three together once
    positions = ("absolute", "toeplitz")[(number + number // 2) % 2]
    VARIANTS[f"mixer-{mixing}-{block}-{positions}"] = (
        "mixer",
        {
            "mixing": mixing,
            "block": block,
            "positions": positions,
            "n_iter": 2 if block == "parallel" else 1,
        },
    )
KINDS = sorted([*BackboneConfig.registry, *VARIANTS])
every_backbone = pytest.mark.parametrize("kind", KINDS)
every_length = pytest.mark.parametrize("length", [1, 7, 60])  # 7: within a window, 60: beyond


def make(kind: str, **fields: object) -> Backbone:
    """A small backbone of `kind` with visible mixing: the default scale is near zero."""
    torch.manual_seed(0)
    kind, variant = VARIANTS.get(kind, (kind, {}))
    fields = {"width": WIDTH, "layers": 2, "dropout": 0.0} | variant | fields
    config = BackboneConfig.registry[kind](**fields)  # type: ignore[arg-type]
    backbone = config.build(Layout(context_length=3, tokens_per_step=3)).eval()
    with torch.no_grad():
        for block in backbone.blocks:
            for name, parameter in block.named_parameters():
                if name.startswith("mixer") and parameter.ndim == 2 and "weight" in name:
                    parameter.normal_(std=parameter.shape[1] ** -0.5)
    return backbone


def tokens(batch: int, length: int) -> Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(1))


@every_backbone
@every_length
def test_no_output_depends_on_a_later_token(kind: str, length: int) -> None:
    backbone, x = make(kind), tokens(2, length)
    y = backbone(x)
    assert y.shape == x.shape
    for position in {0, length // 2, length - 1}:
        changed = x.clone()
        changed[:, position:] += torch.randn_like(changed[:, position:])
        torch.testing.assert_close(
            backbone(changed)[:, :position], y[:, :position], rtol=0, atol=1e-6
        )


@every_backbone
@every_length
def test_reading_some_tokens_equals_picking_them(kind: str, length: int) -> None:
    backbone, x, read = make(kind), tokens(2, length), slice(length % 2, None, 3)
    torch.testing.assert_close(backbone(x, read), backbone(x)[:, read], rtol=0, atol=1e-6)


@every_backbone
@every_length
def test_without_gradients_the_outputs_are_the_same(kind: str, length: int) -> None:
    backbone, x = make(kind), tokens(2, length)
    expected = backbone(x)
    with torch.no_grad():
        for read in (slice(None), slice(-1, None), slice(length % 2, None, 3)):
            torch.testing.assert_close(backbone(x, read), expected[:, read], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "pointwise"])
def test_the_past_does_reach_the_present(kind: str) -> None:
    backbone, x = make(kind), tokens(1, 6)
    changed = x.clone()
    changed[:, 2] = torch.randn(WIDTH)  # a constant shift would vanish in the LayerNorm
    assert (backbone(changed)[:, 4] - backbone(x)[:, 4]).abs().max() > 1e-3


@every_backbone
@pytest.mark.parametrize(
    ("length", "chunks"), [(1, (1,)), (2, (2,)), (20, (1,)), (60, (3,)), (60, (2, 1, 4))]
)
def test_step_equals_forward(kind: str, length: int, chunks: tuple[int, ...]) -> None:
    backbone, x = make(kind), tokens(3, length)
    state = backbone.init_state(3)
    outputs, position, turn = [], 0, 0
    with torch.no_grad():
        while position < length:
            n = chunks[turn % len(chunks)]
            y, state = backbone.step(x[:, position : position + n], state)
            outputs.append(y)
            position, turn = position + n, turn + 1
    torch.testing.assert_close(torch.cat(outputs, dim=1), backbone(x), rtol=1e-4, atol=1e-5)


@every_backbone
def test_step_leaves_the_given_state_alone(kind: str) -> None:
    backbone = make(kind)
    with torch.no_grad():
        _, state = backbone.step(tokens(2, 4), backbone.init_state(2))
        before = [{name: t.clone() for name, t in layer.items()} for layer in state]
        backbone.step(tokens(2, 3), state)
    for layer, copy in zip(state, before, strict=True):
        for name in layer:
            assert torch.equal(layer[name], copy[name])


@every_backbone
@every_length
def test_reset_leaves_no_trace(kind: str, length: int) -> None:
    backbone, x = make(kind), tokens(3, length + 7)
    lanes = torch.tensor([False, True, False])
    with torch.no_grad():
        _, used = backbone.step(x[:, :length], backbone.init_state(3))
        y, _ = backbone.step(x[:, length:], backbone.reset(used, lanes))
        kept, _ = backbone.step(x[:, length:], used)
        fresh, _ = backbone.step(x[:, length:], backbone.init_state(3))
    torch.testing.assert_close(y[[0, 2]], kept[[0, 2]], rtol=0, atol=1e-6)
    torch.testing.assert_close(y[1], fresh[1], rtol=0, atol=1e-6)


@every_backbone
@every_length
def test_rows_do_not_interact(kind: str, length: int) -> None:
    backbone, x = make(kind), tokens(4, length)
    together = backbone(x)
    for row in range(4):
        torch.testing.assert_close(
            backbone(x[row : row + 1])[0], together[row], rtol=1e-4, atol=1e-5
        )


@every_backbone
@every_length
def test_every_parameter_gets_a_gradient(kind: str, length: int) -> None:
    backbone = make(kind)
    backbone(tokens(2, length)).square().sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if length >= 7:  # a token or two need no decay, and not every kind of token is there
            assert parameter.grad.abs().max() > 0, name


@every_backbone
@every_length
def test_bfloat16_autocast_stays_close(kind: str, length: int) -> None:
    backbone, x = make(kind), tokens(2, length)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = backbone(x)
        past, state = backbone.step(x[:, : length // 2 + 1], backbone.init_state(2))
        rest = [past]
        for position in range(length // 2 + 1, length):
            y, state = backbone.step(x[:, position : position + 1], state)
            rest.append(y)
        changed = x.clone()
        changed[:, length // 2 :] += 1
        before = backbone(changed)[:, : length // 2]
    torch.testing.assert_close(low.float(), backbone(x), rtol=0.1, atol=0.1)
    torch.testing.assert_close(torch.cat(rest, dim=1).float(), low.float(), rtol=0.1, atol=0.1)
    torch.testing.assert_close(before, low[:, : length // 2], rtol=0.02, atol=0.02)


# ---- attention against a plain one ---------------------------------------------------------


def turned(x: Tensor, angle: float) -> Tensor:
    """x [B, 8] as four complex numbers, turned by `angle` over 1, 10, 100 and 1,000."""
    number = torch.complex(*x.double().chunk(2, dim=-1))  # [B, 4]
    number = number * torch.exp(1j * angle / 10.0 ** torch.arange(4.0, dtype=torch.float64))
    return torch.cat([number.real, number.imag], dim=-1).float()


@pytest.mark.parametrize("positions", ["none", "rotary"])
@pytest.mark.parametrize("length", [5, 20])
def test_attention_equals_a_loop_over_queries(length: int, positions: Any) -> None:
    torch.manual_seed(0)
    config = AttentionConfig(width=WIDTH, heads=3, dropout=0.0, positions=positions)
    mixer, x = Attention(config, window=WINDOW), tokens(2, length)
    nn.init.normal_(mixer.qkv.weight, std=0.3)
    q, k, v = (t.unflatten(-1, (3, 8)) for t in mixer.qkv(x).split(WIDTH, dim=-1))
    out = torch.zeros_like(q)
    for t in range(length):
        first = max(0, t - WINDOW + 1)
        for head in range(3):
            seen = k[:, first : t + 1, head]  # [B, s, d]
            if positions == "rotary":  # only how far back a key lies counts
                turns = [turned(seen[:, s - first], s - t) for s in range(first, t + 1)]
                seen = torch.stack(turns, dim=1)
            scores = seen @ q[:, t, head, :, None] / math.sqrt(8)
            out[:, t, head] = (scores.softmax(1) * v[:, first : t + 1, head]).sum(1)
    torch.testing.assert_close(mixer(x), mixer.out(out.flatten(2)), rtol=1e-5, atol=1e-6)


# ---- Mamba against transformers, and its initialisation ------------------------------------


def test_mamba_equals_transformers() -> None:
    from transformers import MambaConfig as ReferenceConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.manual_seed(0)
    ours = Mamba(MambaConfig(width=64))
    reference = MambaMixer(ReferenceConfig(hidden_size=64, state_size=16, use_mambapy=False), 0)
    names = set(ours.state_dict())
    assert names == set(reference.state_dict())  # the same names, so weights move both ways
    nn.init.normal_(ours.x_proj.weight, std=0.2)
    reference.load_state_dict(ours.state_dict())
    x = torch.randn(2, 33, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), reference(x), rtol=1e-5, atol=1e-5)


def dt(mixer: Mamba) -> Tensor:
    return F.softplus(mixer.dt_proj.bias)


def test_dt_starts_in_range_and_published_loses_it() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        for init, (least, most, scale) in STARTS.items():
            mixer = Mamba(MambaConfig(init=init))  # type: ignore[arg-type]
            values = dt(mixer)
            assert values.min() >= least * 0.999 and values.max() <= most * 1.001
            assert values.max() / values.min() > 20  # spread over the range
            torch.testing.assert_close(mixer.A_log[0].exp(), scale * torch.arange(1.0, 17))
    published = dt(Mamba(MambaConfig(init="published")))
    torch.testing.assert_close(published, torch.full_like(published, math.log(2)))


def test_what_a_long_state_took_in_is_there_after_a_thousand_tokens() -> None:
    """And all but gone from one that starts as mamba_ssm's: what is left of a first token that
    differs, in the output at the last one."""
    left = {}
    for init in ("mamba", "long"):
        torch.manual_seed(0)
        mixer = Mamba(MambaConfig(init=init))  # type: ignore[arg-type]
        x = torch.randn(1, 1000, 128)
        other = x.clone()
        other[:, 0] *= -1
        with torch.no_grad():
            left[init] = float((mixer(x) - mixer(other))[:, -1].norm() / mixer(x)[:, -1].norm())
    assert left["long"] > 1e-3 > 1e-6 > left["mamba"]


def test_a_and_d_start_as_in_mamba_ssm() -> None:
    mixer = Mamba(MambaConfig(width=32, d_state=4))
    torch.testing.assert_close(mixer.A_log.exp(), torch.tensor([1.0, 2, 3, 4]).repeat(64, 1))
    assert torch.equal(mixer.D, torch.ones(64))
    assert {n: tuple(p.shape) for n, p in mixer.named_parameters()} == {
        "A_log": (64, 4),
        "D": (64,),
        "in_proj.weight": (128, 32),
        "conv1d.weight": (64, 1, 4),
        "conv1d.bias": (64,),
        "x_proj.weight": (2 + 8, 64),
        "dt_proj.weight": (64, 2),
        "dt_proj.bias": (64,),
        "out_proj.weight": (32, 64),
    }


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", sorted(BackboneConfig.registry))
def test_reading_some_tokens_gives_their_outputs_and_gradients(kind: str, training: bool) -> None:
    """The last block leaves out work for tokens that nobody reads, and nothing else."""
    torch.manual_seed(0)
    backbone = BackboneConfig.registry[kind](width=16, layers=2, dropout=0.0).build(Layout(6, 3))
    backbone.train(training)
    x, read = torch.randn(3, 12, 16, requires_grad=True), slice(1, None, 3)
    results = []
    for y in (backbone(x)[:, read], backbone(x, read)):
        weights = [p for p in backbone.parameters() if p.requires_grad]
        grads = torch.autograd.grad(y.sin().sum(), [x, *weights], allow_unused=True)
        results.append([y, *(g for g in grads if g is not None)])
    for whole, part in zip(*results, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5)
    state = backbone.eval().init_state(3)
    with torch.no_grad():
        every, _ = backbone.step(x, state)
        last, _ = backbone.step(x, state, slice(-1, None))
    torch.testing.assert_close(last, every[:, -1:], rtol=1e-4, atol=1e-5)
