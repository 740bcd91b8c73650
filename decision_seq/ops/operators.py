"""Operators of torch, which autograd, torch.compile, torch.export and torch.vmap know.

`torch.library.custom_op` makes the same ones, but the first call of each imports torch's compiler,
which takes as long as all of torch, in every process that trains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.library import infer_schema

_LIBRARY = torch.library.Library("decision_seq", "FRAGMENT")


def operator(name: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """decision_seq::<name>, which changes none of its arguments, on every device.

    Args:
        kernel: computes it; its annotations are the operator's.
        fake: empty tensors of the shapes that `kernel` returns.
    """
    schema = name + infer_schema(kernel, mutates_args=())
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"decision_seq::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.decision_seq, name).default


def differentiable(name: str, backward: Callable[..., Any], save: Callable[..., None]) -> None:
    """Gradients of decision_seq::<name>: backward(ctx, *gradients) of what save(ctx, inputs,
    output) left in the context."""
    qualified = f"decision_seq::{name}"
    torch.library.register_autograd(qualified, backward, setup_context=save, lib=_LIBRARY)


def batched(name: str, rule: Callable[..., tuple[Any, Any]]) -> None:
    """What torch.vmap does with decision_seq::<name>: rule(info, dims, *inputs)."""
    torch.library.register_vmap(f"decision_seq::{name}", rule, lib=_LIBRARY)
