"""Layers to spread a budget over, made by hand."""

import torch

from noble_fx.compressing.allocation.base import Candidate


def layer(name: str, outputs: int = 64, inputs: int = 64, decay: float = 0.2, role: str = "attention.q", **settings):
    """One whose directions are worth exp(-decay i)."""
    spectrum = torch.exp(-decay * torch.arange(min(outputs, inputs), dtype=torch.float64))
    lost = torch.cat([spectrum.square().flip(0).cumsum(0).flip(0), spectrum.new_zeros(1)])
    return Candidate(name, role, outputs, inputs, lost / lost[0], spectrum, **settings)


LAYERS = [
    layer("steep", decay=0.5),
    layer("flat", decay=0.01),
    layer("wide", 256, 64, decay=0.1, role="ffn.in"),
    layer("narrow", 64, 256, decay=0.05, role="ffn.out"),
    layer("tiny", 12, 12, decay=0.3),
]
