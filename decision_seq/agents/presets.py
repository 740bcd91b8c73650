"""Named agents: what `agent.preset` in a config expands to before the file's own fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decision_seq.agents.spec import AgentConfig, GuidanceConfig
from decision_seq.config import to_plain

PRESETS: dict[str, dict[str, Any]] = {  # those that say more come before those that say less
    # with values in the loss (QCS, arXiv:2402.02017)
    "q-decision-mamba": {
        "kind": "return_conditioned",
        "guidance": {},
        "backbone": {"kind": "mamba"},
    },
    "q-decision-transformer": {
        "kind": "return_conditioned",
        "guidance": {},
        "backbone": {"kind": "attention"},
    },
    "decision-transformer": {"kind": "return_conditioned", "backbone": {"kind": "attention"}},
    # as the official code trains it: both its timestep embedding and Mamba's step sizes start
    # where learning is hardest (docs/timestep-embedding.md, docs/memory.md)
    "decision-mamba-published": {
        "kind": "return_conditioned",
        "timestep_init": "published",
        "backbone": {"kind": "mamba", "init": "published"},
    },
    "decision-metamamba": {
        "kind": "return_conditioned",
        "backbone": {"kind": "mamba", "dense": 6, "expand": 1},
    },
    "decision-mamba": {"kind": "return_conditioned", "backbone": {"kind": "mamba"}},
    "decision-mamba2": {"kind": "return_conditioned", "backbone": {"kind": "mamba2"}},
    "decision-mamba3": {"kind": "return_conditioned", "backbone": {"kind": "mamba3"}},
    "decision-gated-deltanet": {
        "kind": "return_conditioned",
        "backbone": {"kind": "gated_deltanet"},
    },
    "decision-mlstm": {"kind": "return_conditioned", "backbone": {"kind": "mlstm"}},
    "decision-rg-lru": {"kind": "return_conditioned", "backbone": {"kind": "rg_lru"}},
    "decision-mixer": {
        "kind": "return_conditioned",
        "backbone": {"kind": "mixer", "mixing": "vanilla", "block": "serial"},
    },
    # the mixer that descends an energy: one step of an associative memory a block
    "decision-hopfield": {
        "kind": "return_conditioned",
        "backbone": {"kind": "mixer", "mixing": "symmetric", "block": "parallel"},
    },
    "decision-imixer": {"kind": "return_conditioned", "backbone": {"kind": "imixer"}},
    "decision-convformer": {"kind": "return_conditioned", "backbone": {"kind": "conv"}},
    "decision-hybrid": {"kind": "return_conditioned", "backbone": {"kind": "hybrid"}},
    "decision-lstm": {"kind": "return_conditioned", "backbone": {"kind": "lstm"}},
    "reinformer": {"kind": "max_return", "backbone": {"kind": "attention"}},
    "goal-decision-mamba": {"kind": "goal_conditioned", "backbone": {"kind": "mamba"}},
    "goal-decision-transformer": {"kind": "goal_conditioned", "backbone": {"kind": "attention"}},
    # one step of context and no mixing: the usual residual MLP from observation to action
    "bc": {
        "kind": "behaviour_cloning",
        "context_length": 1,
        "tokens": ["observation"],
        "backbone": {"kind": "pointwise"},
    },
}


def preset_of(config: AgentConfig) -> str | None:
    """The preset whose fields `config` has, or None if it has none's; guidance of any strength is
    that of its preset."""
    plain = to_plain(config)
    if config.guidance is not None:
        plain["guidance"] = to_plain(GuidanceConfig())
    return next((name for name, fields in PRESETS.items() if _within(fields, plain)), None)


def _within(part: Any, whole: Any) -> bool:
    if not isinstance(part, Mapping):
        return bool(part == whole)
    return isinstance(whole, Mapping) and all(
        _within(value, whole.get(key)) for key, value in part.items()
    )
