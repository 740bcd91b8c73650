"""MuJoCo without warnings: by default it writes each into MUJOCO_LOG.TXT in the working folder,
version 4 one already for the model of HalfCheetah."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

_lock = threading.Lock()
_users = 0
_before: Any = None  # the user's own handler


@contextlib.contextmanager
def quiet_mujoco() -> Iterator[None]:
    """MuJoCo's warnings are dropped until the last of those that are within leaves; its handler of
    warnings, which a process has one of, then is what it was."""
    global _users, _before
    import mujoco

    if not hasattr(mujoco, "get_mju_user_warning"):
        yield
        return
    with _lock:
        if _users == 0:
            _before = mujoco.get_mju_user_warning()
            mujoco.set_mju_user_warning(_drop)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                mujoco.set_mju_user_warning(_before)


def _drop(_message: str) -> None:
    pass
