"""Backbones against something that is known to be right: a loop, torch's own, transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decision_seq.backbones import Backbone, BackboneConfig, Layout
from decision_seq.backbones.attention import Attention, AttentionConfig
from decision_seq.backbones.conv import ConvConfig, KindConv
from decision_seq.backbones.hybrid import HybridConfig
from decision_seq.backbones.lstm import LSTM, LSTMConfig
from decision_seq.backbones.mamba import Mamba, MambaConfig, hidden_attention
from decision_seq.backbones.mamba2 import DT_FLOOR, DT_MAX, Mamba2, Mamba2Config, ssd
from decision_seq.errors import UserError
from decision_seq.ops import causal_conv_silu
from decision_seq.ops.layers import causal_filter
from decision_seq.ops.linear_attention import CHUNK, influence

WIDTH = 24
LAYOUT = Layout(context_length=3, tokens_per_step=3)


def tokens(batch: int, length: int, width: int = WIDTH) -> Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(1))


# ---- conv ----------------------------------------------------------------------------------


def conv(taps: int = 6, tokens_per_step: int = 3) -> KindConv:
    torch.manual_seed(0)
    return KindConv(ConvConfig(width=WIDTH, kernel_size=taps), tokens_per_step)


@pytest.mark.parametrize("taps", [1, 2, 6])
@pytest.mark.parametrize("tokens_per_step", [1, 2, 3])
def test_conv_equals_a_loop(taps: int, tokens_per_step: int) -> None:
    mixer, x = conv(taps, tokens_per_step), tokens(2, 17)
    expected = torch.zeros_like(x)
    for position in range(17):
        kind = position % tokens_per_step  # of the token at the output
        expected[:, position] = mixer.bias[kind]
        for back in range(min(taps, position + 1)):
            expected[:, position] += mixer.weight[kind, back] * x[:, position - back]
    torch.testing.assert_close(mixer(x), expected)


@pytest.mark.parametrize("shape", [(1, 4, 3), (7, 4, 3), (2, 7, 4, 3)])
def test_conv_gradients_equal_differences(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    seen = torch.randn(2, 7 + 3, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(*shape[:-2], 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(causal_filter, (seen, weight, bias))


def test_conv_equals_a_strided_convolution_of_each_kind() -> None:
    """Three depthwise nn.Conv1d over everything before, each read where its kind of token is."""
    mixer, x = conv(), tokens(2, 17)
    padded = nn.functional.pad(x.transpose(1, 2), (5, 0))
    for kind in range(3):
        layer = nn.Conv1d(WIDTH, WIDTH, kernel_size=6, groups=WIDTH)
        with torch.no_grad():  # its taps run forward in time
            layer.weight.copy_(mixer.weight[kind].flip(0).t().unsqueeze(1))
            layer.bias.copy_(mixer.bias[kind])  # type: ignore[union-attr]
        torch.testing.assert_close(mixer(x)[:, kind::3], layer(padded).transpose(1, 2)[:, kind::3])


def test_conv_lanes_that_began_at_different_times_keep_their_kinds() -> None:
    """Lane 1 is reset after four tokens, so that its next one is a return, lane 0's a state."""
    torch.manual_seed(0)
    backbone = ConvConfig(width=WIDTH, dropout=0.0).build(LAYOUT).eval()
    x = tokens(2, 11)
    with torch.no_grad():
        _, state = backbone.step(x[:, :4], backbone.init_state(2))
        state = backbone.reset(state, torch.tensor([False, True]))
        outputs = []
        for position in range(4, 11):
            y, state = backbone.step(x[:, position : position + 1], state)
            outputs.append(y)
        y = torch.cat(outputs, dim=1)
        torch.testing.assert_close(y[0], backbone(x)[0, 4:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(y[1], backbone(x[:, 4:])[1], rtol=1e-4, atol=1e-5)


def test_conv_token_map_is_what_a_token_takes_from_another() -> None:
    mixer, x = conv(), tokens(2, 17)
    position = 13
    row = x[:1].requires_grad_()
    gradient = torch.autograd.grad(mixer(row)[0, position].sum(), row)[0]
    per_channel = gradient[0]  # [L, D]: a channel sees no other
    token_map = mixer.token_map(x)
    assert token_map.shape == (2, 1, 17, 17)
    torch.testing.assert_close(token_map[1, 0, position], per_channel.abs().mean(-1))


# ---- lstm ----------------------------------------------------------------------------------


def test_lstm_gates_are_those_of_the_equations() -> None:
    torch.manual_seed(0)
    mixer, x = LSTM(LSTMConfig(width=WIDTH)), tokens(2, 9)
    get = mixer.lstm.get_parameter
    hidden = cell = torch.zeros(2, WIDTH)
    for position in range(9):
        gates = x[:, position] @ get("weight_ih_l0").t() + get("bias_ih_l0")
        gates = gates + hidden @ get("weight_hh_l0").t() + get("bias_hh_l0")
        i, f, g, o = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        torch.testing.assert_close(mixer(x)[:, position], hidden, rtol=1e-4, atol=1e-6)


def test_lstm_leaves_cudnn_out_where_it_could_not_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's backward pass refuses in eval mode: `inspect` and a fault's cause need it there."""
    mixer, seen, run = LSTM(LSTMConfig(width=WIDTH)), [], torch.lstm

    def watched(*inputs: Any) -> Any:
        seen.append(torch.backends.cudnn.enabled)
        return run(*inputs)

    monkeypatch.setattr(torch, "lstm", watched)
    before = torch.backends.cudnn.enabled
    mixer(tokens(1, 2))
    mixer.eval()(tokens(1, 2)).sum().backward()
    with torch.no_grad():
        mixer(tokens(1, 2))
    assert seen == [before, False, before] and torch.backends.cudnn.enabled == before


def test_lstm_starts_by_remembering() -> None:
    mixer = LSTM(LSTMConfig(width=WIDTH))
    bias = mixer.lstm.get_parameter("bias_ih_l0") + mixer.lstm.get_parameter("bias_hh_l0")
    forget = bias[WIDTH : 2 * WIDTH]
    assert torch.equal(forget, torch.ones(WIDTH)) and bias[:WIDTH].abs().max() < 1


# ---- hybrid --------------------------------------------------------------------------------


def alone(kind: str, layers: int) -> Backbone:
    config = BackboneConfig.registry[kind](width=WIDTH, layers=layers, dropout=0.0)
    return config.build(LAYOUT).eval()


def test_hybrid_is_the_layers_it_names() -> None:
    names = ("conv", "mamba", "attention")
    torch.manual_seed(0)
    hybrid = HybridConfig(width=WIDTH, dropout=0.0, mixers=names).build(LAYOUT).eval()
    x = tokens(2, 20)
    expected = x
    for layer, name in enumerate(names):
        separate = alone(name, layers=3)
        separate.blocks[layer].load_state_dict(hybrid.blocks[layer].state_dict())
        expected = separate.blocks[layer](expected)
    torch.testing.assert_close(hybrid(x), hybrid.norm(expected))


@pytest.mark.parametrize(
    ("layers", "kinds"),
    [
        (1, ["Attention"]),
        (2, ["Mamba", "Attention"]),
        (3, ["Mamba", "Mamba", "Attention"]),
        (4, ["Attention", "Mamba", "Mamba", "Attention"]),
    ],
)
def test_hybrid_counts_its_names_from_the_last_layer(layers: int, kinds: list[str]) -> None:
    hybrid = HybridConfig(width=WIDTH, layers=layers).build(LAYOUT)
    assert [type(block.mixer).__name__ for block in hybrid.blocks] == kinds


def test_hybrid_names_what_it_cannot_mix() -> None:
    with pytest.raises(UserError, match=r"mixers names 'mambo'; choose from attention, conv"):
        HybridConfig(mixers=("mamba", "mambo"))
    with pytest.raises(UserError, match="'hybrid'"):
        HybridConfig(mixers=("hybrid",))
    with pytest.raises(UserError, match="mixers is empty"):
        HybridConfig(mixers=())


# ---- mamba2 --------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [33, 2 * CHUNK + 5])
def test_mamba2_equals_transformers_in_outputs_and_gradients(length: int) -> None:
    from transformers import Mamba2Config as ReferenceConfig
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    torch.manual_seed(0)
    ours = Mamba2(Mamba2Config(width=32, d_state=16))
    config = ReferenceConfig(
        hidden_size=32, num_heads=4, head_dim=16, state_size=16, n_groups=1, chunk_size=32
    )
    reference = Mamba2Mixer(config, 0)
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in reference.state_dict().items()}
    with torch.no_grad():  # away from the start, where D and the norm's weight are all ones
        for parameter in (ours.D, ours.norm.weight):
            parameter.uniform_(0.5, 1.5)
        ours.dt_bias.uniform_(-4, 0)
    reference.load_state_dict(ours.state_dict())
    x, weight = tokens(2, length, 32), torch.randn(2, length, 32)
    results = []
    for mixer in (ours, reference):
        inputs = x.clone().requires_grad_()
        y = mixer(inputs)
        (y * weight).sum().backward()
        gradients = {name: p.grad for name, p in mixer.named_parameters()}
        results.append({"y": y.detach(), "x": inputs.grad, **gradients})
    for name, value in results[1].items():
        scale = value.abs().max()
        torch.testing.assert_close(results[0][name] / scale, value / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [1, 5, CHUNK, CHUNK + 1, 3 * CHUNK - 7])
def test_ssd_equals_its_recurrence(length: int) -> None:
    torch.manual_seed(0)
    u = torch.randn(2, length, 3, 4, dtype=torch.float64)
    dt = torch.rand(2, length, 3, dtype=torch.float64)
    A = -torch.rand(3, dtype=torch.float64)
    B, C = torch.randn(2, 2, length, 5, dtype=torch.float64)
    h = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    y, state = ssd(u, dt, A, B, C, h)
    for t in range(length):
        decay = (dt[:, t] * A).exp()[..., None, None]
        h = decay * h + torch.einsum("bh,bhp,bn->bhpn", dt[:, t], u[:, t], B[:, t])
        torch.testing.assert_close(y[:, t], torch.einsum("bhpn,bn->bhp", h, C[:, t]))
    torch.testing.assert_close(state, h)


def test_ssd_stays_finite_where_the_state_forgets_at_once() -> None:
    """Differences of the running sum reach -1e4 here; above the diagonal their exp overflows."""
    u = torch.randn(1, 60, 2, 4).requires_grad_()
    dt = torch.full((1, 60, 2), 10.0).requires_grad_()
    B, C = torch.randn(2, 1, 60, 5)
    y, _ = ssd(u, dt, torch.tensor([-16.0, -1.0]), B, C, None)
    y.sum().backward()
    for tensor in (y, u.grad, dt.grad):
        assert tensor is not None and tensor.isfinite().all()


def test_mamba2_starts_as_mamba_ssm_does() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        mixer = Mamba2(Mamba2Config(heads=64))
        dt = nn.functional.softplus(mixer.dt_bias)
        assert dt.min() >= DT_FLOOR and dt.max() <= DT_MAX * 1.001 and dt.max() / dt.min() > 10
        assert mixer.A_log.exp().min() >= 1 and mixer.A_log.exp().max() <= 16
    mixer = Mamba2(Mamba2Config(width=128))
    assert {n: tuple(p.shape) for n, p in mixer.named_parameters()} == {
        "dt_bias": (4,),
        "A_log": (4,),
        "D": (4,),
        "in_proj.weight": (2 * 256 + 2 * 64 + 4, 128),
        "conv1d.weight": (256 + 2 * 64, 1, 4),
        "conv1d.bias": (256 + 2 * 64,),
        "norm.weight": (256,),
        "out_proj.weight": (128, 256),
    }


def test_mamba2_heads_must_divide_its_channels() -> None:
    with pytest.raises(UserError, match=r"heads is 5; it must divide expand \* width = 256"):
        Mamba2Config(heads=5)


def test_rotary_positions_need_pairs_of_features() -> None:
    with pytest.raises(UserError, match="heads is 3; with rotary positions twice as many must"):
        AttentionConfig(width=15, heads=3, positions="rotary")


# ---- token maps and memory lengths ---------------------------------------------------------


@pytest.mark.parametrize("positions", ["none", "rotary"])
def test_attention_token_map_weighs_the_values(positions: Any) -> None:
    torch.manual_seed(0)
    config = AttentionConfig(width=WIDTH, heads=3, dropout=0.0, positions=positions)
    mixer = Attention(config, window=9)
    nn.init.normal_(mixer.qkv.weight, std=0.3)
    x = tokens(2, 20)
    token_map = mixer.token_map(x)
    values = mixer.qkv(x)[..., 2 * WIDTH :].unflatten(-1, (3, 8))  # [B, L, H, d]
    y = torch.einsum("bhls,bshd->blhd", token_map, values).flatten(2)
    torch.testing.assert_close(mixer.out(y), mixer(x), rtol=1e-5, atol=1e-5)
    assert token_map.shape == (2, 3, 20, 20) and token_map[:, :, 15, :7].abs().max() == 0


def test_hidden_attention_reproduces_mamba() -> None:
    torch.manual_seed(0)
    mixer, x = Mamba(MambaConfig(width=WIDTH)), tokens(2, 20)
    nn.init.normal_(mixer.x_proj.weight, std=0.3)
    u, dt, B, C = mixer._scan_inputs(x)
    alpha = hidden_attention(dt, B, C, -mixer.A_log.exp())
    y = torch.einsum("blse,bse->ble", alpha, u) + mixer.D * u
    y = mixer.out_proj(y * nn.functional.silu(x @ mixer.in_proj.weight.chunk(2)[1].T))
    torch.testing.assert_close(y, mixer(x), rtol=1e-4, atol=1e-4)
    assert alpha[:, 0, 1:].abs().max() == 0 and alpha[:, 19, 0].abs().max() > 1e-3
    torch.testing.assert_close(mixer.token_map(x)[:, 0], alpha.abs().mean(-1))


def test_mamba2_token_map_reproduces_its_output() -> None:
    torch.manual_seed(0)
    mixer, x = Mamba2(Mamba2Config(width=WIDTH, d_state=8)), tokens(2, CHUNK + 9)
    z, mixed, dt = mixer._project(x)
    assert mixer.conv1d.bias is not None
    mixed = causal_conv_silu(mixed, mixer.conv1d.weight, mixer.conv1d.bias)
    u, B, C = mixer._split(mixed)
    rate = (dt * -mixer.A_log.exp()).transpose(1, 2)  # over more than a chunk
    M = influence(C.unsqueeze(1), B.unsqueeze(1), rate) * dt.transpose(1, 2).unsqueeze(-2)
    y = torch.einsum("bhls,bshp->blhp", M, u)
    torch.testing.assert_close(mixer._output(y, u, z), mixer(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(mixer.token_map(x), M.abs())


def test_memory_lengths_are_those_of_the_slowest_state() -> None:
    """With dt the same for every token, so that a state falls by exp(dt A) at each."""
    mamba, mamba2 = Mamba(MambaConfig(width=WIDTH)), Mamba2(Mamba2Config(width=WIDTH))
    x = tokens(2, 5)
    with torch.no_grad():
        mamba.dt_proj.weight.zero_()
        mamba.A_log.add_(0.7)
        mamba2.in_proj.weight[-4:] = 0  # the rows of dt
    dt = nn.functional.softplus(mamba.dt_proj.bias)
    slowest = 1 / (dt * mamba.A_log.exp().amin(-1))
    torch.testing.assert_close(mamba.memory_length(x), slowest.expand(2, 5, -1))
    dt = nn.functional.softplus(mamba2.dt_bias)
    torch.testing.assert_close(
        mamba2.memory_length(x), (1 / (dt * mamba2.A_log.exp())).expand(2, 5, -1)
    )
