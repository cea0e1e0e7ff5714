"""How the axes of σ's values are cut into tiles.

A value of σ's graphs has at most two axes, each of them the rows, a channel axis of some size, or of size one. A tile's
side must be a power of two, and a tile cannot be sliced, so channel axes are cut beforehand: where one is wider than
the largest tile, and wherever a slice, a split or a concatenation in the graph cuts it. Axes that meet in a pointwise
operator or a product must be cut alike: they are one class of a union–find. `[rows, 2r]` that is chunked into a gate
and a value becomes two tiles `[rows, r]` from the start, and so do the matrix and the product that made it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from noble_fx.codegen.plan import power_of_two

UNIT = -1  # an axis of size one, which is broadcast


@dataclass(frozen=True)
class Segment:
    """Channels `start` to `start + size` of an axis, held in a tile of `tile` lanes; lanes past `size` are padding.

    A single channel is held in a tile of one lane, which broadcasts.
    """

    start: int
    size: int
    tile: int

    @property
    def padded(self) -> bool:
        """True where the tile has lanes that hold no channel."""
        return self.tile != self.size


LANE = Segment(0, 1, 1)  # the only tile of an axis of size one


class Axes:
    """All channel axes of one graph; the rows are axis 0."""

    ROWS = 0

    def __init__(self, widest: int) -> None:
        self._widest = widest
        self._parent = [0]
        self._size = [0]
        self._cuts: dict[int, set[int]] = {}
        self._parts: list[tuple[int, int, int]] = []

    def new(self, size: int) -> int:
        """A channel axis of its own, or `UNIT`."""
        if size == 1:
            return UNIT
        self._parent.append(len(self._parent))
        self._size.append(size)
        return len(self._parent) - 1

    def size(self, axis: int) -> int:
        """Channels of an axis."""
        return 1 if axis == UNIT else self._size[self._root(axis)]

    def tie(self, one: int, other: int) -> int:
        """Cut both alike from now on; returns the axis that is not of size one."""
        if UNIT in (one, other):
            return other if one == UNIT else one
        one, other = sorted((self._root(one), self._root(other)))
        if one == self.ROWS and other != self.ROWS:
            raise ValueError("the rows meet a channel axis")
        self._parent[other] = one
        return one

    def part(self, small: int, whole: int, start: int, size: int) -> None:
        """`small` is channels `start` to `start + size` of `whole`: cuts of one are cuts of the other."""
        self._parts.append((small, whole, start))
        self._cut(whole, {start, start + size})

    def settle(self) -> None:
        """Spread the cuts over all parts until nothing changes."""
        for axis in range(1, len(self._parent)):
            self._cut(axis, set(range(self._widest, self.size(axis), self._widest)))
        before = -1
        while before != (now := sum(map(len, self._cuts.values()))):
            before = now
            for small, whole, start in self._parts:
                size = self.size(small)
                inner = {cut - start for cut in self._known(whole) if start < cut < start + size}
                self._cut(small, inner)
                self._cut(whole, {cut + start for cut in self._known(small)})

    def segments(self, axis: int) -> list[Segment]:
        """The tiles of an axis, in order; one of a single lane for an axis of size one."""
        if axis == UNIT:
            return [LANE]
        ends = [0, *sorted(self._known(axis)), self.size(axis)]
        return [Segment(a, b - a, 1 if b - a == 1 else power_of_two(b - a)) for a, b in pairwise(ends)]

    def is_rows(self, axis: int) -> bool:
        """True for the rows."""
        return axis != UNIT and self._root(axis) == self.ROWS

    def _root(self, axis: int) -> int:
        while self._parent[axis] != axis:
            axis = self._parent[axis]
        return axis

    def _known(self, axis: int) -> set[int]:
        # Axes may have been tied after they were cut: gather over the class.
        if axis == UNIT:
            return set()
        root = self._root(axis)
        return {cut for one, cuts in self._cuts.items() if self._root(one) == root for cut in cuts}

    def _cut(self, axis: int, at: set[int]) -> None:
        size = self.size(axis)
        if axis != UNIT and not self.is_rows(axis):
            self._cuts.setdefault(self._root(axis), set()).update(cut for cut in at if 0 < cut < size)
