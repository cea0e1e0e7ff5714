"""(G + δ I)⁻¹ of small symmetric matrices G [r, r], in float32 or better, many in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from noble_fx.errors import ConfigError, shown


def check_damping(damping: float) -> float:
    """A δ > 0, without which a U of zeros has no inverse; raises `ConfigError`."""
    if isinstance(damping, bool) or not isinstance(damping, int | float) or not 0 < damping < float("inf"):
        raise ConfigError(f"damping={shown(damping)} must be a number above 0: U = 0 has no inverse without it")
    return float(damping)


def wide(tensor: Tensor) -> Tensor:
    """In float32, or in float64 where it is."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def spectra(grams: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(λ [r], V [r, r]) of each G = V diag(λ) Vᵀ, λ ≥ 0; those of one shape in one call."""
    groups: dict[object, list[int]] = {}
    for at, gram in enumerate(grams):
        groups.setdefault((gram.shape, gram.dtype, gram.device), []).append(at)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for places in groups.values():
        values, vectors = torch.linalg.eigh(torch.stack([grams[at] for at in places]))
        found |= dict(zip(places, zip(values.clamp(min=0), vectors, strict=True), strict=True))
    return [found[at] for at in range(len(grams))]


def inverses(grams: list[Tensor], damping: float) -> list[Tensor]:
    """(G + δ I)⁻¹ [r, r] of each."""
    return [(vectors / (values + damping)) @ vectors.mT for values, vectors in spectra(grams)]
