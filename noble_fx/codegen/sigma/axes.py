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

    A single channel is held in a tile of one lane, which broadcasts. A segment wider than its tile is walked: a program
    holds the tile that its place in the grid says.
    """

    start: int
    size: int
    tile: int

    @property
    def walked(self) -> bool:
        """True where the grid says which tile of these channels a program holds."""
        return self.tile < self.size

    @property
    def padded(self) -> bool:
        """True where a tile has lanes that hold no channel."""
        return self.size % self.tile != 0


LANE = Segment(0, 1, 1)  # the only tile of an axis of size one


class Axes:
    """All channel axes of one graph; the rows are axis 0."""

    ROWS = 0

    def __init__(self, widest: int) -> None:
        self._widest = widest
        self.walked = 0  # channels that the tiles of the grid walk over; 0 where every program holds all
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

    def tie(self, left: int, right: int) -> int:
        """Cut both alike from now on; returns the axis that is not of size one."""
        if UNIT in (left, right):
            return right if left == UNIT else left
        first, second = sorted((self._root(left), self._root(right)))
        if first == self.ROWS and second != self.ROWS:
            raise ValueError("the rows meet a channel axis")
        self._parent[second] = first
        return first

    def part(self, small: int, whole: int, start: int, size: int) -> None:
        """`small` is channels `start` to `start + size` of `whole`: cuts of one are cuts of the other."""
        self._parts.append((small, whole, start))
        self._cut(whole, {start, start + size})

    def settle(self, walk: bool = False) -> None:
        """Spread the cuts over all parts; `walk` leaves wide pieces whole where all have one size.

        A slice or two of a wide axis do not hinder that, as long as its pieces are alike.
        """
        self._spread()
        sizes = {segment.size for axis in range(1, len(self._parent)) for segment in self.segments(axis)}
        if walk and len(sizes) == 1 and (size := sizes.pop()) > self._widest:
            self.walked = size
            return
        for axis in range(1, len(self._parent)):
            self._cut(axis, set(range(self._widest, self.size(axis), self._widest)))
        self._spread()

    def segments(self, axis: int) -> list[Segment]:
        """The tiles of an axis, in order; one of a single lane for an axis of size one."""
        if axis == UNIT:
            return [LANE]
        ends = [0, *sorted(self._cuts_of(axis)), self.size(axis)]
        return [Segment(start, end - start, self._tile(end - start)) for start, end in pairwise(ends)]

    def is_rows(self, axis: int) -> bool:
        """True for the rows."""
        return axis != UNIT and self._root(axis) == self.ROWS

    def _root(self, axis: int) -> int:
        while self._parent[axis] != axis:
            axis = self._parent[axis]
        return axis

    def _tile(self, size: int) -> int:
        if self.walked:
            return self._widest
        return 1 if size == 1 else power_of_two(size)

    def _spread(self) -> None:
        """Carry cuts between the parts and their wholes until nothing changes."""
        before = -1
        while before != (now := sum(map(len, self._cuts.values()))):
            before = now
            for small, whole, start in self._parts:
                size = self.size(small)
                inner = {cut - start for cut in self._cuts_of(whole) if start < cut < start + size}
                self._cut(small, inner)
                self._cut(whole, {cut + start for cut in self._cuts_of(small)})

    def _cuts_of(self, axis: int) -> set[int]:
        # Axes may have been tied after they were cut: gather over the class.
        if axis == UNIT:
            return set()
        root = self._root(axis)
        return {cut for tied, cuts in self._cuts.items() if self._root(tied) == root for cut in cuts}

    def _cut(self, axis: int, at: set[int]) -> None:
        size = self.size(axis)
        if axis != UNIT and not self.is_rows(axis):
            self._cuts.setdefault(self._root(axis), set()).update(cut for cut in at if 0 < cut < size)
