"""Named agents: what `agent.preset` in a config expands to before the file's own fields."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "decision-transformer": {"kind": "return_conditioned", "backbone": {"kind": "attention"}},
    "decision-mamba": {"kind": "return_conditioned", "backbone": {"kind": "mamba"}},
    # one step of context and no mixing: the usual residual MLP from observation to action
    "bc": {
        "kind": "behaviour_cloning",
        "context_length": 1,
        "tokens": ["observation"],
        "backbone": {"kind": "none"},
    },
}
