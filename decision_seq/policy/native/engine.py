"""Calls of csrc/policy.c."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np

from decision_seq.agents.base import SequenceAgent
from decision_seq.ops.c import build
from decision_seq.ops.c.cpu import threads
from decision_seq.policy.eager import Inputs
from decision_seq.policy.native.pack import pack, unpackable
from decision_seq.settings import Context

POINTER, INT = ctypes.c_void_p, ctypes.c_int
LIBRARY = build.Library(
    "policy",
    Path(__file__).parent / "csrc",
    {
        "policy_open": (POINTER, [POINTER, INT, INT, INT]),
        "policy_step": (None, [*[POINTER] * 5, INT]),
        "policy_reset": (None, [POINTER, POINTER]),
        "policy_keep": (None, [POINTER, POINTER]),
        "policy_close": (None, [POINTER]),
    },
)


class NativeEngine:
    """Lanes of an agent that C knows; their memory is C's."""

    def __init__(self, agent: SequenceAgent, context: Context, lanes: int) -> None:
        self.block, self.library = pack(agent), LIBRARY.load()
        self.lanes, self.outputs = lanes, agent.spec.action_dim
        address = self.block.ctypes.data
        self.policy = self.library.policy_open(address, lanes, context == "window", threads())
        if not self.policy:
            raise MemoryError(f"no memory for {lanes} lanes")
        weakref.finalize(self, self.library.policy_close, self.policy)

    @staticmethod
    def unusable(agent: SequenceAgent) -> str:
        """Why it cannot act for `agent` here, or ""."""
        return unpackable(agent) or LIBRARY.unusable()

    def start(self, inputs: Inputs) -> Callable[[], np.ndarray]:
        """See `Engine`; it is done when this returns."""
        observation = np.ascontiguousarray(inputs.observation, np.float32)
        predicted = np.empty((self.lanes, self.outputs), np.float32)
        arrays = (observation, inputs.action, inputs.return_to_go, predicted)
        self.library.policy_step(self.policy, *(array.ctypes.data for array in arrays), threads())
        return lambda: predicted

    def reset(self, lanes: np.ndarray) -> None:
        """See `Engine`."""
        self.library.policy_reset(self.policy, np.ascontiguousarray(lanes).ctypes.data)

    def keep(self, lanes: np.ndarray) -> None:
        """See `Engine`."""
        self.library.policy_keep(self.policy, np.ascontiguousarray(lanes).ctypes.data)
        self.lanes = int(lanes.sum())
