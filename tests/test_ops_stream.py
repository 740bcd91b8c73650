"""Blocks continued by one call to C against the same blocks in float64, operation by operation."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from ops_inputs import assert_close, needs_c
from torch import Tensor

from decision_seq import ops
from decision_seq.backbones import BackboneConfig, Layout
from decision_seq.backbones.base import Block, LayerState, zero_lanes
from decision_seq.backbones.none import NoneConfig, Pointwise
from decision_seq.ops.c import build as native

MIXERS = {
    "mamba": [dict(d_state=16), dict(d_state=5, d_conv=1, expand=1), dict(d_state=20, d_conv=3)],
    "attention": [dict(heads=1), dict(heads=2), dict(heads=4)],
    "conv": [dict(taps=1), dict(taps=6)],
    "none": [{}],
}


def state_in_the_middle(block: Block, lanes: int, width: int) -> LayerState:
    """After tokens, the reset of a lane, and more tokens."""
    state = block.init_state(lanes, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        _, state = block.step(torch.randn(lanes, 5, width), state)
        state = {name: zero_lanes(t, torch.arange(lanes) == 1) for name, t in state.items()}
        _, state = block.step(torch.randn(lanes, 2, width), state)
    return state


@needs_c
@pytest.mark.parametrize(
    ("lanes", "tokens", "width"),
    [(1, 3, 32), (3, 2, 20), (5, 4, 48), (2, 7, 8), (37, 3, 24), (2, 40, 20), (1, 1, 4)],
)
@pytest.mark.parametrize(
    ("kind", "fields"), [(kind, f) for kind, all_of in MIXERS.items() for f in all_of], ids=str
)
def test_a_block_in_one_call_is_the_block(
    lanes: int, tokens: int, width: int, kind: str, fields: dict
) -> None:
    """Against the block in float64, from a state in the middle of a stream; the state stays."""
    torch.manual_seed(width)
    config = BackboneConfig.registry[kind](width=width, layers=1, **fields)
    block = config.make_block(Layout(4, 3), 0).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    x = torch.randn(lanes, tokens, width) * 2
    state = state_in_the_middle(block, lanes, width)
    before = {name: t.clone() for name, t in state.items()}
    doubled = {n: t.double() if t.is_floating_point() else t for n, t in state.items()}
    expected, expected_state = copy.deepcopy(block).double().step(x.double(), doubled)
    with torch.no_grad():
        assert block.in_one_call.step(x, [state], slice(None)) is not None
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(block.step(x, state))
        torch.set_num_threads(1)
        last, _ = block.step(x, state, slice(-1, None))
        first, _ = block.step(x, state, slice(0, 1))  # no suffix: as any other block
    (y, new_state), *others = results
    assert all(torch.equal(y, again) for again, _ in others)
    assert_close(last, expected[:, -1:], 3e-6)
    assert_close(first, expected[:, :1], 3e-6)
    assert_close(y, expected, 3e-6)
    assert new_state.keys() == expected_state.keys()
    for name, t in new_state.items():
        assert t.shape == expected_state[name].shape
        assert_close(t, expected_state[name].double(), 3e-6, name)
        assert torch.equal(state[name], before[name])


@needs_c
def test_c_knows_a_mixer_only_by_its_own_class() -> None:
    """One that is derived from it may do otherwise, and so may a state of another dtype."""

    class Doubled(Pointwise):
        def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
            y, state = super().step(x, state)
            return 2 * y, state

    config = BackboneConfig.registry["none"](width=8, layers=1)
    x, blocks = torch.randn(2, 3, 8), []
    for mixer in (Pointwise, Doubled):
        torch.manual_seed(0)
        blocks.append(Block(mixer(config), config).eval())
    with torch.no_grad():
        served = [block.in_one_call.step(x, [{}], slice(None)) is not None for block in blocks]
        assert served == [True, False]
        assert not torch.allclose(blocks[0].step(x, {})[0], blocks[1].step(x, {})[0])
    attention = BackboneConfig.registry["attention"](width=8).make_block(Layout(4, 3), 0).eval()
    state = attention.init_state(2, torch.device("cpu"), torch.bfloat16)
    with torch.no_grad():
        assert attention.in_one_call.step(x, [state], slice(None)) is None


@needs_c
def test_softplus_and_gelu_of_the_block_kernel() -> None:
    """dt is small where softplus is: its relative error counts. GELU's tails must not drift."""
    values = torch.cat([torch.linspace(-20, 20, 40_001), torch.tensor([-60.0, 60.0])])
    for name, exact in (("softplus", F.softplus), ("gelu", F.gelu)):
        y = values.clone()
        getattr(native.library(), f"{name}_values")(y.data_ptr(), len(y))
        expected = exact(values.double())
        scale = expected.abs() if name == "softplus" else values.abs().double() + 1e-30
        assert ((y - expected).abs() / scale).max() < 1e-6


def test_where_the_block_kernel_stands_back() -> None:
    x = torch.zeros(1, 3, 16)
    assert not ops.streams(x, 1, 3)  # gradients are wanted
    with torch.no_grad():
        assert not ops.streams(x.double(), 1, 3)
        assert not ops.streams(x, 1, 300)
        with torch.autocast("cpu", torch.bfloat16):
            assert not ops.streams(x, 1, 3)


# ---------------------------------------------------------------- what is around a block


def lora(block: Block) -> None:
    block.mlp[2] = torch.nn.Sequential(block.mlp[2], torch.nn.Linear(16, 16))


AROUND = {
    "hook": lambda block: block.mlp.register_forward_hook(lambda m, args, y: 2 * y),
    "pre-hook": lambda block: block.mixer.register_forward_pre_hook(lambda m, args: (2 * args[0],)),
    "another layer": lora,
    "another mixer": lambda block: setattr(block, "mixer", Pointwise(NoneConfig(width=16))),
    "another norm": lambda block: setattr(block, "norm_mlp", torch.nn.LayerNorm(16, eps=0.5)),
    "another eps": lambda block: setattr(block.norm_mlp, "eps", 0.5),
    "weight norm": lambda block: torch.nn.utils.parametrizations.weight_norm(block.mlp[0]),
    "a hidden width": lambda block: narrow(block.mlp),
    "another dtype": lambda block: block.double().float().mlp[0].bfloat16().float(),
    "dropout": lambda block: block.dropout.train(),
}


def narrow(mlp: torch.nn.Sequential) -> None:
    mlp[0].weight.data, mlp[0].bias.data = mlp[0].weight.data[:32], mlp[0].bias.data[:32]
    mlp[2].weight.data = mlp[2].weight.data[:, :32]


@needs_c
@pytest.mark.parametrize("what", AROUND)
def test_what_is_put_into_or_around_a_block_counts(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = BackboneConfig.registry["none"](width=16, layers=2, dropout=0.9)
    backbone, x = config.build(Layout(4, 3)).eval(), torch.randn(2, 3, 16)
    with torch.no_grad():
        before = backbone(x)
        AROUND[what](backbone.blocks[1])
        torch.manual_seed(1)
        y = backbone(x)
        monkeypatch.setenv("DECISION_SEQ_SCAN", "torch")
        torch.manual_seed(1)
        torch.testing.assert_close(y, backbone(x))
    assert what == "another dtype" or not torch.allclose(y, before)


@needs_c
@pytest.mark.parametrize("kind", ["attention", "conv", "mamba"])
def test_a_state_of_another_form_is_left_to_pytorch(kind: str) -> None:
    """C would read beyond it."""
    torch.manual_seed(0)
    config = BackboneConfig.registry[kind](width=16, layers=1)
    block, x = config.make_block(Layout(4, 3), 0).eval(), torch.randn(2, 3, 16)
    state = state_in_the_middle(block, 2, 16)
    with torch.no_grad():
        assert block.in_one_call.step(x, [state], slice(None)) is not None
        for name, tensor in state.items():
            for other in (tensor[:1], tensor.to("meta"), tensor.to(torch.float16)):
                bad = state | {name: other}
                assert block.in_one_call.step(x, [bad], slice(None)) is None
            if tensor.ndim > 1:
                bad = state | {name: tensor[:, 1:]}
                assert block.in_one_call.step(x, [bad], slice(None)) is None or name == "valid"
        for name, tensor in state.items():
            with pytest.raises((RuntimeError, ValueError)):  # nor does anything else read that
                block.step(x, state | {name: tensor.to("meta")})
        strided = {n: t.movedim(0, -1).contiguous().movedim(-1, 0) for n, t in state.items()}
        expected, actual = (block.step(x, s) for s in (state, strided))
    assert torch.equal(actual[0], expected[0])
    for name, tensor in expected[1].items():
        assert torch.equal(actual[1][name], tensor)


@needs_c
@pytest.mark.parametrize("kind", sorted(MIXERS))
def test_a_number_that_is_none_shows(kind: str) -> None:
    """In the tokens, in the state, or for being too large."""
    torch.manual_seed(0)
    block = BackboneConfig.registry[kind](width=16, layers=1).make_block(Layout(4, 3), 0).eval()
    state = state_in_the_middle(block, 3, 16)
    for number in (float("nan"), float("inf"), 1e30):
        x = torch.randn(3, 2, 16)
        x[1, 0, 5] = number
        with torch.no_grad():
            y, _ = block.step(x, state)
        assert y[1].isnan().any() and y[[0, 2]].isfinite().all(), number
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.numel():
            with torch.no_grad():
                bad = state | {name: tensor.index_fill(0, torch.tensor([2]), float("nan"))}
                y, _ = block.step(torch.randn(3, 2, 16), bad)
            assert y[2].isnan().any() and y[:2].isfinite().all(), name


@needs_c
def test_attention_to_scores_of_any_size() -> None:
    config = BackboneConfig.registry["attention"](width=16, layers=1)
    block = config.make_block(Layout(4, 3), 0).eval()
    with torch.no_grad():
        block.mixer.qkv.weight.mul_(1e16)
        x, state = torch.randn(2, 3, 16), block.init_state(2, torch.device("cpu"), torch.float32)
        y, _ = block.step(x, state)
        doubled = {n: t.double() if t.is_floating_point() else t for n, t in state.items()}
        expected, _ = copy.deepcopy(block).double().step(x.double(), doubled)
    assert_close(y, expected, 1e-4)


@needs_c
@pytest.mark.filterwarnings("ignore")  # of PyTorch's, about tracing and vmap
def test_tracing_and_shapes_alone_see_every_operation() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    backbone = BackboneConfig.registry["attention"](width=16, layers=1).build(Layout(4, 3)).eval()
    x = torch.randn(2, 3, 16)
    with torch.no_grad():
        expected = backbone(x)
        traced = torch.jit.trace(backbone, (torch.zeros_like(x),), check_trace=False)
        torch.testing.assert_close(traced(x), expected)
        rows = torch.func.vmap(lambda row: backbone(row[None])[0])(x)
        torch.testing.assert_close(rows, expected)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert backbone(mode.from_tensor(x)).shape == x.shape
