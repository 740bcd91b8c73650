"""What arrays without a space are taken for: one row a step is all that is known of them."""

from __future__ import annotations

import numpy as np

from decision_seq.spaces.kinds.category import CategoryLeaf
from decision_seq.spaces.kinds.image import STACK, ImageLeaf, channels
from decision_seq.spaces.kinds.vector import VectorLeaf
from decision_seq.spaces.table import Table


def guessed_table(array: np.ndarray) -> Table | None:
    """The table of observations [N, ...]; None of vectors [N, S], gray frames and stacks of them,
    which need none. Whole numbers [N] are taken for numbered things."""
    shape, dtype = array.shape[1:], str(array.dtype)
    if 0 in array.shape or len(shape) == 1:
        return None
    if not shape:
        if array.dtype.kind not in "iub":
            return Table((VectorLeaf("", (), dtype),))
        low, high = min(int(array.min()), 0), int(array.max())
        return Table((CategoryLeaf("", (), "int64", (high - low + 1,), (low,)),))
    axis = channels(shape, dtype, bounded=False)
    if dtype == "uint8" and (len(shape) == 2 or axis is None or STACK in (shape[0],) or 1 in shape):
        return None  # frames as they always were, or refused as they always were
    leaf = VectorLeaf if axis is None else ImageLeaf
    return Table((leaf("", shape, dtype),))
