"""Different mixers in different layers, such as Mamba below and attention on top."""

from __future__ import annotations

from dataclasses import dataclass

from decision_seq.backbones.block import BackboneConfig, Block
from decision_seq.backbones.contract import Layout, Mixer
from decision_seq.config import register
from decision_seq.errors import UserError


@register("hybrid", "mixers by layer; cost of the dearest; streams as each of them does")
@dataclass(frozen=True)
class HybridConfig(BackboneConfig):
    """The last layer is of the last kind named, those below it of the kinds before, and where the
    list is used up it starts over from its end: 4 layers of the default are attention, mamba,
    mamba, attention. Each kind has its defaults, with the width, layers and dropout given here."""

    mixers: tuple[str, ...] = ("mamba", "mamba", "attention")

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = sorted(set(self.registry) - {self.kind})
        for name in self.mixers:
            if name not in choices:
                raise UserError(f"mixers names {name!r}; choose from {', '.join(choices)}")
        if not self.mixers:
            raise UserError(f"mixers is empty; name at least one of {', '.join(choices)}")
        for layer in range(self.layers):  # a width that one of them cannot take shows now
            self.part(layer)

    def part(self, layer: int) -> BackboneConfig:
        """Config of layer number `layer`, from 0."""
        kind = self.registry[self.mixers[(layer - self.layers) % len(self.mixers)]]
        return kind(width=self.width, layers=self.layers, dropout=self.dropout)

    def make_block(self, layout: Layout, layer: int) -> Block:
        return self.part(layer).make_block(layout, layer)

    def make_mixer(self, layout: Layout) -> Mixer:
        """The first layer's; the others may differ, so blocks are made by `make_block`."""
        return self.part(0).make_mixer(layout)
