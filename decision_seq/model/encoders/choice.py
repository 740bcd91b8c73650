"""Which encoder an observation gets: what a config says, else what suits its images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decision_seq.envs.atari import FRAME_STACK
from decision_seq.errors import UserError
from decision_seq.model.encoders.base import FrameEncoder, ImageEncoderConfig, image_encoder
from decision_seq.model.encoders.convolutions import SMALLEST, NatureConfig, SmallConfig
from decision_seq.model.encoders.record import RecordEncoder
from decision_seq.spaces import Table


def observation_encoder(
    shape: tuple[int, ...],
    table: Table | None,
    encoder: ImageEncoderConfig | None,
    encoders: Mapping[str, ImageEncoderConfig],
    stack: int | None,
) -> FrameEncoder | RecordEncoder | None:
    """For observations of that shape: of one image, or of the records of `table`; None for vectors,
    which need none.

    Args:
        shape: (S,), (H, W(, C)) of images, () of records.
        table: of records.
        encoder: of images, by default what suits each.
        encoders: of images by path, before `encoder`.
        stack: last images seen at a step; by default 4 of gray, 1 of others.
    """
    if len(shape) == 1:
        return None
    if shape:
        n = stack or (FRAME_STACK if len(shape) == 2 else 1)
        return image_encoder(encoder or _suiting(shape), shape, n)
    assert table is not None
    return RecordEncoder(table, _by_path(table, encoder, encoders), stack or 1)


def chosen_encoders(
    shape: tuple[int, ...],
    table: Table | None,
    encoder: ImageEncoderConfig | None,
    encoders: Mapping[str, ImageEncoderConfig],
) -> dict[str, Any]:
    """The fields `encoder` and `encoders` of a config with what is chosen where it says nothing.

    Raises UserError where it names an image that there is not."""
    paths = [leaf.path for leaf in table.images] if table and not shape else []
    if unknown := [path for path in encoders if path not in paths]:
        there = f"there are {', '.join(paths)}" if paths else "of one image, write agent.encoder"
        raise UserError(f"agent.encoders names {unknown[0]!r}, no image of the data ({there})")
    if shape:
        return {"encoder": encoder or _suiting(shape)}
    assert table is not None
    return {"encoders": _by_path(table, encoder, encoders)}


def _by_path(
    table: Table,
    encoder: ImageEncoderConfig | None,
    encoders: Mapping[str, ImageEncoderConfig],
) -> dict[str, ImageEncoderConfig]:
    return {i.path: encoders.get(i.path) or encoder or _suiting(i.kept) for i in table.images}


def _suiting(kept: tuple[int, ...]) -> ImageEncoderConfig:
    """For images [H, W] or [H, W, C]."""
    return SmallConfig() if min(kept[:2]) < SMALLEST else NatureConfig()
