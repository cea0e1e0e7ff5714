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
from itertools import product as combinations
from math import inf, prod
from typing import Any

import torch
from torch import fx

from noble_fx.codegen.code import Code
from noble_fx.codegen.sigma.axes import LANE, UNIT, Segment
from noble_fx.codegen.sigma.operators.cuts import (
    cat_axes,
    cat_code,
    scatter_axes,
    scatter_code,
    window_axes,
    window_code,
)
from noble_fx.codegen.sigma.operators.dtypes import TRITON, cast, number
from noble_fx.codegen.sigma.operators.pointwise import aten
from noble_fx.codegen.sigma.tiles import Place, Row, Tiling, Value, filled, shape_of, sides
from noble_fx.errors import KernelError

# --- products --------------------------------------------------------------------------------------------------------


def _product_axes(low: Tiling, node: Any) -> Sequence[int]:
    left, right = (low.axes_of(arg) for arg in node.args[-2:])
    low.tie(left[1], right[0])
    axes = [left[0], right[1]]
    if len(node.args) == 3:  # addmm: the first operand is broadcast
        extra = low.axes_of(node.args[0])
        for at, axis in enumerate(extra, 2 - len(extra)):
            low.tie(axes[at], axis)
    return axes


def _product_gathers(low: Tiling, node: Any) -> Sequence[int]:
    return [low.axes_of(node.args[-2])[1]]


def _product_code(low: Tiling, node: Any, value: Value, place: Place) -> Code | None:
    if node.kwargs:
        return None
    left, right = (low.value(arg) for arg in node.args[-2:])
    into = low.operand(node.args[0], value, place) if len(node.args) == 3 else None
    for middle in low.segments(left.axes[1]):
        a = low.masked(left, (place[0], middle), [1])
        b = low.masked(right, (middle, place[1]), [0])
        into = _written(low, node, place, _one_product(low, a, b, (place[0].tile, middle.tile, place[1].tile), into))
    return into


def _one_product(low: Tiling, a: Code, b: Code, sides: tuple[int, int, int], into: Code | None) -> Code:
    """A product of two tiles in float32; where a side is a single lane, products and a sum instead."""
    _, middle, columns = sides
    if min(sides) >= 16:
        # TF32 keeps ten bits of the mantissa, three more than the bfloat16 that σ(h) is rounded to.
        precision = "tf32" if low.plan.backend == "cuda" and not low.plan.exact else low.plan.precision
        accumulator = into if into is not None and into.is_name else None
        acc = f", {accumulator}" if accumulator else ""
        product = f'tl.dot({a}, {b}{acc}, input_precision="{precision}")'
        return Code.call(product) if accumulator or into is None else Code(f"{product} + {into}")
    if middle == 1:
        product = f"{a} * {b}"
    elif columns == 1:
        product = f"tl.sum({a} * tl.trans({b}), axis=1, keep_dims=True)"
    else:
        product = f"tl.sum(tl.trans({a}) * {b}, axis=0, keep_dims=True)"
    return Code(product if into is None else f"{into} + {product}")


# --- reductions ------------------------------------------------------------------------------------------------------


def _reduced(node: Any) -> tuple[list[int], bool]:
    dimensions = len(shape_of(node.args[0]))
    dims = node.args[1] if len(node.args) > 1 and node.args[1] not in (None, []) else list(range(dimensions))
    keep = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
    return [d % dimensions for d in ([dims] if isinstance(dims, int) else dims)], keep


def _reduce_axes(low: Tiling, node: Any) -> Sequence[int]:
    dims, keep = _reduced(node)
    axes = low.axes_of(node.args[0])
    return [UNIT if d in dims else axis for d, axis in enumerate(axes) if keep or d not in dims]


def _reduce_gathers(low: Tiling, node: Any) -> Sequence[int]:
    axes = low.axes_of(node.args[0])
    return [axes[dim] for dim in _reduced(node)[0]]


CodeOf = Callable[[Tiling, Any, Value, Place], Code | None]


def _reduction(function: str, join: Callable[[Code, Code], Code], fill: float) -> CodeOf:
    """`function` over the lanes of each tile, `join` over the tiles; `fill` where a tile holds nothing."""

    def code(low: Tiling, node: Any, value: Value, place: Place) -> Code | None:
        dims, keep = _reduced(node)
        whole, kept = low.value(node.args[0]), iter(place)
        choices: list[list[Segment]] = []
        for d, axis in enumerate(whole.axes):
            own = next(kept) if keep or d not in dims else LANE
            choices.append(low.segments(axis) if d in dims else [own])
        total: Code | None = None
        for tile in combinations(*choices):
            part = cast(low.masked(whole, tile, dims, fill), whole.dtype, value.dtype)
            for d in sorted(dims, reverse=True):
                part = Code.call(f"{function}({part}, axis={d}{', keep_dims=True' if keep else ''})")
            total = part if total is None else _written(low, node, place, join(total, part))
        return total

    return code


def _written(low: Tiling, node: Any, place: Place, code: Code) -> Code:
    """A value on a line of its own, where several tiles are joined one after the other."""
    name = low.variable(node, place)
    low.source.line(f"{name} = {code}")
    return Code.name(name)


def _plus(left: Code, right: Code) -> Code:
    return Code(f"{left} + {right}")


def _either(function: str) -> Callable[[Code, Code], Code]:
    return lambda left, right: Code.call(f"{function}({left}, {right}, propagate_nan=tl.PropagateNan.ALL)")


def _mean(low: Tiling, node: Any, value: Value, place: Place) -> Code | None:
    total = _reduction("tl.sum", _plus, 0)(low, node, value, place)
    count = prod(shape_of(node.args[0])[dim] for dim in _reduced(node)[0])
    return None if total is None else Code(f"{total.grouped} / {count}")


def _extreme_axes(low: Tiling, node: Any) -> Sequence[int]:
    if any(map(low.axes.is_rows, _reduce_gathers(low, node))):
        raise KernelError(f"{node.target} over the rows is not in the lowering table")
    return _reduce_axes(low, node)


# --- order and shape -------------------------------------------------------------------------------------------------


def _order(node: Any) -> list[int]:
    """Which axis of the operand each axis of the result is."""
    dimensions = len(shape_of(node))
    order = list(range(dimensions))
    if node.target is aten.permute.default:
        return [d % dimensions for d in node.args[1]]
    if node.target is aten.transpose.int:
        first, second = (d % dimensions for d in node.args[1:3])
        order[first], order[second] = second, first
        return order
    return order[::-1]


def _transpose_axes(low: Tiling, node: Any) -> Sequence[int]:
    axes = low.axes_of(node.args[0])
    return [axes[d] for d in _order(node)]


def _transpose_code(low: Tiling, node: Any, value: Value, place: Place) -> Code | None:
    operand, order = node.args[0], _order(node)
    if operand.target is aten.t.default and order == _order(operand) == [1, 0]:  # there and back
        return low.value(operand.args[0]).tiles[place]
    code = low.value(operand).tiles[tuple(place[order.index(d)] for d in range(len(order)))]
    if code.is_number or order == sorted(order):
        return code
    return Code.call(f"tl.trans({code})" if order == [1, 0] else f"tl.permute({code}, {order})")


def _view_axes(low: Tiling, node: Any) -> Sequence[int]:
    before, after = shape_of(node.args[0]), shape_of(node)
    if [size for size in after if size != 1] != [size for size in before if size != 1]:
        raise KernelError(f"{node.target} of {before} to {after} mixes axes")
    long = iter([axis for axis in low.axes_of(node.args[0]) if axis != UNIT])
    return [UNIT if size == 1 else next(long) for size in after]


def _view_code(low: Tiling, node: Any, value: Value, place: Place) -> Code | None:
    whole = low.value(node.args[0])
    long = iter([segment for segment, axis in zip(place, value.axes, strict=True) if axis != UNIT])
    code = whole.tiles[tuple(LANE if axis == UNIT else next(long) for axis in whole.axes)]
    if whole.axes == value.axes or code.is_number:
        return code
    if not value.axes:
        for at in reversed(range(len(whole.axes))):  # of one lane each
            code = Code.call(f"tl.sum({code}, axis={at})")
        return code if value.dtype == torch.float32 else Code.call(f"{code}.to({TRITON[value.dtype]})")
    return Code.call(f"tl.reshape({code}, [{sides(place)}])") if whole.axes else filled(code, place, value.dtype)


def _expand_axes(low: Tiling, node: Any) -> Sequence[int]:
    own, sizes = low.axes_of(node.args[0]), shape_of(node)
    axes = [UNIT] * (len(sizes) - len(own)) + list(own)
    return [low.axis(size) if axis == UNIT else axis for size, axis in zip(sizes, axes, strict=True)]


def _expand_code(low: Tiling, node: Any, value: Value, place: Place) -> Code | None:
    code = low.operand(node.args[0], value, place)
    if low.axes_of(node.args[0]) == value.axes or code.is_number:
        return code
    wide = Code.call(f"tl.broadcast_to({code}, [{sides(place)}])")
    return wide if low.axes_of(node.args[0]) else filled(code, place, value.dtype)


# --- constants -------------------------------------------------------------------------------------------------------


def _constant_axes(low: Tiling, node: Any) -> Sequence[int]:
    like = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if like is not None and shape_of(like) == shape_of(node):
        return low.axes_of(like)
    return [low.axis(size) for size in shape_of(node)]


def _constant(at: int | None = None, fixed: float = 0.0) -> Row:
    """A number: argument `at` of the operator, or always the same one."""
    return Row(
        _constant_axes,
        lambda low, node, value, place: number(fixed if at is None else node.args[at], value.dtype),
    )


_SUM = Row(_reduce_axes, _reduction("tl.sum", _plus, 0), gathers=_reduce_gathers)
_MAX, _MIN = (
    Row(_extreme_axes, _reduction(function, _either(join), fill), gathers=_reduce_gathers, computes=True)
    for function, join, fill in (("nan_max", "tl.maximum", -inf), ("nan_min", "tl.minimum", inf))
)
_MEAN = Row(_reduce_axes, _mean, gathers=_reduce_gathers, computes=True)
_PRODUCT = Row(_product_axes, _product_code, gathers=_product_gathers, computes=True)
_TRANSPOSE = Row(_transpose_axes, _transpose_code, moves=True, inline=True)
_VIEW = Row(_view_axes, _view_code, moves=True)
_EXPAND = Row(_expand_axes, _expand_code)
_WINDOW = Row(window_axes, window_code)

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
    aten.cat.default: Row(cat_axes, cat_code),
    aten.slice_scatter.default: Row(scatter_axes, scatter_code),
    aten.scalar_tensor.default: _constant(0),
    aten.full.default: _constant(1),
    aten.full_like.default: _constant(1),
    aten.new_full.default: _constant(2),
    aten.fill.Scalar: _constant(1),
    aten.ones.default: _constant(fixed=1.0),
    aten.ones_like.default: _constant(fixed=1.0),
    aten.new_ones.default: _constant(fixed=1.0),
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
