"""`allocate="welore"`: one threshold for all layers, on singular values brought to the range from 0 to 1 (2407.11239).

A matrix whose values fall off fast keeps few of them, one whose values are alike keeps all and stays dense. The
range is set by the single largest value, which is this rule's weakness.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from noble_fx.compressing.allocation.base import DENSE, Candidate, check_budget


def threshold(candidates: Sequence[Candidate], keep: float) -> dict[str, int]:
    """The ranks at the smallest threshold that keeps within the budget; it is among the values themselves."""
    budget = check_budget(candidates, keep)
    values = {each.name: _normalised(each.spectrum) for each in candidates}
    levels = torch.cat([*values.values(), torch.tensor([2.0], dtype=torch.float64)]).unique()
    low, high = 0, len(levels) - 1  # cost falls as the threshold rises; at the last one nothing but least ranks is left
    while low < high:
        middle = (low + high) // 2
        ranks = _ranks(candidates, values, float(levels[middle]))
        fits = sum(each.cost(ranks[each.name]) for each in candidates) <= budget
        low, high = (low, middle) if fits else (middle + 1, high)
    return _ranks(candidates, values, float(levels[low]))


def _ranks(candidates: Sequence[Candidate], values: dict[str, Tensor], level: float) -> dict[str, int]:
    counts = {each.name: int((values[each.name] >= level).sum()) for each in candidates}
    return {each.name: each.cut_to(counts[each.name]) if each.ranks else DENSE for each in candidates}


def _normalised(spectrum: Tensor) -> Tensor:
    """The values from 0, the least, to 1, the largest; all 1 where all are equal."""
    values = spectrum.detach().cpu().double()
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else torch.ones_like(values)
