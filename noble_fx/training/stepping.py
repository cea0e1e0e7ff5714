"""`noble_fx.step`: what the forms of W ask for between two training steps, in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from noble_fx.attach.attach import named_branches
from noble_fx.attach.bases import structured_layers
from noble_fx.attach.model_config import note
from noble_fx.attach.restore import restored_on_error
from noble_fx.bases.guided import Guided
from noble_fx.errors import ConfigError, shown
from noble_fx.layers.restructure import exchange_base
from noble_fx.layers.structured import Structured
from noble_fx.torch_versions import forget_compiled


def step(model: nn.Module, progress: float, generator: torch.Generator | None = None) -> float:
    """Call it before each training step, with the share of training that is done; returns how much the guides count.

    Sets α of every guide: from 1 at the start to 0 once `guide` of training is done, when the guides are taken out of
    the model, for they would cost a product each for nothing; an optimizer goes on holding their W, which gets no
    gradients any more. Bases of kind "ordered" get the width of this step (one of them a random one, drawn by
    `generator` on the CPU), and the s of "spectral" ones is kept ≥ 0. Buffers alone change, so captured and compiled
    graphs see it. Raises `ConfigError` for what is no share.
    """
    if isinstance(progress, bool) or not isinstance(progress, int | float) or not 0 <= progress <= 1:
        raise ConfigError(f"progress={shown(progress)} must be the share of training that is done, from 0 to 1")
    layers = list(structured_layers(model).values())
    prefixes = _drawn_prefix([layer.base.widths for layer in layers], generator)
    for layer, prefix in zip(layers, prefixes, strict=True):
        layer.base.between_steps(progress, prefix)
    done = [layer for layer in layers if isinstance(layer.base, Guided) and progress >= layer.base.guide]
    if done:
        _take_out_guides(model, done)
    guides = [layer.base.alpha_at(progress) for layer in layers if isinstance(layer.base, Guided)]
    return max(guides, default=0.0)


def _drawn_prefix(widths: list[int], generator: torch.Generator | None) -> list[int | None]:
    """For one of all (layer, width) pairs its width, for all other layers None: their full one."""
    prefixes: list[int | None] = [None] * len(widths)
    total = sum(widths)
    if total:
        at = int(torch.randint(total, (), generator=generator, device="cpu"))
        for index, width in enumerate(widths):
            if at < width:
                prefixes[index] = at + 1
                break
            at -= width
    return prefixes


def _take_out_guides(model: nn.Module, layers: list[Structured]) -> None:
    """Leave these layers their bases alone; their guides learn no more."""
    forget_compiled()
    guides: list[Any] = [layer.base for layer in layers]
    with restored_on_error(model):
        for layer in layers:
            exchange_base(layer, layer.base.inner)  # type: ignore[arg-type]
        for branch in named_branches(model).values():
            branch.config = branch.config.replace(guide=0.0)
        note(model)
    for guided in guides:
        guided.weight.requires_grad_(False).grad = None
