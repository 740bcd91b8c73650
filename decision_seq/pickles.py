"""Reading pickles without running them: plain values and numeric arrays are built, nothing else.

A pickle is a program: each class it names is looked up and called. Here the only names it can look
up are the ones numpy pickles arrays with, of numpy 1 and 2, and those stand for functions of this
module that check what they are given. numpy's own are not used, because a forged dtype makes
them read memory that is not theirs. Python's unpickler in Python is used rather than the one in C,
which reserves as much memory as a damaged file asks for.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

NUMERIC = re.compile(r"[biufc]\d{1,2}")  # dtype codes; objects and records are refused


class RefusedClass(pickle.UnpicklingError):
    """A pickle asks for something that is no plain value and no array. `asked` names it."""

    def __init__(self, asked: str) -> None:
        super().__init__(f"it asks for {asked}")
        self.asked = asked


def load_plain(data: bytes, stand_ins: bool = False) -> Any:
    """Build what a pickle of any protocol holds: None, numbers, text, lists, tuples, dicts, arrays.

    Args:
        data: the whole file.
        stand_ins: instead of refusing other classes, put a `StandIn` in their place, which keeps
            its state and does nothing.

    Raises:
        RefusedClass: the pickle names something else.
        pickle.UnpicklingError: it is damaged, or holds arrays of objects.
    """
    try:
        return _PlainUnpickler(io.BytesIO(data), stand_ins).load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way; none of its code has run
        reason = " ".join(str(error).split())
        raise pickle.UnpicklingError(f"{type(error).__name__}: {reason}"[:200]) from None


class StandIn:
    """Takes the place of an object of a class that is not loaded; `state` is what it held."""

    def __init__(self, *_args: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


class _PlainUnpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: io.BytesIO, stand_ins: bool) -> None:
        super().__init__(file)
        self._stand_ins = stand_ins

    def find_class(self, module: str, name: str) -> Any:
        found = _REBUILDERS.get((module.replace("numpy.core.", "numpy._core."), name))
        if found is not None:
            return found
        if self._stand_ins:
            return type(name, (StandIn,), {})
        raise RefusedClass(f"{module}.{name}")

    def load_bytearray8(self) -> None:
        """Protocol 5's bytes of an array. The original reserves the length before it reads."""
        read: Callable[[int], bytes] = self.read  # type: ignore[attr-defined]
        (length,) = struct.unpack("<Q", read(8))
        self.append(read(length))  # type: ignore[attr-defined]

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


class _Rebuilder:
    """A function that a pickle may call, but not change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, _state: Any) -> None:
        raise pickle.UnpicklingError("it tries to change a function")


class _Dtype:
    """A dtype while it is read; of its state only the byte order counts."""

    def __init__(self, code: str, *_flags: Any) -> None:
        self._code, self._order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = state[1] if state[1] in ("<", ">") else "="

    def numeric(self) -> np.dtype:
        if NUMERIC.fullmatch(self._code) is None:
            raise pickle.UnpicklingError(f"it holds an array of {self._code}, not of numbers")
        return np.dtype(self._order + self._code)


class _Array(np.ndarray):
    """An array while it is read."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran, raw = state
        array = _from_bytes(raw, dtype, shape, "F" if fortran else "C")
        super().__setstate__((1, array.shape, array.dtype, bool(fortran), raw))  # type: ignore[arg-type]


def _from_bytes(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    plain = dtype.numeric()
    if not isinstance(raw, bytes) or len(raw) != math.prod(shape) * plain.itemsize:
        raise pickle.UnpicklingError("an array's bytes and its shape do not fit")
    return np.frombuffer(raw, plain).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _Dtype, raw: bytes) -> Any:
    return _from_bytes(raw, dtype, (1,), "C")[0]


def _old_bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """Protocol 2 writes bytes as text, and no bytes as `bytes()`."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes are encoded as {encoding}")
    return text.encode("latin1")


def _no_array(*_args: Any) -> None:
    raise pickle.UnpicklingError("it calls numpy.ndarray, which arrays are not pickled with")


_REBUILDERS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Rebuilder(_no_array),  # an argument of `_reconstruct`
    ("numpy", "dtype"): _Rebuilder(_Dtype),
    ("numpy._core.multiarray", "_reconstruct"): _Rebuilder(lambda *_: _Array(0)),
    ("numpy._core.multiarray", "scalar"): _Rebuilder(_scalar),
    ("numpy._core.numeric", "_frombuffer"): _Rebuilder(_from_bytes),
    ("_codecs", "encode"): _Rebuilder(_old_bytes),
    ("builtins", "bytes"): _Rebuilder(_old_bytes),
    ("__builtin__", "bytes"): _Rebuilder(_old_bytes),
}
