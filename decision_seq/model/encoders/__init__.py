"""Image encoders; importing this package registers every one of them."""

from decision_seq.model.encoders import mixers  # noqa: F401
from decision_seq.model.encoders.base import ImageEncoder, ImageEncoderConfig

__all__ = ["ImageEncoder", "ImageEncoderConfig"]
