"""Backbones: what mixes information along time. One file each; importing it registers it."""

from decision_seq.backbones import (
    attention,
    conv,
    gated_deltanet,
    hybrid,
    imixer,
    lstm,
    mamba,
    mamba2,
    mamba3,
    mixer,
    mlstm,
    pointwise,
    rg_lru,
)
from decision_seq.backbones.block import Backbone, BackboneConfig
from decision_seq.backbones.contract import Layout, Mixer, State

__all__ = [
    "Backbone",
    "BackboneConfig",
    "Layout",
    "Mixer",
    "State",
    "attention",
    "conv",
    "gated_deltanet",
    "hybrid",
    "imixer",
    "lstm",
    "mamba",
    "mamba2",
    "mamba3",
    "mixer",
    "mlstm",
    "pointwise",
    "rg_lru",
]
