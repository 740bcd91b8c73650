"""Frames of LeRobot's cameras: of videos, which ffmpeg decodes, or of pictures beside the rows."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.errors import UserError


class Film:
    """The frames of one camera, in the order of the rows, whatever files they are in.

    Args:
        folder: of the dataset.
        camera: its feature, `observation.images.top`.
        size: (height, width) to make of the frames; by default theirs.
    """

    def __init__(self, folder: Path, camera: str, size: tuple[int, int] | None) -> None:
        self.files = videos(folder, camera)
        if not self.files:
            raise UserError(f"{folder / 'videos'}: has no videos of {camera}; fetch them as well")
        self.camera, self._frames = camera, _frames(self.files, size)

    def take(self, steps: int, place: str) -> np.ndarray:
        """The next frames [steps, H, W, 3] uint8. Raises UserError where there are fewer."""
        frames = list(islice(self._frames, steps))
        if len(frames) < steps:
            raise UserError(
                f"{place}: {self.camera} has fewer frames than rows; a video may be cut off"
            )
        return np.stack(frames)

    def close(self) -> None:
        """Raise UserError where there are frames without rows."""
        if next(self._frames, None) is not None:
            raise UserError(
                f"{self.files[-1]}: {self.camera} has more frames than rows; fetch the folder again"
            )


def videos(folder: Path, camera: str) -> list[Path]:
    """The files of a camera in the order of their numbers: a folder is called after it."""
    found = [path for path in folder.glob("videos/**/*.mp4") if camera in path.parts]
    return sorted(found)


def _frames(files: Sequence[Path], size: tuple[int, int] | None) -> Iterator[np.ndarray]:
    try:
        import imageio_ffmpeg
    except ImportError:
        raise UserError(
            f"{files[0]}: reading videos needs ffmpeg; pip install 'decision-seq[video]'"
        ) from None
    scale = ["-vf", f"scale={size[1]}:{size[0]}:flags=area"] if size else []
    for file in files:
        # every frame as it is in the file: none repeated or dropped to keep a rhythm
        reader = imageio_ffmpeg.read_frames(
            str(file), output_params=["-fps_mode", "passthrough", *scale]
        )
        try:
            width, height = next(reader)["size"]
            for frame in reader:
                yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
        except (OSError, RuntimeError, StopIteration) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"{file}: cannot be read as a video ({said})") from None


def pictures(column: Any, place: str, size: tuple[int, int] | None) -> np.ndarray:
    """[steps, H, W, 3] uint8 of a column of encoded pictures, {bytes, path} each."""
    from PIL import Image

    decoded = []
    for cell in column.to_pylist():
        try:
            picture = Image.open(io.BytesIO(cell["bytes"])).convert("RGB")
        except (OSError, TypeError, KeyError) as error:
            raise UserError(f"{place}: a picture cannot be read ({error})") from None
        if size:
            picture = picture.resize((size[1], size[0]), Image.Resampling.BOX)
        decoded.append(np.asarray(picture))
    return np.stack(decoded)
