"""Arguments that several commands take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from tyro.conf import UseAppendAction, arg

from decision_seq.errors import UserError

if TYPE_CHECKING:  # imported where used: `--help` must not wait for torch
    import torch

Assignments = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(name="set", metavar="KEY=VALUE", help="override a config key; may be repeated"),
]
Device = Annotated[str, arg(help="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one")]


def torch_device(name: str) -> torch.device:
    """The device of that name. Raises UserError where there is none."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name}: is not available here; use auto or cpu") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: is not supported; use auto, cpu, cuda or cuda:N")
    return device
