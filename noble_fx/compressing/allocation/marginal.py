"""`allocate="marginal"`: each parameter goes where it takes most of the error away.

Every layer has a curve, the share of its output that is lost against its parameters, which ends at the dense layer
without an error. The least ranks come first, then always the steepest step of all layers' curves, as far as it fits;
steps are those of the curve's lower convex hull, so that a better step never hides behind a worse one.

Some roles lose more of the model than their own error says: q, k, the attention's output and gates stand half of
their rank for a few percent of perplexity, v (and a fused qkv) and the two feed-forward maps do not (2407.11239,
2405.10616). So no layer falls below a part of what an even share would give it, and the second kind not far below.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

from noble_fx.compressing.allocation.base import DENSE, Candidate, check_budget

ROBUST = frozenset({"attention.q", "attention.k", "attention.out", "attention.gate", "ffn.gate", "mixer.gate"})
_FLOORS = {True: 0.25, False: 0.75}  # of an even share: robust roles, and all others

Point = tuple[int, float, int]  # parameters, share that is lost, rank


def marginal(candidates: Sequence[Candidate], keep: float) -> dict[str, int]:
    """Ranks that lose the least for `keep` of the layers' parameters together."""
    budget = check_budget(candidates, keep)
    floors = {each.name: _floor(each, keep) for each in candidates}
    if sum(each.cost(floors[each.name]) for each in candidates) > budget:  # where least ranks are most of the budget
        floors = {each.name: each.ranks[0] if each.ranks else DENSE for each in candidates}
    ranks, left = dict(floors), budget - sum(each.cost(floors[each.name]) for each in candidates)
    curves = {each.name: _points(each, floors[each.name]) for each in candidates}
    steps = [entry for each in candidates for entry in _steps(each.name, curves[each.name])]
    heapq.heapify(steps)
    full: set[str] = set()
    while steps:
        slope, name, (start, _, _), end = heapq.heappop(steps)
        if slope >= 0:
            break  # what is left takes no error away
        if name in full:
            continue
        if end[0] - start > left:
            full.add(name)  # the rest of its curve is flatter, and no nearer
            reached = [point for point in curves[name] if start < point[0] <= start + left]
            end = reached[-1] if reached else (start, 0.0, ranks[name])
        ranks[name], left = end[2], left - (end[0] - start)
    return ranks


def _floor(candidate: Candidate, keep: float) -> int:
    return candidate.within(_FLOORS[candidate.role in ROBUST] * keep * candidate.dense)


def _points(candidate: Candidate, floor: int) -> list[Point]:
    """The layer's curve from its floor on, its dense self last."""
    ranks = [rank for rank in candidate.ranks if rank >= floor] if floor != DENSE else []
    return [(candidate.cost(rank), candidate.lost(rank), rank) for rank in (*ranks, DENSE)]


def _steps(name: str, points: list[Point]) -> list[tuple[float, str, Point, Point]]:
    """The sides of the curve's lower convex hull, each with its slope, the steepest first."""
    hull: list[Point] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return [(_slope(start, end), name, start, end) for start, end in itertools.pairwise(hull)]


def _slope(start: Point, end: Point) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])
