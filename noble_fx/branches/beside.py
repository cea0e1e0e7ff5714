"""Linear maps beside a branch as operands of the operator: one bottleneck, h = [h₁ h₂] = x [D₁; D₂]ᵀ + [d; 0].

y = x Wᵀ + b + σ(h₁) U₁ᵀ + (h₂ ⊙ gate) U₂ᵀ        the kernels are those of any other σ of r₁ + r₂ channels
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from noble_fx.branches import keys
from noble_fx.branches.adapters import GATE, Adapters, SideBySide, Weighted
from noble_fx.branches.bound import FusedForm, is_untouched, names_of
from noble_fx.branches.trace import why_untraceable
from noble_fx.errors import Refusal

_PLACE = "adapters"  # where a branch has them


def linear_form(adapters: Adapters) -> FusedForm | Refusal:
    """The operands of linear maps alone."""
    key = keys.activation_key(Weighted(adapters.gate), "linear", adapters.rank)
    if refusal := why_untraceable(key, adapters.rank):
        return refusal
    downs, ups = adapters.matrices(_PLACE)
    unchanged = _as_it_was(adapters, lambda: True)
    return FusedForm(downs, None, ups, None, (f"{_PLACE}.{GATE}",), key, _ranks(adapters), unchanged)


def form_beside(form: FusedForm, act: nn.Module, label: str, rank: int, adapters: Adapters) -> FusedForm | Refusal:
    """The operands of a branch of `rank` channels, whose own are `form`, with linear maps beside it."""
    width = rank + adapters.rank
    key = keys.activation_key(SideBySide(act, adapters.gate, rank), f"{label}+linear", width)
    if refusal := why_untraceable(key, width):
        return refusal
    downs, ups = adapters.matrices(_PLACE)
    # σ's parameters, then its buffers, of which the gate is the last.
    return replace(
        form,
        down=(*names_of(form.down), *downs),
        up=(*names_of(form.up), *ups),
        act=(*form.act, f"{_PLACE}.{GATE}"),
        key=key,
        ranks=(rank, *_ranks(adapters)),
        unchanged=_as_it_was(adapters, form.unchanged),
    )


def _ranks(adapters: Adapters) -> tuple[int, ...]:
    return tuple(adapter.rank for adapter in adapters.named().values())


def _as_it_was(adapters: Adapters, unchanged: Callable[[], bool]) -> Callable[[], bool]:
    """False too where the adapters are not those that were bound, or draw at random (dropout in training)."""
    children: Any = adapters._modules
    count = len(children)

    def as_it_was() -> bool:
        return unchanged() and len(children) == count and is_untouched(adapters) and not adapters.draws

    return as_it_was
