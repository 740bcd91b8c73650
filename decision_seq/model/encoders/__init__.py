"""Image encoders; importing this package registers every one of them."""

from decision_seq.model.encoders import mixers  # noqa: F401
from decision_seq.model.encoders.base import FrameEncoder, ImageEncoder, ImageEncoderConfig
from decision_seq.model.encoders.convolutions import NatureConfig

__all__ = ["FrameEncoder", "ImageEncoder", "ImageEncoderConfig", "NatureConfig"]
