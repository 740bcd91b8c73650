"""Actions of several parts: how each kind of part is read, predicted, compared and chosen."""

from decision_seq.model.actions import bits, box, category  # noqa: F401  # register the parts
from decision_seq.model.actions.codec import ActionCodec

__all__ = ["ActionCodec"]
