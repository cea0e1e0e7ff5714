"""`allocate="uniform"`: every layer keeps the same share of its parameters."""

from __future__ import annotations

from collections.abc import Sequence

from noble_fx.compressing.allocation.base import Candidate, check_budget


def uniform(candidates: Sequence[Candidate], keep: float) -> dict[str, int]:
    """The largest rank within `keep` of each layer's own parameters; less where the least ranks cost too much."""
    budget = check_budget(candidates, keep)
    low, high = 0.0, keep
    if _cost(candidates, keep) <= budget:
        low = keep
    else:  # some layer's least rank is more than its share, so the others take less
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if _cost(candidates, middle) <= budget else (low, middle)
    return {each.name: each.within(low * each.dense) for each in candidates}


def _cost(candidates: Sequence[Candidate], share: float) -> int:
    return sum(each.cost(each.within(share * each.dense)) for each in candidates)
