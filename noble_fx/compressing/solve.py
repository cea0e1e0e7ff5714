"""From the sums of a layer to its factors: what each rank loses, and the layer at the rank that is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from noble_fx.compressing.factors import Factors
from noble_fx.compressing.gather import Sums
from noble_fx.compressing.methods.base import Method
from noble_fx.compressing.places import Place
from noble_fx.compressing.problem import Problem
from noble_fx.compressing.residual import Fit, residual
from noble_fx.compressing.target import Terms, corrected, refitted, variation


@dataclass(frozen=True)
class Replacement:
    """A layer at one rank: A [N, k], B [k, K], b' [N] or None, U' [N, r] or None where no branch is refitted."""

    up: Tensor
    down: Tensor
    bias: Tensor | None
    branch_up: Tensor | None
    error: float


@dataclass(frozen=True)
class Solution:
    """One layer at all ranks; without a `fit` it was solved without data, and b and U stay."""

    factors: Factors
    terms: Terms | None = None  # in float64, where they are not the layer's own any more
    fit: Fit | None = None
    of_outputs: bool = False
    centred: bool = False

    def at(self, place: Place, rank: int) -> Replacement:
        """The layer at a rank."""
        up, down = self.factors.at(rank)
        error = self.factors.error(rank)
        if self.fit is None:
            return Replacement(up, down, place.bias, None, error)
        terms = self.terms or place.terms
        branch_up, bias = refitted(terms, _missing(terms.weight, up, down, self.of_outputs), self.fit, self.centred)
        return Replacement(up, down, bias, branch_up if place.branch is not None else None, error)


def _missing(weight: Tensor, up: Tensor, down: Tensor, of_outputs: bool) -> Callable[[Tensor], Tensor]:
    """(W − A B) m; in outputs z = W x it is (1 − A Aᵀ) m, since B is Aᵀ W there."""
    up = up.to(weight.dtype)
    if of_outputs:
        return lambda m: m - up @ (up.T @ m)
    down = down.to(weight.dtype)
    return lambda m: weight @ m - up @ (down @ m)


def solve(place: Place, sums: Sums | None, method: Method, centred: bool) -> Solution:
    """All ranks of one layer; `centred` where it may have a bias that is fitted."""
    terms = place.terms
    if sums is None:
        return Solution(_stored(method.factorise(Problem.without_data(terms.weight)), place))
    given, free = sums.sums.to(terms.weight.device), place.free
    rest = residual(given, free, centred)
    total = variation(terms, rest, sums.of_outputs)
    own = None
    if (cross := sums.cross) is not None:
        terms = own = corrected(terms, given, cross.to(terms.weight.device), centred)
    data = {"outputs" if sums.of_outputs else "inputs": rest.rest}
    factors = method.factorise(Problem(terms.weight, total=total, **data))
    return Solution(_stored(factors, place), own, rest.fit, sums.of_outputs, centred)


def needed_rows(place: Place) -> int:
    """How many rows a layer must have seen: fewer leave directions of its output that cost nothing to lose."""
    return min(place.site.in_features, place.site.out_features) + place.free + 1


def _stored(factors: Factors, place: Place) -> Factors:
    """Both factors in float32, or better where the weight is: a model has many of them at once."""
    dtype = torch.promote_types(place.weight.dtype, torch.float32)
    return replace(factors, left=factors.left.to(dtype), right=factors.right.to(dtype))
