"""Records: several images, or images and vectors, seen at one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from decision_seq.data.transforms import ObservationNorm
from decision_seq.model.encoders.base import ImageEncoderConfig, image_encoder
from decision_seq.ops.seeds import each_seed
from decision_seq.spaces import Table
from decision_seq.spaces.table import VECTOR


class RecordEncoder(nn.Module):
    """Each image by an encoder of its own, the vector normalised; features side by side.

    Args:
        table: of what a record holds.
        configs: encoders of images by path.
        stack: n, of each image's last; of vectors the newest alone is seen.
    """

    vector_mean: Tensor  # [S]
    vector_std: Tensor

    def __init__(self, table: Table, configs: Mapping[str, ImageEncoderConfig], stack: int) -> None:
        super().__init__()
        self.table = table
        self.images = nn.ModuleDict(
            {
                _key(leaf.path): image_encoder(configs[leaf.path], leaf.kept, stack)
                for leaf in table.images
            }
        )
        self.register_buffer("vector_mean", torch.zeros(table.features))
        self.register_buffer("vector_std", torch.ones(table.features))

    @property
    def features(self) -> int:
        """F"""
        encoders: list[Any] = list(self.images.values())
        return self.table.features + sum(encoder.features for encoder in encoders)

    def fit(self, records: np.ndarray) -> None:
        """Take the statistics of stored records [N]."""
        for leaf in self.table.images:
            self.images[_key(leaf.path)].fit(records[leaf.path])  # type: ignore[operator]
        if self.table.numbers:
            norm = ObservationNorm.of(records[VECTOR], self.table.scaled)
            self.vector_mean.copy_(torch.from_numpy(norm.mean))
            self.vector_std.copy_(torch.from_numpy(norm.std))

    def forward(self, records: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Bytes of stacks of records [..., n, bytes] uint8, or what they hold by name: stacks of
        images [..., n, H, W(, C)] and the newest vector [..., S] -> [..., F]"""
        fields = self._fields(records) if isinstance(records, Tensor) else records
        features = []
        if self.table.numbers:
            vector = fields[VECTOR].to(self.vector_mean.dtype)
            features.append((vector - self.vector_mean) / self.vector_std)
        for leaf in self.table.images:
            features.append(self.images[_key(leaf.path)](fields[leaf.path]))
        return torch.cat(features, dim=-1)

    def _fields(self, records: Tensor) -> dict[str, Tensor]:
        fields = {leaf.path: self._field(records, leaf.path) for leaf in self.table.images}
        if self.table.numbers:
            fields[VECTOR] = self._field(records[..., -1, :], VECTOR)
        return fields

    def _field(self, records: Tensor, name: str) -> Tensor:
        """[..., bytes] -> [..., *shape] of one field"""
        dtype, first = self.table.form.fields[name][:2]  # type: ignore[index]
        part = records[..., first : first + dtype.itemsize]
        if dtype.base != np.uint8:
            part = each_seed(_as_floats, part)  # torch 2.7 cannot for stacked seeds at once
        return part.unflatten(-1, dtype.shape)

    def penalty(self) -> Tensor | float:
        """What training adds to the loss on account of the weights."""
        return sum((encoder.penalty() for encoder in self.images.values()), start=0.0)  # type: ignore[operator]


def _as_floats(part: Tensor) -> Tensor:
    """Bytes [..., 4 S] -> [..., S]"""
    return part.contiguous().view(torch.float32)


def _key(path: str) -> str:
    """Of a module: torch forbids dots."""
    return path.replace(".", "/") or "image"
