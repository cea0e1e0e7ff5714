"""`noble_fx.step`: what the forms of W ask for between two training steps, in one call."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.attach.attach import named_branches
from noble_fx.attach.bases import structured_layers
from noble_fx.attach.model_config import note
from noble_fx.attach.restore import restored_on_error
from noble_fx.attach.unwrapped import same_on_every_rank
from noble_fx.bases.guided import Guided
from noble_fx.errors import ConfigError, shown
from noble_fx.layers.restructure import exchange_base
from noble_fx.layers.structured import Structured
from noble_fx.torch_versions import forget_compiled

_STAY = (
    "the guides count for nothing any more, and cost a product each: DistributedDataParallel would miss their "
    "gradients. Call noble_fx.step on the plain model inside, which takes them out, and wrap that anew"
)


def step(model: nn.Module, progress: float, generator: torch.Generator | None = None) -> float:
    """Call it before each training step, with the share of training that is done; returns how much the guides count.

    Sets α of every guide: from 1 at the start to 0 once `guide` of training is done, when the guides are taken out of
    the model, for they would cost a product each for nothing; an optimizer goes on holding their W, which gets no
    gradients any more. (Inside DistributedDataParallel they stay, with a warning that says what to do.) Bases of kind
    "ordered" get the width of this step: all of it, but for a random one of them, drawn by `generator` on the CPU. The
    s of "spectral" ones is kept ≥ 0. Up to the end of the guides tensors alone change, so captured and compiled graphs
    see it. Raises `ConfigError` for what is no share.
    """
    if isinstance(progress, bool) or not isinstance(progress, int | float) or not 0 <= progress <= 1:
        raise ConfigError(f"progress={shown(progress)} must be the share of training that is done, from 0 to 1")
    layers = structured_layers(model)
    guided = {fqn: layer.base for fqn, layer in layers.items() if isinstance(layer.base, Guided)}
    alpha = max((base.alpha_at(progress) for base in guided.values()), default=0.0)
    over = [fqn for fqn, base in guided.items() if progress >= base.guide]
    if any(same_on_every_rank(model, fqn) for fqn in over):
        warnings.warn(_STAY, stacklevel=2)
        over = []
    bases = [layer.base for layer in layers.values()]
    prefixes = _drawn_prefix([base.widths for base in bases], generator)
    stepped = [tensor for base in bases for tensor in base.stepped()]
    with _kept(model, stepped) if over else _put_back_on_error(stepped):
        for base, prefix in zip(bases, prefixes, strict=True):
            base.between_steps(progress, prefix)
        _without_guides(model, [layers[fqn] for fqn in over])
    for fqn in over:
        guided[fqn].weight.requires_grad_(False).grad = None
    return alpha


@contextmanager
def _kept(model: nn.Module, tensors: list[Tensor]) -> Iterator[None]:
    """Inside, the model may change, and these tensors; whatever is raised puts all back."""
    forget_compiled()
    with restored_on_error(model) as before:
        before.keep(tensors)
        yield


@contextmanager
def _put_back_on_error(tensors: list[Tensor]) -> Iterator[None]:
    """The same for the tensors alone, without a look at the model or a copy to the CPU: for every step."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        raise


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


def _without_guides(model: nn.Module, layers: list[Structured]) -> None:
    """Leave these layers their bases alone, and let the settings say so."""
    for layer in layers:
        guided: Any = layer.base
        exchange_base(layer, guided.inner)
    if layers:
        for branch in named_branches(model).values():
            branch.config = branch.config.replace(guide=0.0)
        note(model)
