"""decision-seq: offline reinforcement learning with sequence models.

Trajectory datasets feed one shared sequence-agent interface; the backbone that mixes information
along time is a swappable part; evaluators roll the trained policies out in real environments.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from decision_seq.api import datasets
    from decision_seq.api.comparisons import compare, report
    from decision_seq.api.datasets import collect
    from decision_seq.api.estimates import off_policy
    from decision_seq.api.runs import evaluate, train
    from decision_seq.api.sweeps import sweep
    from decision_seq.errors import UserError
    from decision_seq.policy.policy import load_policy

__all__ = [
    "UserError",
    "collect",
    "compare",
    "datasets",
    "evaluate",
    "load_policy",
    "off_policy",
    "report",
    "sweep",
    "train",
]

# where what is used is imported from, once it is used: torch takes seconds
_PLACES = {
    "UserError": "errors",
    "collect": "api.datasets",
    "compare": "api.comparisons",
    "datasets": "api",
    "evaluate": "api.runs",
    "load_policy": "policy.policy",
    "off_policy": "api.estimates",
    "report": "api.comparisons",
    "sweep": "api.sweeps",
    "train": "api.runs",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
