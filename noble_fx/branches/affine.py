"""A σ that is an affine map, σ(h) = h Mᵀ + m, as its two tensors: such a branch is an affine map itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from noble_fx.branches.activations import Mixer, ScaleShift, Signed
from noble_fx.branches.adapters import Weighted

# Exact classes only, and chains of these.
_AFFINE = frozenset((nn.Identity, Mixer, ScaleShift, Signed, nn.Linear, nn.Sequential, Weighted))


def is_affine(act: nn.Module) -> bool:
    """Whether it is of parts that are known to be affine, none of them with a forward put on the object."""
    return all(type(part) in _AFFINE and "forward" not in vars(part) for part in act.modules())


def affine_map(act: Callable[[Tensor], Tensor], like: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(M [r, r], m [r]) of an affine σ in the dtype of `like`: what it makes of the basis, and of zero."""
    basis = torch.cat([torch.eye(rank), torch.zeros(1, rank)]).to(like)
    *_, shift = rows = act(basis)
    return (rows[:-1] - shift).t(), shift
