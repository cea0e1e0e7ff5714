"""What "auto" passes over inside repeated blocks: maps that are no part of what a block computes of its tokens.

The role says so, or for a 1×1 convolution what stands around it: among larger convolutions it is a piece of a CNN's
backbone; in the block of an attention, or where no larger one is, it is a linear layer under another name.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from noble_fx.errors import Refusal
from noble_fx.sites.blocks import repeated_blocks
from noble_fx.sites.layer_maps import LinearMap

_BY_ROLE = {
    "embedding": Refusal("it makes embeddings, and is no part of a block"),
    "position": Refusal("it is about positions, not features"),
    "modulation": Refusal("it makes scales and shifts from a condition"),
}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTION = Refusal("a 1x1 convolution among larger ones")
_TOKEN_MIXERS = ("attention.", "mixer.")


def with_defaults(model: nn.Module, maps: list[LinearMap]) -> list[LinearMap]:
    """The maps, each with the reason for which "auto" passes over it, if any."""
    mixing = [entry.site.fqn for entry in maps if entry.site.role.startswith(_TOKEN_MIXERS)]
    larger = [fqn for fqn, module in model.named_modules() if isinstance(module, _CONVOLUTIONS) and _is_large(module)]
    around = sorted(repeated_blocks(model), key=len, reverse=True)

    def passed_over(entry: LinearMap) -> Refusal | None:
        if entry.site.role in _BY_ROLE:
            return _BY_ROLE[entry.site.role]
        if not isinstance(entry.module, _CONVOLUTIONS):
            return None
        for block in around:  # the innermost first
            if _inside(entry.site.fqn, block):
                if any(_inside(fqn, block) for fqn in mixing):
                    return None
                if any(_inside(fqn, block) for fqn in larger):
                    return _CONVOLUTION
        return _CONVOLUTION if larger else None

    return [replace(entry, passed_over=passed_over(entry)) for entry in maps]


def _inside(fqn: str, block: str) -> bool:
    return fqn.startswith(block + ".")


def _is_large(convolution: Any) -> bool:
    return any(size > 1 for size in convolution.kernel_size)
