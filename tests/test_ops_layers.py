"""Attention over a sliding window against its formula, and the cheap dropout: rate, scale,
gradient, seed."""

from __future__ import annotations

import math

import pytest
import torch
from ops_inputs import with_grads
from torch import Tensor

from decision_seq.ops.layers import Dropout, attention

CASES = [
    # B, L, D, heads, window, positions of the queries
    (2, 60, 128, 1, 60, range(60)),  # Decision Transformer's
    (2, 60, 128, 1, 60, range(1, 60, 3)),  # its last layer
    (3, 7, 16, 2, 7, range(7)),
    (1, 1, 4, 1, 1, range(1)),
    (1, 2, 3, 1, 9, range(2)),
    (2, 131, 36, 4, 1000, range(131)),
    (2, 200, 40, 2, 33, range(200)),  # a window shorter than the sequence
    (1, 300, 24, 1, 70, range(2, 300, 7)),
    (2, 130, 128, 4, 64, range(129, 130)),
    (1, 140, 17, 1, 1, range(140)),  # a token sees itself alone
    (0, 5, 4, 1, 5, range(5)),
]


def written_out(
    q: Tensor, kv: Tensor, heads: int, window: int, positions: range, mask: Tensor | float = 1.0
) -> Tensor:
    """The formula in the docstring of `attention`, query by query; mask [B, H, l, L]."""
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


def check(case: tuple, p: float, mask: Tensor | float) -> None:
    """Values and gradients against those of the formula with this mask."""

    def dropped(q: Tensor, kv: Tensor) -> Tensor:
        torch.manual_seed(1)
        return attention(q, kv, *case[3:], p)

    expected, gradients = with_grads(
        lambda q, kv: written_out(q, kv, *case[3:], mask), inputs(case)
    )
    y, own = with_grads(dropped, [t.float() for t in inputs(case)])
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(own, gradients, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_agrees_with_float64(case: tuple) -> None:
    check(case, 0.0, 1.0)


def mask_of(case: tuple, p: float) -> Tensor:
    """[B, H, l, L] what dropout multiplies the weights with: at values of one unit vector a key,
    and queries of nothing, an output is the mask itself over the number of tokens seen."""
    batch, length, _, heads, window, positions = case
    q = torch.zeros(batch, len(positions), heads * length)
    unit = torch.eye(length).repeat(1, heads).expand(batch, length, heads * length)
    y = attention(q, torch.cat([torch.zeros_like(unit), unit], -1), heads, window, positions, p)
    seen = torch.tensor([min(i + 1, window) for i in positions])
    weights = y.reshape(batch, len(positions), heads, length).transpose(1, 2)
    return weights * seen[:, None]


@pytest.mark.parametrize("case", CASES[:8], ids=str)
def test_dropped_weights_are_zero_in_both_directions(case: tuple) -> None:
    torch.manual_seed(1)
    check(case, 0.3, mask_of(case, 0.3).double())


def test_a_weight_is_dropped_with_its_probability() -> None:
    case = (40, 60, 1, 2, 60, range(60))
    torch.manual_seed(0)
    mask = mask_of(case, 0.2)
    seen = mask[:, :, torch.ones(60, 60, dtype=torch.bool).tril()]
    assert set(seen.mul(1e4).round().unique().tolist()) == {0.0, 12500.0}
    assert (seen == 0).float().mean().item() == pytest.approx(0.2, abs=0.005)  # 5 standard errors
    assert not torch.equal(mask[0], mask[1]) and not torch.equal(mask[:, 0], mask[:, 1])


def test_a_key_that_is_no_number_leaves_the_tokens_before_it_alone() -> None:
    q, kv = torch.randn(1, 5, 8), torch.randn(1, 5, 16)
    kv[0, 2, 3] = math.nan
    y = attention(q, kv, 1, 5, range(5))
    assert y[0, :2].isfinite().all() and y[0, 2:].isnan().all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rate_and_scale(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    y = Dropout(p)(torch.ones(101, 1003, dtype=dtype))  # odd sizes: the last bits are cut
    assert y.dtype == dtype and set(y.unique().tolist()) == {0.0, y.max().item()}
    assert y.max().item() == pytest.approx(1 / (1 - p), rel=1e-2)
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.006)  # four standard errors


def test_elements_drop_independently() -> None:
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(1 << 20)) > 0).float() - 0.5
    for lag in (1, 2, 3, 4, 128):
        assert (kept[:-lag] * kept[lag:]).mean().abs() < 0.25 * 5 / 1024


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_passes_where_the_value_did(dtype: torch.dtype) -> None:
    """And whole to what is added to it, which keeps its dtype."""
    x, residual = torch.randn(7, 33).to(dtype).requires_grad_(), torch.randn(7, 33)
    residual.requires_grad_()
    y = Dropout(0.3)(x, residual)
    y.sum().backward()
    assert x.grad is not None and residual.grad is not None
    assert y.dtype == torch.float32 and x.grad.dtype == dtype
    assert torch.equal(residual.grad, torch.ones_like(residual))
    torch.testing.assert_close((x.grad * x).float(), y - residual)


def test_seed_fixes_the_mask_and_evaluation_has_none() -> None:
    drop, x = Dropout(0.4), torch.randn(50, 50)
    torch.manual_seed(3)
    first, second = drop(x), drop(x)
    torch.manual_seed(3)
    assert torch.equal(drop(x), first) and not torch.equal(first, second)
    assert torch.equal(drop.eval()(x), x)
    assert torch.equal(drop(x, x), 2 * x)
