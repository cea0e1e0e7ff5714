"""What the rows of the operators' tables are given: values in tiles, and the lowering that holds them.

`Lowering` (`lower.py`) implements `Tiling`; the tables (`operators/`) know this interface and nothing of the walk that
calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import fx

from noble_fx.codegen.code import Code, Mask
from noble_fx.codegen.plan import Plan
from noble_fx.codegen.sigma.axes import Axes, Segment
from noble_fx.codegen.sigma.operators.dtypes import TRITON
from noble_fx.codegen.source import Source

Place = tuple[Segment, ...]  # which tile of a value: one segment an axis


@dataclass
class Value:
    """The axes of one value of the graph, and the code (a name or a number) of each of its tiles."""

    axes: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    tiles: dict[Place, Code] = field(default_factory=dict)
    clean: bool = False  # lanes that hold nothing are zero
    loaded: bool = False  # at every use, not once: a matrix would fill the registers


class Loads(dict[Place, Code]):
    """Tiles that are written when they are asked for: once, or at every use."""

    def __init__(self, write: Callable[[Place], Code], again: bool):
        super().__init__()
        self._write, self._again = write, again

    def __missing__(self, place: Place) -> Code:
        code = self._write(place)
        if not self._again:
            self[place] = code
        return code


class Tiling(Protocol):
    """A graph whose values are cut into tiles, as a row of a table sees it."""

    plan: Plan
    source: Source
    axes: Axes

    def axes_of(self, node: Any) -> tuple[int, ...]:
        """The axes of a value."""

    def axis(self, size: int | str) -> int:
        """The rows, an axis of size one, or a channel axis of its own."""

    def tie(self, left: int, right: int) -> int:
        """Two axes that must be cut alike; raises `KernelError` where the rows meet a channel axis."""

    def segments(self, axis: int) -> list[Segment]:
        """The tiles along an axis."""

    def value(self, node: Any) -> Value:
        """A value with its tiles; an input is loaded here if it was not yet."""

    def operand(self, arg: Any, value: Value, place: Place) -> Code:
        """An operand of a broadcasting operator, for one tile of its result."""

    def masked(self, value: Value, place: Place, along: Sequence[int], fill: float = 0) -> Code:
        """A tile with the number `fill` where it holds nothing along the given axes."""

    def variable(self, node: fx.Node, place: Place) -> str:
        """The variable of one tile of a value."""


@dataclass(frozen=True)
class Row:
    """How one operator's result gets its axes, and the code of one of its tiles (None: not with these arguments)."""

    axes: Callable[[Tiling, Any], Sequence[int]]
    code: Callable[[Tiling, Any, Value, Place], Code | None]
    gathers: Callable[[Tiling, Any], Sequence[int]] = lambda low, node: ()  # axes along which lanes meet each other
    computes: bool = False  # in float32 alone: numbers meet each other
    moves: bool = False  # only moves its operand's values: where those are zero, its own are
    inline: bool = False  # has no line of its own: it is written where it is used


def spread(place: Place, at: int) -> str:
    """How a vector along one axis is indexed to the shape of a tile."""
    return "" if len(place) == 1 else f"[{', '.join(':' if d == at else 'None' for d in range(len(place)))}]"


def sides(place: Place) -> str:
    """The shape of a tile."""
    return ", ".join(str(segment.tile) for segment in place)


def solid(code: Code, place: Place, dtype: torch.dtype = torch.float32) -> Code:
    """A tile, where the code may be a mere number."""
    return filled(code, place, dtype) if code.is_number else code


def filled(code: Code, place: Place, dtype: torch.dtype = torch.float32) -> Code:
    """A tile full of one scalar."""
    return Code.call(f"tl.full([{sides(place)}], {code}, {TRITON[dtype]})")


def shape_of(node: Any) -> tuple[Any, ...]:
    """The shape of a value in a typed graph, `ROWS` for the rows."""
    shape: tuple[Any, ...] = node.meta["shape"]
    return shape


def channel_numbers(source: Source, segment: Segment, rank: int) -> str:
    """The name of a segment's channel numbers; their line is written once, where they are first used."""
    whole = segment.start == 0 and segment.size == rank
    name = "channel" if whole else f"channel_{segment.start}_{segment.start + segment.size}"
    terms = [str(segment.start)] if segment.start else []
    if segment.walked:
        terms.append(f"channel_tile * {segment.tile}")
    source.once(f"{name} = {' + '.join([*terms, f'tl.arange(0, {segment.tile})'])}")
    return name


def bound(source: Source, segment: Segment, rank: int, index: str = "") -> Mask:
    """The lanes of a segment that hold a channel; `index` spreads the channel numbers to a tile's shape."""
    if not segment.padded:
        return Mask()
    return Mask.where(f"{channel_numbers(source, segment, rank)}{index} < {segment.start + segment.size}")


def tile_name(base: str, segment: Segment, segments: Sequence[Segment]) -> str:
    """The variable that holds one tile of the bottleneck: `h`, or `h_c0`, `h_c128` where there are several."""
    return base if len(segments) == 1 else f"{base}_c{segment.start}"
