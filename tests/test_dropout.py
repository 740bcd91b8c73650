"""The cheap dropout: rate, scale, gradient, seed."""

from __future__ import annotations

import pytest
import torch

from decision_seq.ops.layers import Dropout


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


def test_gradient_passes_where_the_value_did() -> None:
    x = torch.randn(7, 33, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x, y)


def test_seed_fixes_the_mask_and_evaluation_has_none() -> None:
    drop, x = Dropout(0.4), torch.randn(50, 50)
    torch.manual_seed(3)
    first, second = drop(x), drop(x)
    torch.manual_seed(3)
    assert torch.equal(drop(x), first) and not torch.equal(first, second)
    assert torch.equal(drop.eval()(x), x)
