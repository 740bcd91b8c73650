"""The optimiser that does not import torch's compiler is torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from decision_seq.ops.adamw import AdamW


def trained(kind: Any, **settings: Any) -> dict[str, Any]:
    """State of model and optimiser after some steps, in the middle of which both are resumed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 3))
    optimizer = kind(model.parameters(), lr=1e-2, **settings)
    for number in range(20):
        model(torch.randn(5, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        if number == 10:
            before = optimizer.state_dict()
            optimizer = kind(model.parameters(), lr=1.0, **settings)
            optimizer.load_state_dict(before)
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


@pytest.mark.parametrize("settings", [{"weight_decay": 0.1}, {"weight_decay": 0.1, "fused": True}])
def test_it_is_torchs_bit_for_bit(settings: dict[str, Any]) -> None:
    expected = trained(torch.optim.AdamW, **settings)
    torch.testing.assert_close(trained(AdamW, **settings), expected, rtol=0, atol=0)


def test_without_decay_it_is_adam() -> None:
    found = trained(AdamW, weight_decay=0, fused=True)["model"]
    torch.testing.assert_close(
        found, trained(torch.optim.Adam, fused=True)["model"], rtol=0, atol=0
    )
