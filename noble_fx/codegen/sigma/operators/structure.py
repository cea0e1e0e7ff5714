"""The table of operators that are not pointwise: aten → axes of the result, and the text of one tile.

products       mm, addmm                               tl.dot, one for each tile along the shared axis
reductions     sum, mean, amax, amin                   over channels or rows, masked
order          t, transpose, permute                   tl.trans
shape          view, unsqueeze, squeeze, expand …      axes of size one come and go; nothing else
cuts           slice, split, cat, slice_scatter        no text at all (`cuts.py`)
constants      full, zeros_like, scalar_tensor …       a number
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product as combinations
from typing import TYPE_CHECKING, Any

from torch import fx

from noble_fx.codegen.sigma.axes import LANE, UNIT, Segment
from noble_fx.codegen.sigma.operators.cuts import (
    cat_axes,
    cat_text,
    scatter_axes,
    scatter_text,
    shape_of,
    window_axes,
    window_text,
)
from noble_fx.codegen.sigma.operators.pointwise import aten, number
from noble_fx.errors import KernelError

if TYPE_CHECKING:
    from noble_fx.codegen.sigma.lower import Lowering, Place, Value


@dataclass(frozen=True)
class Row:
    """How one operator's result gets its axes, and the text of one of its tiles (None: not with these arguments)."""

    axes: Callable[[Lowering, Any], Sequence[int]]
    text: Callable[[Lowering, Any, Value, Place], str | None]
    moves: bool = False  # only moves its operand's values: where those are zero, its own are
    inline: bool = False  # has no line of its own: it is written where it is used


# --- products --------------------------------------------------------------------------------------------------------


def _product_axes(low: Lowering, node: Any) -> Sequence[int]:
    left, right = (low.axes_of(arg) for arg in node.args[-2:])
    low.tie(left[1], right[0])
    axes = [left[0], right[1]]
    if len(node.args) == 3:  # addmm: the first operand is broadcast
        extra = low.axes_of(node.args[0])
        for at, axis in enumerate(extra, 2 - len(extra)):
            low.tie(axes[at], axis)
    return axes


def _product_text(low: Lowering, node: Any, value: Value, place: Place) -> str | None:
    if node.kwargs:
        return None
    left, right = (low.value(arg) for arg in node.args[-2:])
    text = low.operand(node.args[0], value, place) if len(node.args) == 3 else ""
    name = low.name(node, place)
    for middle in low.segments(left.axes[1]):
        a = low.masked(left, (place[0], middle), [1])
        b = low.masked(right, (middle, place[1]), [0])
        text = _one_product(low, a, b, (place[0].tile, middle.tile, place[1].tile), text)
        low.source.line(f"{name} = {text}")
        text = name
    return name


def _one_product(low: Lowering, a: str, b: str, sides: tuple[int, int, int], into: str) -> str:
    """A product of two tiles in float32; where a side is a single lane, products and a sum instead."""
    _, middle, columns = sides
    if min(sides) >= 16:
        # TF32 keeps ten bits of the mantissa, three more than the bfloat16 that σ(h) is rounded to.
        precision = "tf32" if low.plan.backend == "cuda" and not low.plan.exact else low.plan.precision
        acc = f", {into}" if into.isidentifier() else ""
        text = f'tl.dot({a}, {b}{acc}, input_precision="{precision}")'
        return text if acc or not into else f"{text} + {into}"
    if middle == 1:
        text = f"{a} * {b}"
    elif columns == 1:
        text = f"tl.sum({a} * tl.trans({b}), axis=1, keep_dims=True)"
    else:
        text = f"tl.sum(tl.trans({a}) * {b}, axis=0, keep_dims=True)"
    return f"{into} + {text}" if into else text


# --- reductions ------------------------------------------------------------------------------------------------------


def _reduced(node: Any) -> tuple[list[int], bool]:
    dimensions = len(shape_of(node.args[0]))
    dims = node.args[1] if len(node.args) > 1 and node.args[1] not in (None, []) else list(range(dimensions))
    keep = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
    return [d % dimensions for d in ([dims] if isinstance(dims, int) else dims)], keep


def _reduce_axes(low: Lowering, node: Any) -> Sequence[int]:
    dims, keep = _reduced(node)
    axes = low.axes_of(node.args[0])
    return [UNIT if d in dims else axis for d, axis in enumerate(axes) if keep or d not in dims]


def _reduction(function: str, join: str, fill: str) -> Callable[[Lowering, Any, Value, Place], str | None]:
    """`function` over the lanes of each tile, `join` over the tiles; `fill` where a tile holds nothing."""

    def text(low: Lowering, node: Any, value: Value, place: Place) -> str | None:
        dims, keep = _reduced(node)
        given, kept = low.value(node.args[0]), iter(place)
        choices: list[list[Segment]] = []
        for d, axis in enumerate(given.axes):
            mine = next(kept) if keep or d not in dims else LANE
            choices.append(low.segments(axis) if d in dims else [mine])
        parts = []
        for one in combinations(*choices):
            part = low.masked(given, one, dims, fill)
            for d in sorted(dims, reverse=True):
                part = f"{function}({part}, axis={d}{', keep_dims=True' if keep else ''})"
            parts.append(part)
        whole = parts[0]
        for part in parts[1:]:
            whole = join.format(whole, part)
        return whole

    return text


def _mean(low: Lowering, node: Any, value: Value, place: Place) -> str | None:
    total = _reduction("tl.sum", "{} + {}", "0.0")(low, node, value, place)
    count = 1
    for d in _reduced(node)[0]:
        count *= shape_of(node.args[0])[d]
    return f"({total}) / {count}" if " + " in (total or "") else f"{total} / {count}"


# --- order and shape -------------------------------------------------------------------------------------------------


def _swaps(node: Any) -> bool:
    dimensions = len(shape_of(node))
    if node.target is aten.permute.default:
        return [d % dimensions for d in node.args[1]] != list(range(dimensions))
    if node.target is aten.transpose.int:
        return node.args[1] % dimensions != node.args[2] % dimensions
    return dimensions == 2


def _transpose_axes(low: Lowering, node: Any) -> Sequence[int]:
    axes = low.axes_of(node.args[0])
    return axes[::-1] if _swaps(node) else axes


def _transpose_text(low: Lowering, node: Any, value: Value, place: Place) -> str | None:
    given = node.args[0]
    if not _swaps(node):
        return low.value(given).tiles[place]
    if given.target is aten.t.default and _swaps(given):  # there and back
        return low.value(given.args[0]).tiles[place]
    text = low.value(given).tiles[place[::-1]]
    return f"tl.trans({text})" if low.is_tile(text) else text


def _view_axes(low: Lowering, node: Any) -> Sequence[int]:
    given = node.args[0]
    sizes = shape_of(node)
    if [size for size in sizes if size != 1] != [size for size in shape_of(given) if size != 1]:
        raise KernelError(f"{node.target} of {shape_of(given)} to {sizes} mixes axes")
    long = iter([axis for axis in low.axes_of(given) if axis != UNIT])
    return [UNIT if size == 1 else next(long) for size in sizes]


def _view_text(low: Lowering, node: Any, value: Value, place: Place) -> str | None:
    given = low.value(node.args[0])
    long = iter([segment for segment, axis in zip(place, value.axes, strict=True) if axis != UNIT])
    text = given.tiles[tuple(LANE if axis == UNIT else next(long) for axis in given.axes)]
    if given.axes == value.axes or not low.is_tile(text):
        return text
    if not value.axes:
        return f"tl.sum({f'tl.sum({text}, axis=1)' if len(given.axes) == 2 else text}, axis=0)"
    shape = f"[{', '.join(str(segment.tile) for segment in place)}]"
    return f"tl.reshape({text}, {shape})" if given.axes else f"tl.full({shape}, {text}, tl.float32)"


def _expand_axes(low: Lowering, node: Any) -> Sequence[int]:
    mine, sizes = low.axes_of(node.args[0]), shape_of(node)
    axes = [UNIT] * (len(sizes) - len(mine)) + list(mine)
    return [low.axis(size) if axis == UNIT else axis for size, axis in zip(sizes, axes, strict=True)]


def _expand_text(low: Lowering, node: Any, value: Value, place: Place) -> str | None:
    text = low.operand(node.args[0], value, place)
    if low.axes_of(node.args[0]) == value.axes or not low.is_tile(text):
        return text
    shape = f"[{', '.join(str(segment.tile) for segment in place)}]"
    return f"tl.broadcast_to({text}, {shape})" if low.axes_of(node.args[0]) else f"tl.full({shape}, {text}, tl.float32)"


# --- constants -------------------------------------------------------------------------------------------------------


def _constant_axes(low: Lowering, node: Any) -> Sequence[int]:
    given = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if given is not None and shape_of(given) == shape_of(node):
        return low.axes_of(given)
    return [low.axis(size) for size in shape_of(node)]


def _constant(at: int | None = None, fixed: str = "0.0") -> Row:
    """A number: argument `at` of the operator, or always the same one."""
    return Row(_constant_axes, lambda low, node, value, place: fixed if at is None else number(node.args[at]))


_SUM = Row(_reduce_axes, _reduction("tl.sum", "{} + {}", "0.0"))
_MAX = Row(_reduce_axes, _reduction("tl.max", "tl.maximum({}, {})", 'float("-inf")'))
_MIN = Row(_reduce_axes, _reduction("tl.min", "tl.minimum({}, {})", 'float("inf")'))
_MEAN = Row(_reduce_axes, _mean)
_PRODUCT = Row(_product_axes, _product_text)
_TRANSPOSE = Row(_transpose_axes, _transpose_text, moves=True, inline=True)
_VIEW = Row(_view_axes, _view_text, moves=True)
_EXPAND = Row(_expand_axes, _expand_text)
_WINDOW = Row(window_axes, window_text)

LISTS = (aten.split.Tensor, aten.split_with_sizes.default)  # their pieces are taken by getitem
TABLE: dict[Any, Row] = {
    aten.mm.default: _PRODUCT,
    aten.addmm.default: _PRODUCT,
    aten.sum.default: _SUM,
    aten.sum.dim_IntList: _SUM,
    aten.mean.default: _MEAN,
    aten.mean.dim: _MEAN,
    aten.amax.default: _MAX,
    aten.amin.default: _MIN,
    aten.t.default: _TRANSPOSE,
    aten.transpose.int: _TRANSPOSE,
    aten.permute.default: _TRANSPOSE,
    **dict.fromkeys(
        (
            aten.view.default,
            aten._unsafe_view.default,
            aten.reshape.default,
            aten.unsqueeze.default,
            aten.squeeze.default,
            aten.squeeze.dim,
            aten.squeeze.dims,
            aten.clone.default,
            aten.alias.default,
            aten.detach.default,
        ),
        _VIEW,
    ),
    aten.expand.default: _EXPAND,
    aten.slice.Tensor: _WINDOW,
    operator.getitem: _WINDOW,
    aten.cat.default: Row(cat_axes, cat_text),
    aten.slice_scatter.default: Row(scatter_axes, scatter_text),
    aten.scalar_tensor.default: _constant(0),
    aten.full.default: _constant(1),
    aten.full_like.default: _constant(1),
    aten.new_full.default: _constant(2),
    aten.fill.Scalar: _constant(1),
    aten.ones.default: _constant(fixed="1.0"),
    aten.ones_like.default: _constant(fixed="1.0"),
    aten.new_ones.default: _constant(fixed="1.0"),
    **dict.fromkeys(
        (
            aten.zeros.default,
            aten.zeros_like.default,
            aten.new_zeros.default,
            aten.empty_like.default,
            aten.new_empty.default,
        ),
        _constant(),
    ),
}
