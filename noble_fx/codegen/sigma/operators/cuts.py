"""Slices, splits, concatenations and scatters along channels: no text at all, axes are cut beforehand (`axes.py`)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from noble_fx.codegen.code import Code
from noble_fx.codegen.sigma.axes import UNIT, Segment
from noble_fx.codegen.sigma.operators.dtypes import cast
from noble_fx.codegen.sigma.tiles import Place, Tiling, Value, shape_of
from noble_fx.errors import KernelError


def _window(node: Any) -> tuple[Any, int, int, int]:
    """Of a slice, or of a piece of a split: what it is cut from, the axis, start and size."""
    if node.target is operator.getitem:
        split, which = node.args
        whole, sizes, *rest = split.args
        shape = shape_of(whole)
        dim = (rest[0] if rest else split.kwargs.get("dim", 0)) % len(shape)
        if isinstance(sizes, int):
            sizes = [min(sizes, shape[dim] - start) for start in range(0, shape[dim], sizes)]
        return whole, dim, sum(sizes[:which]), sizes[which]
    whole, rest = node.args[0], list(node.args[1:])
    dim, start, _, step = rest + [0, None, None, 1][len(rest) :]
    if step != 1:
        raise KernelError("a slice with a step is not in the lowering table")
    shape = shape_of(whole)
    dim = dim % len(shape)
    start = 0 if start is None else start if start >= 0 else start + shape[dim]
    return whole, dim, start, shape_of(node)[dim]


def _part(low: Tiling, axis: int, start: int, size: int) -> int:
    """A window of an axis as an axis of its own."""
    if axis == UNIT or size == low.axes.size(axis):
        return axis
    if low.axes.is_rows(axis):
        raise KernelError("a slice of the rows is not in the lowering table")
    window = low.axes.new(size)
    low.axes.part(window, axis, start, size)
    return window


def window_axes(low: Tiling, node: Any) -> Sequence[int]:
    """A slice: a part of an axis, cut where it is."""
    whole, dim, start, size = _window(node)
    axes = list(low.axes_of(whole))
    axes[dim] = _part(low, axes[dim], start, size)
    return axes


def window_code(low: Tiling, node: Any, value: Value, place: Place) -> Code | None:
    """The tile of the whole that lies there."""
    whole, dim, start, _ = _window(node)
    return low.value(whole).tiles[_moved(place, dim, start)]


def _moved(place: Place, dim: int, by: int) -> Place:
    return tuple(Segment(s.start + by, s.size, s.tile) if d == dim else s for d, s in enumerate(place))


def cat_axes(low: Tiling, node: Any) -> Sequence[int]:
    """A concatenation: an axis made of parts."""
    pieces, dim = node.args[0], (node.args[1] if len(node.args) > 1 else 0) % len(shape_of(node))
    axes = [UNIT] * len(shape_of(node))
    axes[dim] = low.axis(shape_of(node)[dim])
    start = 0
    for piece in pieces:
        own, size = low.axes_of(piece), shape_of(piece)[dim]
        if low.axes.is_rows(own[dim]):
            raise KernelError("a concatenation of rows is not in the lowering table")
        low.axes.part(own[dim], axes[dim], start, size)
        start += size
        axes = [axis if d == dim else low.tie(axis, own[d]) for d, axis in enumerate(axes)]
    return axes


def cat_code(low: Tiling, node: Any, value: Value, place: Place) -> Code | None:
    """The tile of the piece that lies there."""
    dim = (node.args[1] if len(node.args) > 1 else 0) % len(place)
    start = 0
    for piece in node.args[0]:
        if place[dim].start < start + shape_of(piece)[dim]:
            whole = low.value(piece)
            return cast(whole.tiles[_moved(place, dim, -start)], whole.dtype, value.dtype)
        start += shape_of(piece)[dim]
    return None


def _scatter_window(node: Any) -> tuple[int, int, int]:
    base, source, *rest = node.args
    dim, start, _, step = rest + [0, None, None, 1][len(rest) :]
    if step != 1:
        raise KernelError("a slice with a step is not in the lowering table")
    shape = shape_of(base)
    dim = dim % len(shape)
    start = 0 if start is None else start if start >= 0 else start + shape[dim]
    return dim, start, shape_of(source)[dim]


def scatter_axes(low: Tiling, node: Any) -> Sequence[int]:
    """A slice written into a tensor: one axis, cut where it is."""
    dim, start, size = _scatter_window(node)
    axes, own = list(low.axes_of(node.args[0])), low.axes_of(node.args[1])
    if low.axes.is_rows(axes[dim]):
        raise KernelError("a scatter into rows is not in the lowering table")
    if size == low.axes.size(axes[dim]):
        low.tie(own[dim], axes[dim])
    else:
        low.axes.part(own[dim], axes[dim], start, size)
    return [axis if d == dim else low.tie(axis, own[d]) for d, axis in enumerate(axes)]


def scatter_code(low: Tiling, node: Any, value: Value, place: Place) -> Code | None:
    """The tile of the source inside its window, of the base outside."""
    dim, start, size = _scatter_window(node)
    if start <= place[dim].start < start + size:
        source = low.value(node.args[1])
        return cast(source.tiles[_moved(place, dim, -start)], source.dtype, value.dtype)
    return low.value(node.args[0]).tiles[place]
