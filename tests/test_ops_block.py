"""The rest of a block by every path against float64, with masks and gradients, and in bfloat16."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from ops_inputs import needs_c
from torch import Tensor

from decision_seq import ops
from decision_seq.ops.c.cpu_block import bias_activation_cpu
from decision_seq.ops.c.cpu_linear import transposed
from decision_seq.ops.dispatch import PATHS

CASES = [
    # B, L, D, heads, window, positions of the queries
    (2, 60, 128, 1, 60, range(60)),  # Decision Transformer's
    (2, 60, 128, 1, 60, range(1, 60, 3)),  # its last layer
    (3, 7, 16, 2, 7, range(7)),
    (1, 1, 4, 1, 1, range(1)),
    (1, 2, 3, 1, 9, range(2)),
    (2, 131, 36, 4, 1000, range(131)),  # tiles of keys and queries, ragged
    (2, 200, 40, 2, 33, range(200)),  # a window shorter than a tile
    (1, 300, 24, 1, 70, range(2, 300, 7)),
    (2, 130, 128, 4, 64, range(129, 130)),
    (1, 140, 17, 1, 1, range(140)),  # a token sees itself alone
    (0, 5, 4, 1, 5, range(5)),
]
PATHS_HERE = [name for name in ("c", "torch") if not PATHS[name].unusable()]


@pytest.fixture(params=PATHS_HERE)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DECISION_SEQ_SCAN", request.param)
    return request.param


def written_out(
    q: Tensor, kv: Tensor, heads: int, window: int, positions: range, mask: Tensor | float = 1.0
) -> Tensor:
    """The formula in the docstring of ops.attention, query by query; mask [B, H, l, L]."""
    batch, length, width = kv.shape
    dim = width // 2 // heads
    k, v = (t.reshape(batch, length, heads, dim) for t in kv.chunk(2, dim=-1))  # [B, L, H, d]
    q = q.reshape(batch, len(positions), heads, dim)
    mask = mask * torch.ones(batch, heads, len(positions), length, dtype=q.dtype)
    rows = []
    for row, i in enumerate(positions):
        j = slice(max(0, i - window + 1), i + 1)
        scores = torch.einsum("bhd,bjhd->bhj", q[:, row], k[:, j]) / math.sqrt(q.shape[-1])
        weights = scores.softmax(-1) * mask[:, :, row, j]
        rows.append(torch.einsum("bhj,bjhd->bhd", weights, v[:, j]).reshape(batch, width // 2))
    return torch.stack(rows, dim=1)


def inputs(case: tuple) -> list[Tensor]:
    batch, length, width, _, _, positions = case
    torch.manual_seed(length)
    sizes = (batch, len(positions), width), (batch, length, 2 * width)
    return [torch.randn(*size, dtype=torch.float64) for size in sizes]


def with_grads(
    function, tensors: list[Tensor], rounded: torch.dtype = torch.float64
) -> list[Tensor]:
    """Output, and the gradients of a fixed random projection of it; `rounded` is a dtype in which
    the projection is exact."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    y = function(*leaves)
    generator = torch.Generator().manual_seed(7)
    direction = torch.randn(y.shape, dtype=torch.float64, generator=generator)
    direction = direction.to(rounded).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * direction).sum(), leaves)]


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Values 1e-6, gradients 1e-5 relative to the largest."""
    for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
        scale = max(1.0, *other.abs().flatten().tolist()) if other.numel() else 1.0
        error = (one.double() - other).abs().max().item() / scale if other.numel() else 0.0
        assert error < (1e-5 if i else 1e-6), f"number {i}: {error:.1e}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_agrees_with_float64(path: str, case: tuple) -> None:
    wanted = with_grads(lambda q, kv: written_out(q, kv, *case[3:]), inputs(case))
    q, kv = (t.float() for t in inputs(case))
    assert_close(with_grads(lambda q, kv: ops.attention(q, kv, *case[3:]), [q, kv]), wanted)


def mask_of(case: tuple, p: float) -> Tensor:
    """[B, H, l, L] what dropout multiplies the weights with: at values of one unit vector a key,
    and queries of nothing, an output is the mask itself over the number of tokens seen."""
    batch, length, _, heads, window, positions = case
    q = torch.zeros(batch, len(positions), heads * length)
    unit = torch.eye(length).repeat(1, heads).expand(batch, length, heads * length)
    y = ops.attention(q, torch.cat([torch.zeros_like(unit), unit], -1), heads, window, positions, p)
    seen = torch.tensor([min(i + 1, window) for i in positions])
    weights = y.reshape(batch, len(positions), heads, length).transpose(1, 2)
    return weights * seen[:, None]


@pytest.mark.parametrize("case", CASES[:8], ids=str)
def test_dropped_weights_are_zero_in_both_directions(path: str, case: tuple) -> None:
    torch.manual_seed(1)
    mask = mask_of(case, 0.3).double()
    wanted = with_grads(lambda q, kv: written_out(q, kv, *case[3:], mask), inputs(case))

    def dropped(q: Tensor, kv: Tensor) -> Tensor:
        torch.manual_seed(1)
        return ops.attention(q, kv, *case[3:], 0.3)

    assert_close(with_grads(dropped, [t.float() for t in inputs(case)]), wanted)


def test_a_weight_is_dropped_with_its_probability(path: str) -> None:
    case = (40, 60, 1, 2, 60, range(60))
    torch.manual_seed(0)
    mask = mask_of(case, 0.2)
    seen = mask[:, :, torch.ones(60, 60, dtype=torch.bool).tril()]
    assert set(seen.mul(1e4).round().unique().tolist()) == {0.0, 12500.0}
    assert (seen == 0).float().mean().item() == pytest.approx(0.2, abs=0.005)  # 5 standard errors
    assert not torch.equal(mask[0], mask[1]) and not torch.equal(mask[:, 0], mask[:, 1])


@pytest.mark.parametrize("shape", [(3, 5, 33, 70), (1, 1, 1, 1), (2, 130, 16, 512), (0, 4, 3, 2)])
def test_linear_gelu_agrees_with_float64(path: str, shape: tuple[int, ...]) -> None:
    batch, length, width, hidden = shape
    torch.manual_seed(2)
    sizes = (batch, length, width), (hidden, width), (hidden,)
    tensors = [torch.randn(*size, dtype=torch.float64) for size in sizes]
    wanted = with_grads(lambda x, w, b: F.gelu(F.linear(x, w, b)), tensors)
    assert_close(with_grads(ops.linear_gelu, [t.float() for t in tensors]), wanted)


@pytest.mark.parametrize("shape", [(7, 33), (64, 60, 128), (1,), (0, 4)])
def test_dropout_keeps_the_residual(path: str, shape: tuple[int, ...]) -> None:
    x, residual = torch.randn(shape), torch.randn(shape)

    def both(x: Tensor, residual: Tensor) -> Tensor:
        torch.manual_seed(3)
        return ops.dropout_add(x, residual, 0.25)

    torch.manual_seed(3)
    mask = ops.dropout_add(torch.ones(shape), None, 0.25)
    wanted = with_grads(lambda x, r: r + x * mask.double(), [x.double(), residual.double()])
    assert_close(with_grads(both, [x, residual]), wanted)
    assert set(mask.mul(1e4).round().unique().tolist()) <= {0.0, 13333.0}


def test_strided_views(path: str) -> None:
    """Projections come as halves of a wider matrix."""
    wide = torch.randn(3, 20, 96)
    q, kv = wide[..., :32], wide[..., 32:]
    y = ops.attention(q, kv, 2, 20, range(20))
    torch.testing.assert_close(y, ops.attention(q.contiguous(), kv.contiguous(), 2, 20, range(20)))
    skewed = torch.randn(20, 3, 64).transpose(0, 1)
    torch.testing.assert_close(
        ops.attention(q, skewed, 2, 20, range(20)),
        ops.attention(q, skewed.contiguous(), 2, 20, range(20)),
    )


def assert_rounded_once(actual: list[Tensor], exact: list[Tensor]) -> None:
    """As exact as their dtype."""
    for one, other in zip(actual, exact, strict=True):
        unit = 2**-8 if one.dtype == torch.bfloat16 else 1e-6
        allowed = other.abs() * unit + 1e-5 * max([1.0, *other.abs().flatten().tolist()])
        assert ((one.double() - other).abs() <= allowed).all()


@needs_c
@pytest.mark.parametrize("case", CASES[:6], ids=str)
def test_attention_in_bfloat16_is_rounded_once(
    case: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DECISION_SEQ_SCAN", "c")
    halves = [t.bfloat16() for t in inputs(case)]
    own = with_grads(lambda q, kv: ops.attention(q, kv, *case[3:]), halves)
    assert all(t.dtype == torch.bfloat16 for t in own)
    exact = [t.double() for t in halves]
    y, dq, dkv = with_grads(lambda q, kv: written_out(q, kv, *case[3:]), exact)
    assert_rounded_once(own[:1], [y])
    for one, other in zip(own[1:], [dq, dkv], strict=True):  # through y . dy, whose y is rounded
        assert ((one.double() - other).abs() <= other.abs() * 2**-7 + 0.02).all()


@needs_c
@pytest.mark.parametrize("softplus", [False, True])
def test_activations_of_bfloat16_are_rounded_once(softplus: bool) -> None:
    torch.manual_seed(4)
    x, bias = torch.randn(7, 11, 35).bfloat16() * 4, torch.randn(35)
    own = with_grads(lambda x, b: bias_activation_cpu(x, b, softplus), [x, bias])
    assert own[0].dtype == (torch.float32 if softplus else torch.bfloat16)
    function = F.softplus if softplus else F.gelu
    exact = with_grads(
        lambda x, b: function(x + b), [x.double(), bias.double()], rounded=own[0].dtype
    )
    assert_rounded_once(own, exact)


@needs_c
def test_mixed_precision_keeps_the_residual_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECISION_SEQ_SCAN", "c")
    x, residual = torch.randn(5, 9, 40).bfloat16(), torch.randn(5, 9, 40)

    def dropped(x: Tensor, residual: Tensor) -> Tensor:
        torch.manual_seed(1)
        return ops.dropout_add(x, residual, 0.5)

    torch.manual_seed(1)
    mask = ops.dropout_add(torch.ones(x.shape), None, 0.5).double()
    own = with_grads(dropped, [x, residual])
    assert [t.dtype for t in own] == [torch.float32, torch.bfloat16, torch.float32]
    exact = with_grads(lambda x, r: r + x * mask, [x.double(), residual.double()])
    assert_rounded_once(own, exact)


@pytest.mark.parametrize("shape", [(3, 5, 33), (1, 1, 1), (2, 130, 128), (0, 4, 3), (64, 60, 16)])
@pytest.mark.parametrize("mixed", [False, True])
def test_layer_norm_agrees_with_float64(path: str, shape: tuple[int, ...], mixed: bool) -> None:
    torch.manual_seed(5)
    tensors = [torch.randn(*shape) * 3 + 1, torch.randn(shape[-1]), torch.randn(shape[-1])]

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            return ops.layer_norm(x, weight, bias, 1e-5)

    own = with_grads(norm, tensors)
    halved = mixed and path == "c"
    assert own[0].dtype == (torch.bfloat16 if halved else torch.float32)
    exact = with_grads(
        lambda x, w, b: F.layer_norm(x, w.shape, w, b, 1e-5),
        [t.double() for t in tensors],
        rounded=own[0].dtype,
    )
    assert_rounded_once(own, exact) if halved else assert_close(own, exact)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 33, 7), (1, 1, 1, 1), (2, 130, 16, 96), (0, 4, 3, 2)])
def test_linear_agrees_with_float64(path: str, shape: tuple[int, ...], with_bias: bool) -> None:
    batch, length, width, hidden = shape
    torch.manual_seed(6)
    sizes = [(batch, length, width), (hidden, width), (hidden,)][: 3 if with_bias else 2]
    tensors = [torch.randn(*size, dtype=torch.float64) for size in sizes]
    wanted = with_grads(F.linear, tensors)
    own = with_grads(lambda x, w, b=None: ops.linear(x, w, b), [t.float() for t in tensors])
    assert_close(own, wanted)


def test_linear_maps_of_some_tokens(path: str) -> None:
    """A last layer's are a view with gaps between the rows."""
    torch.manual_seed(9)
    x, weight, bias = torch.randn(4, 60, 32), torch.randn(48, 32), torch.randn(48)

    def some(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.linear(x[:, 1::3], weight, bias)

    exact = [t.double() for t in (x, weight, bias)]
    wanted = with_grads(lambda x, w, b: F.linear(x[:, 1::3], w, b), exact)
    assert_close(with_grads(some, [x, weight, bias]), wanted)


@needs_c
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (16, 16), (33, 50), (64, 130), (0, 4)])
def test_transposed_copies(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape)
    assert torch.equal(transposed(matrix), matrix.t())


@pytest.mark.parametrize("shape", [(3, 5, 8, 33), (1, 1, 1, 1), (0, 4, 3, 2)])
def test_linear_softplus_agrees_with_float64(path: str, shape: tuple[int, ...]) -> None:
    batch, length, width, hidden = shape
    torch.manual_seed(8)
    sizes = (batch, length, width), (hidden, width), (hidden,)
    tensors = [3 * torch.randn(*size, dtype=torch.float64) for size in sizes]
    wanted = with_grads(lambda x, w, b: F.softplus(F.linear(x, w, b)), tensors)
    assert_close(with_grads(ops.linear_softplus, [t.float() for t in tensors]), wanted)


@pytest.mark.parametrize("rows", [3, 1 + ops.CHEAP_TO_CALL // 16])
def test_without_gradients_the_values_are_the_same(path: str, rows: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, 16), torch.randn(16, 16), torch.randn(16)
    for function in (ops.linear, ops.linear_gelu, ops.linear_softplus):
        with torch.no_grad():
            y = function(x, weight, bias)
        torch.testing.assert_close(y, function(x, weight.requires_grad_(), bias).detach())
    with torch.inference_mode():
        y = ops.layer_norm(x, bias, bias, 1e-5)
    torch.testing.assert_close(y, ops.layer_norm(x, bias, bias, 1e-5))


def test_wrong_shapes_are_refused() -> None:
    q, kv = torch.randn(2, 5, 8), torch.randn(2, 5, 16)
    with pytest.raises(ValueError, match="descend"):
        ops.attention(q[:, :1], kv, 2, 5, range(4, 3, -1))
    with pytest.raises(ValueError, match="of one dtype"):
        ops.attention(q, kv.bfloat16(), 2, 5, range(5))
    with pytest.raises(ValueError, match="x's D = 8"):
        ops.layer_norm(q, torch.ones(4), torch.ones(4), 1e-5)
    with pytest.raises(ValueError, match=r"bias \[H\]"):
        ops.linear_gelu(q, torch.randn(3, 8), torch.randn(2))
    with pytest.raises(ValueError, match=r"l = 4"):
        ops.attention(q, kv, 2, 5, range(4))
    with pytest.raises(ValueError, match="multiple of 3"):
        ops.attention(q, kv, 3, 5, range(5))
    with pytest.raises(ValueError, match="lie beyond the 5 tokens"):
        ops.attention(q, kv, 2, 5, range(1, 6))
    with pytest.raises(ValueError, match=r"residual of x's shape \[2, 5, 8\]"):
        ops.dropout_add(q, kv, 0.5)


def test_float16_autocast_is_left_to_pytorch(path: str) -> None:
    x, weight, bias = torch.randn(3, 5, 32), torch.randn(64, 32), torch.randn(64)
    with torch.autocast("cpu", torch.float16):
        y = ops.linear_gelu(x, weight, bias)
        z = ops.linear_softplus(x, weight, bias)
    assert y.dtype == torch.float16
    exact = F.linear(x, weight, bias)
    torch.testing.assert_close(y.float(), F.gelu(exact), atol=0.1, rtol=0.01)
    torch.testing.assert_close(z, F.softplus(exact), atol=0.1, rtol=0.01)


def test_a_number_that_is_none_shows(path: str) -> None:
    q, kv = torch.randn(1, 5, 8), torch.randn(1, 5, 16)
    kv[0, 2, 3] = math.nan  # a key's
    y = ops.attention(q, kv, 1, 5, range(5))
    assert y[0, :2].isfinite().all() and y[0, 2:].isnan().all()
    x = torch.tensor([[math.nan, 1.0]])
    weight, bias = torch.eye(2), torch.zeros(2)
    for function in (ops.linear_gelu, ops.linear_softplus):
        assert function(x[:, :1], weight[:1, :1], bias[:1]).isnan().all()


@needs_c
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECISION_SEQ_SCAN", "c")
    x, weight, bias = torch.randn(70, 30, 64), torch.randn(80, 64), torch.randn(80)
    q, kv = torch.randn(9, 140, 48), torch.randn(9, 140, 96)

    def everything() -> list[Tensor]:
        torch.manual_seed(5)
        hidden = with_grads(ops.linear_gelu, [x, weight, bias])
        dropped = with_grads(lambda x: ops.dropout_add(x, x, 0.1), [x])
        weighed = with_grads(lambda q, kv: ops.attention(q, kv, 3, 50, range(140), 0.1), [q, kv])
        return [*hidden, *dropped, *weighed]

    once = everything()
    monkeypatch.setattr("decision_seq.ops.c.cpu_block.threads", lambda: threads)
    assert all(torch.equal(a, b) for a, b in zip(once, everything(), strict=True))


@needs_c
def test_the_operators_are_registered_soundly() -> None:
    operators = torch.ops.decision_seq
    x, bias = torch.randn(3, 17, requires_grad=True), torch.randn(17, requires_grad=True)
    q = torch.randn(2, 5, 8, requires_grad=True)
    kv = torch.randn(2, 5, 16, requires_grad=True)
    seed = torch.tensor(-5)
    weight = torch.randn(5, 17, requires_grad=True)
    for softplus in (False, True):
        torch.library.opcheck(operators.bias_activation_cpu.default, (x, bias, softplus))
    for mixed in (False, True):
        torch.library.opcheck(operators.norm_cpu.default, (x, bias, bias, 1e-5, mixed))
    torch.library.opcheck(operators.linear_cpu.default, (x, weight, None))
    torch.library.opcheck(operators.linear_cpu.default, (x, weight, weight.sum(1)))
    torch.library.opcheck(operators.dropout_add_cpu.default, (x, None, seed, 9000))
    torch.library.opcheck(operators.dropout_add_cpu.default, (x, x.detach(), seed, 9000))
    torch.library.opcheck(operators.attention_cpu.default, (q, kv, seed, 900, [2, 5, 0, 1]))
