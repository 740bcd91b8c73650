"""Mixers that carry a matrix or a vector along time, against loops in float64 and transformers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.backbones import BackboneConfig, Layout
from decision_seq.backbones.contract import Mixer
from decision_seq.backbones.dense import DenseBlock
from decision_seq.backbones.gated_deltanet import (
    GatedDeltaNet,
    GatedDeltaNetConfig,
    gated_delta_rule,
)
from decision_seq.backbones.mamba import MambaConfig
from decision_seq.backbones.mamba3 import Mamba3, Mamba3Config, trapezoid
from decision_seq.backbones.mlstm import CAP, MLSTM, MLSTMConfig
from decision_seq.backbones.rg_lru import RGLRU, RGLRUConfig
from decision_seq.errors import UserError
from decision_seq.ops import causal_conv_silu
from decision_seq.ops.linear_attention import CHUNK, linear_attention

F64 = torch.float64
KINDS = ["gated_deltanet", "mamba3", "mlstm", "rg_lru"]
lengths = pytest.mark.parametrize("length", [1, 5, CHUNK, CHUNK + 1, 3 * CHUNK - 7])


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def shaken(mixer: Mixer) -> Mixer:
    """In float64, with weights as after training: none of them zero, or one, or alike."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in mixer.double().parameters():
            scale = 0.3 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
            parameter.add_(scale * torch.randn_like(parameter))
    return mixer


def gradients(run: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Outputs, and the gradients of a sum of them with respect to inputs and weights."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    (y * randn(*y.shape, seed=9).to(y.dtype)).sum().backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"y": y.detach(), "x": x.grad, **found}


def agree(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        scale = value.abs().max()
        close = (ours[name].double() - value.double()).abs().max() <= tolerance * scale
        assert close, (name, float((ours[name] - value).abs().max() / scale))


# ---- the operations, against their recurrences ---------------------------------------------


@lengths
@pytest.mark.parametrize("shared", [False, True])
def test_linear_attention_equals_its_recurrence(length: int, shared: bool) -> None:
    q, k = randn(2, 2, 1 if shared else 3, length, 5).unbind()
    v, decay = randn(2, 3, length, 4), -randn(2, 3, length, seed=2).exp()
    h = randn(2, 3, 4, 5, seed=3)
    y, state = linear_attention(q, k, v, decay, h)
    for t in range(length):
        h = decay[:, :, t].exp()[..., None, None] * h
        h = h + v[:, :, t, :, None] * k[:, :, t, None, :]
        torch.testing.assert_close(y[:, :, t], (h * q[:, :, t, None, :]).sum(-1))
    torch.testing.assert_close(state, h)


@lengths
def test_the_gated_delta_rule_equals_its_recurrence(length: int) -> None:
    q, k = randn(2, 2, 3, length, 5).unbind()
    k = k / k.norm(dim=-1, keepdim=True)
    v, decay = randn(2, 3, length, 4), -randn(2, 3, length, seed=2).exp()
    beta, S = randn(2, 3, length, seed=4).sigmoid(), randn(2, 3, 4, 5, seed=3)
    y, state = gated_delta_rule(q, k, v, decay, beta, S)
    eye = torch.eye(5, dtype=F64)
    for t in range(length):
        b, key = beta[:, :, t, None, None], k[:, :, t, None, :]  # [B, H, 1, N]
        S = decay[:, :, t].exp()[..., None, None] * S @ (eye - b * key.mT @ key)
        S = S + b * v[:, :, t, :, None] * key
        torch.testing.assert_close(y[:, :, t], (S @ q[:, :, t, :, None]).squeeze(-1))
    torch.testing.assert_close(state, S)


def test_operations_stay_finite_where_the_state_forgets_at_once() -> None:
    q, k, v = randn(3, 1, 2, 100, 4).float().unbind()
    decay = torch.full((1, 2, 100), -160.0, requires_grad=True)
    beta = torch.full((1, 2, 100), 0.5)
    for y in (
        linear_attention(q, k, v, decay, None)[0],
        gated_delta_rule(q, k, v, decay, beta, None)[0],
    ):
        (gradient,) = torch.autograd.grad(y.sum(), decay)
        assert y.isfinite().all() and gradient.isfinite().all()


# ---- the layers, against loops and transformers --------------------------------------------


def test_gated_deltanet_equals_the_layer_of_qwen3_next() -> None:
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    ours = shaken(GatedDeltaNet(GatedDeltaNetConfig(width=32, heads=4, d_key=6))).float()
    assert isinstance(ours, GatedDeltaNet)
    config = Qwen3NextConfig(
        hidden_size=32,
        linear_num_key_heads=4,
        linear_num_value_heads=4,
        linear_key_head_dim=6,
        linear_value_head_dim=16,
        linear_conv_kernel_dim=4,
        layer_types=["linear_attention"],
        num_hidden_layers=1,
    )
    reference = Qwen3NextGatedDeltaNet(config, 0)
    q, k, v, z, dt, beta = ours.in_proj.weight.detach().split([24, 24, 64, 64, 4, 4])
    by_head = [part.unflatten(0, (4, -1)) for part in (q, k, v, z)]
    weights = {
        "in_proj_qkvz.weight": torch.cat(by_head, dim=1).flatten(0, 1),
        "in_proj_ba.weight": torch.stack([beta, dt], dim=1).flatten(0, 1),
    }
    same = ("conv1d.weight", "dt_bias", "A_log", "norm.weight", "out_proj.weight")
    weights |= {name: ours.state_dict()[name] for name in same}
    reference.load_state_dict(weights)
    x = randn(2, 2 * CHUNK + 5, 32).float()
    found, expected = gradients(ours, ours, x), gradients(reference, reference, x)
    joint = expected.pop("in_proj_qkvz.weight").unflatten(0, (4, -1))
    parts = [part.flatten(0, 1) for part in joint.split([6, 6, 16, 16], dim=1)]
    strength, step = expected.pop("in_proj_ba.weight").unflatten(0, (4, 2)).unbind(1)
    agree(found, expected | {"in_proj.weight": torch.cat([*parts, step, strength])}, 2e-4)


def test_mlstm_equals_the_layer_of_xlstm() -> None:
    from transformers import xLSTMConfig
    from transformers.models.xlstm.modeling_xlstm import xLSTMLayer

    ours = shaken(MLSTM(MLSTMConfig(width=32, heads=2))).float()
    assert isinstance(ours, MLSTM)
    config = xLSTMConfig(hidden_size=32, num_heads=2, num_hidden_layers=1)
    config.chunkwise_kernel = "chunkwise--native_autograd"
    reference = xLSTMLayer(config)
    q, k, v = ours.qkv.weight.split([16, 16, 32])
    reference.load_state_dict(
        {
            **{"q.weight": q, "k.weight": k, "v.weight": v},
            "ogate_preact.weight": ours.ogate.weight,
            "igate_preact.weight": ours.gates.weight[:2],
            "igate_preact.bias": ours.gates.bias[:2],
            "fgate_preact.weight": ours.gates.weight[2:],
            "fgate_preact.bias": ours.gates.bias[2:],
            "multihead_norm.weight": ours.scale,
            "out_proj.weight": ours.out.weight,
        }
    )
    x = randn(2, CHUNK + 5, 32).float()
    found, expected = gradients(ours, ours, x), gradients(lambda t: reference(t)[0], reference, x)
    pairs = {
        "qkv.weight": [f"{name}.weight" for name in "qkv"],
        "gates.weight": ["igate_preact.weight", "fgate_preact.weight"],
        "gates.bias": ["igate_preact.bias", "fgate_preact.bias"],
        "ogate.weight": ["ogate_preact.weight"],
        "scale": ["multihead_norm.weight"],
        "out.weight": ["out_proj.weight"],
    }
    theirs = {name: torch.cat([expected[n] for n in names]) for name, names in pairs.items()}
    agree(found, {"y": expected["y"], "x": expected["x"], **theirs}, 1e-3)


def test_mlstm_equals_the_papers_loop_with_its_running_maximum() -> None:
    mixer, x = shaken(MLSTM(MLSTMConfig(width=16, heads=2))), randn(2, CHUNK + 9, 16)
    assert isinstance(mixer, MLSTM)
    q, k, v = (t.unflatten(-1, (2, -1)) for t in mixer.qkv(x).split([8, 8, 16], dim=-1))
    enter, forget = (CAP * torch.tanh(mixer.gates(x) / CAP)).chunk(2, dim=-1)  # [B, L, H]
    C, n = torch.zeros(2, 2, 8, 4, dtype=F64), torch.zeros(2, 2, 4, dtype=F64)
    top, outputs = torch.zeros(2, 2, dtype=F64), []
    for t in range(x.shape[1]):
        log_f = F.logsigmoid(forget[:, t])
        new_top = torch.maximum(log_f + top, enter[:, t])
        i, f = (enter[:, t] - new_top).exp(), (log_f + top - new_top).exp()
        C = f[..., None, None] * C + i[..., None, None] * v[:, t, :, :, None] * k[:, t, :, None]
        n, top = f[..., None] * n + i[..., None] * k[:, t], new_top
        asked = q[:, t] / 2  # sqrt of 4 features
        size = torch.maximum((n * asked).sum(-1).abs(), (-top).exp())
        outputs.append((C @ asked[..., None]).squeeze(-1) / size[..., None])
    y = F.layer_norm(torch.stack(outputs, 1), (8,), eps=1e-6).flatten(2) * mixer.scale
    torch.testing.assert_close(mixer(x), mixer.out(y * mixer.ogate(x).sigmoid()))


def test_mlstm_stays_finite_where_its_gates_are_at_the_cap() -> None:
    mixer = MLSTM(MLSTMConfig(width=16))
    with torch.no_grad():
        mixer.gates.bias.fill_(1e3)  # everything enters with exp(15) and next to nothing leaves
    y = mixer(randn(1, 3000, 16).float())
    y.square().sum().backward()
    assert y.isfinite().all() and y.abs().max() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


def test_rg_lru_equals_the_block_of_recurrent_gemma() -> None:
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import (
        RecurrentGemmaRecurrentBlock,
    )

    if "layer_idx" not in inspect.signature(RecurrentGemmaRecurrentBlock).parameters:
        pytest.skip("the block of this transformers is called in another way")
    ours = shaken(RGLRU(RGLRUConfig(width=16, gate_blocks=4))).float()
    assert isinstance(ours, RGLRU)
    config = RecurrentGemmaConfig(
        hidden_size=16,
        lru_width=32,
        num_attention_heads=4,
        conv1d_width=4,
        num_hidden_layers=1,
        hidden_activation="gelu",
    )
    reference = RecurrentGemmaRecurrentBlock(config, 0)
    recurrent, enter = ours.gates.detach().mT  # theirs are [in, out]
    (u, z), (u_bias, z_bias) = ours.in_proj.weight.chunk(2), ours.in_proj.bias.chunk(2)
    reference.load_state_dict(
        {
            **{"linear_x.weight": u, "linear_x.bias": u_bias},
            **{"linear_y.weight": z, "linear_y.bias": z_bias},
            **{f"linear_out.{name}": p for name, p in ours.out_proj.named_parameters()},
            "conv_1d.weight": ours.filter[0].flip(0).T.unsqueeze(1),
            "conv_1d.bias": ours.filter_bias[0],
            "rg_lru.recurrent_param": ours.Lambda,
            "rg_lru.recurrent_gate_weight": recurrent,
            "rg_lru.input_gate_weight": enter,
            "rg_lru.recurrent_gate_bias": ours.gate_bias[0].view(4, 8),
            "rg_lru.input_gate_bias": ours.gate_bias[1].view(4, 8),
        }
    )
    x = randn(2, 40, 16).float()
    # position 0 is special in their code, not in the paper: it counts fully
    positions = torch.arange(1, 41).expand(2, -1)
    run = lambda t: reference(t, positions, None, use_cache=False)[0]  # noqa: E731
    found, expected = gradients(ours, ours, x), gradients(run, reference, x)
    gates = [expected[f"rg_lru.{name}_gate_weight"].mT for name in ("recurrent", "input")]
    biases = [expected[f"rg_lru.{name}_gate_bias"].flatten() for name in ("recurrent", "input")]
    theirs = {
        "in_proj.weight": torch.cat([expected["linear_x.weight"], expected["linear_y.weight"]]),
        "in_proj.bias": torch.cat([expected["linear_x.bias"], expected["linear_y.bias"]]),
        "filter": expected["conv_1d.weight"].squeeze(1).T.flip(0)[None],
        "filter_bias": expected["conv_1d.bias"][None],
        "gates": torch.stack(gates),
        "gate_bias": torch.stack(biases),
        "Lambda": expected["rg_lru.recurrent_param"],
        "out_proj.weight": expected["linear_out.weight"],
        "out_proj.bias": expected["linear_out.bias"],
    }
    agree(found, {"y": expected["y"], "x": expected["x"], **theirs}, 1e-4)


def test_rg_lru_starts_by_remembering() -> None:
    mixer = RGLRU(RGLRUConfig())
    decay = torch.exp(-8 * F.softplus(mixer.Lambda))
    assert 0.9 <= decay.min() < 0.91 and 0.99 < decay.max() <= 0.999


def complex_mamba3(mixer: Mamba3, x: Tensor) -> Tensor:
    """The paper's recurrence with complex states, token by token."""
    z, u, B, C, dt, A, mix, theta = mixer.in_proj(x).split(mixer.sizes, dim=-1)
    heads, half = mixer.heads, mixer.d_state // 2

    def states(values: Tensor, norm: nn.Module, bias: Tensor) -> Tensor:
        shifted = norm(values).unsqueeze(2) + bias[:, 0]  # [B, L, H, N]
        pairs = torch.view_as_complex(shifted[..., :half].unflatten(-1, (-1, 2)).contiguous())
        return torch.cat([pairs, shifted[..., half:].to(pairs.dtype)], dim=-1)

    k, q = states(B, mixer.B_norm, mixer.B_bias), states(C, mixer.C_norm, mixer.C_bias)
    dt, mix = F.softplus(dt + mixer.dt_bias), mix.sigmoid()  # [B, L, H]
    rate = -F.softplus(A).clamp(min=1e-4)
    speed = F.pad(math.pi * torch.tanh(theta), (0, half)).unsqueeze(2)  # the rest does not turn
    u = u.unflatten(-1, (heads, -1))
    h = torch.zeros(len(x), heads, u.shape[-1], k.shape[-1], dtype=k.dtype)
    outer = torch.zeros_like(h)
    outputs = []
    for t in range(x.shape[1]):
        step = dt[:, t, :, None]
        decay = torch.exp(step * (rate[:, t, :, None] - 1j * speed[:, t])).unsqueeze(2)
        weight = mix[:, t, :, None, None] * dt[:, t, :, None, None]
        before = dt[:, t, :, None, None] - weight
        h = decay * (h + before * outer)
        outer = u[:, t, :, :, None] * k[:, t, :, None]
        h = h + weight * outer
        y = (h * q[:, t, :, None].conj()).sum(-1).real + mixer.D[:, None] * u[:, t]
        outputs.append(y.flatten(1))
    return mixer.out_proj(torch.stack(outputs, 1) * F.silu(z))


@pytest.mark.parametrize("length", [1, 40, 2 * CHUNK + 3])
def test_mamba3_equals_its_complex_recurrence(length: int) -> None:
    mixer = shaken(Mamba3(Mamba3Config(width=12, d_state=8, heads=2)))
    assert isinstance(mixer, Mamba3)
    x = randn(2, length, 12)
    expected = gradients(lambda t: complex_mamba3(mixer, t), mixer, x)
    agree(gradients(mixer, mixer, x), expected, 1e-9)


def test_mamba3_has_the_parameters_of_mamba_ssm() -> None:
    mixer = Mamba3(Mamba3Config(width=128))
    assert {n: tuple(p.shape) for n, p in mixer.named_parameters()} == {
        "dt_bias": (4,),
        "B_bias": (4, 1, 64),
        "C_bias": (4, 1, 64),
        "D": (4,),
        "in_proj.weight": (2 * 256 + 2 * 64 + 3 * 4 + 16, 128),
        "B_norm.weight": (64,),
        "C_norm.weight": (64,),
        "out_proj.weight": (128, 256),
    }


def test_a_dense_mixer_before_mamba_takes_all_channels_of_a_few_tokens() -> None:
    torch.manual_seed(0)
    config = MambaConfig(width=12, layers=1, dropout=0.0, dense=3)
    block = config.build(Layout(5)).blocks[0].double()
    assert isinstance(block, DenseBlock)
    x = randn(2, 9, 12)
    n = F.layer_norm(x, (12,), block.norm_dense.weight, block.norm_dense.bias)
    weight, local = block.dense.weight, torch.zeros_like(x)  # [D, D, 3]
    for t in range(9):
        for back in range(min(3, t + 1)):
            local[:, t] += n[:, t - back] @ weight[:, :, 2 - back].T
    after = x + local
    after = after + block.mixer(block.norm_mixer(after))
    torch.testing.assert_close(block(x), after + block.mlp(block.norm_mlp(after)))


# ---- in half precision, and beside each other ----------------------------------------------


def mixer(kind: str, width: int = 64) -> Mixer:
    return BackboneConfig.registry[kind](width=width, layers=1).make_mixer(Layout(20, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_keeps_outputs_and_gradients(kind: str) -> None:
    module, x = shaken(mixer(kind)), randn(2, 2 * CHUNK + 3, 64)
    exact = gradients(module, module, x)
    single = gradients(module.float(), module, x.float())
    agree(single, exact, 2e-4)
    with torch.autocast("cpu", torch.bfloat16):
        half = gradients(module, module, x.float())
    for name, value in exact.items():
        a, b = half[name].double().flatten(), value.flatten()
        assert a @ b > 0.98 * a.norm() * b.norm(), name
        assert 0.9 < a.norm() / b.norm() < 1.1, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_stream_equals_forward(kind: str) -> None:
    """Where sums over thousands of tokens, and turns, could have drifted apart."""
    module, x = mixer(kind, width=16).eval(), randn(1, 2000, 16).float()
    state = module.init_state(1, torch.device("cpu"), torch.float32)
    outputs = []
    with torch.no_grad():
        for part in x.split(331, dim=1):
            y, state = module.step(part, state)
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, 1), module(x), rtol=1e-3, atol=1e-4)


# ---- what inspect asks ---------------------------------------------------------------------


def taken_from(read: Tensor, values: Tensor, token: int) -> Tensor:
    """|d read / d value| of `token` [B, H, L]. Features of a value do not mix, so that the first
    of them tells of all."""
    (found,) = torch.autograd.grad(read[:, :, token, 0].sum(), values, retain_graph=True)
    return found[..., 0].abs()


def test_gated_deltanet_token_map_is_what_answers_take_from_values() -> None:
    module, x = shaken(mixer("gated_deltanet", width=16)), randn(2, CHUNK + 6, 16)
    assert isinstance(module, GatedDeltaNet)
    mixed, _, decay, beta = module._project(x)
    kernel = module.conv1d.weight
    q, k, v = module._split(causal_conv_silu(mixed, kernel, torch.zeros(len(kernel), dtype=F64)))
    v = v.detach().requires_grad_()
    y, _ = gated_delta_rule(q, k, v, decay, beta, None)
    for token in (40, CHUNK + 5):
        expected = taken_from(y, v, token)
        torch.testing.assert_close(module.token_map(x)[:, :, token], expected)


def test_mamba3_token_map_is_what_outputs_take_from_inputs() -> None:
    module, x = shaken(mixer("mamba3", width=16)), randn(2, CHUNK + 6, 16)
    assert isinstance(module, Mamba3)
    tokens = module._tokens(x, None)
    u = tokens.u.detach().requires_grad_()
    y, _ = trapezoid(tokens._replace(u=u), None)
    for token in (40, CHUNK + 5):
        torch.testing.assert_close(module.token_map(x)[:, :, token], taken_from(y, u, token))


def test_mlstm_token_map_is_what_outputs_take_from_values() -> None:
    module, x = shaken(mixer("mlstm", width=16)), randn(2, CHUNK + 6, 16)
    assert isinstance(module, MLSTM)
    q, k, v, forget = module._project(x)
    v = v.detach().requires_grad_()
    y, _ = linear_attention(q, k, v, forget, None)
    for token in (40, CHUNK + 5):
        size = y[:, :, token, -1:].detach().abs().clamp(min=1)
        expected = taken_from(y, v, token) / size
        torch.testing.assert_close(module.token_map(x)[:, :, token], expected)


def test_rg_lru_token_map_is_what_its_state_takes() -> None:
    module, x = shaken(mixer("rg_lru", width=16)), randn(2, 12, 16)
    assert isinstance(module, RGLRU)
    u = module._filter(F.pad(F.linear(x, *module._half(0)), (0, 0, 3, 0)))
    scaled, dt, *_ = module._scan_inputs(u)
    expected = torch.zeros(2, 12, 12, dtype=F64)
    for s in range(12):
        taken = (scaled * dt / u)[:, s]
        for t in range(s, 12):
            taken = taken if t == s else taken * torch.exp(-dt[:, t])
            expected[:, t, s] = taken.abs().mean(-1)
    torch.testing.assert_close(module.token_map(x)[:, 0], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_lengths_say_how_fast_a_state_decays(kind: str) -> None:
    """A token leaves exp(-1 / length) of what the state holds, here told by what is left of the
    difference between a state and none."""
    module, x = shaken(mixer(kind, width=16)), randn(1, 1, 16)
    zeros = module.init_state(1, torch.device("cpu"), F64)
    (name,) = {"S", "h", "C"} & set(zeros)
    held = randn(*zeros[name].shape, seed=5)
    if isinstance(module, GatedDeltaNet):  # what lies under the token's own key is overwritten
        kernel = module.conv1d.weight
        mixed = causal_conv_silu(module._project(x)[0], kernel, torch.zeros(len(kernel), dtype=F64))
        key = module._split(mixed)[1]  # [1, H, 1, N]
        held = held - (held @ key.mT) @ key
    with torch.no_grad():
        _, used = module.step(x, zeros | {name: held})
        _, fresh = module.step(x, zeros)
    dims = tuple(range(2, held.ndim))
    left = (used[name] - fresh[name]).norm(dim=dims) / held.norm(dim=dims)  # [1, H or E]
    length = module.memory_length(x)
    assert length is not None
    torch.testing.assert_close(left, torch.exp(-1 / length[:, 0]), rtol=1e-5, atol=1e-7)


# ---- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (lambda: GatedDeltaNetConfig(heads=5), r"heads is 5; it must divide expand \* width = 256"),
        (lambda: GatedDeltaNetConfig(d_key=0), "d_key is 0; it must be at least 1"),
        (lambda: MLSTMConfig(heads=3), "heads is 3; twice that must divide width 128"),
        (lambda: Mamba3Config(d_state=6), "d_state is 6; it must be a multiple of 4"),
        (lambda: Mamba3Config(heads=0), r"heads is 0; it must divide expand \* width = 256"),
        (lambda: RGLRUConfig(gate_blocks=7), "gate_blocks is 7; it must divide"),
        (lambda: MambaConfig(dense=-1), "dense is -1; it must be at least 0"),
    ],
)
def test_bad_settings_are_refused(config: Callable[[], object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        config()
