"""A parameter followed through views (transpose, slice, select, split)."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

aten = torch.ops.aten


_TRANSPOSES = {aten.t.default, aten.numpy_T.default, aten.mT.default, torch.t}


_SAME = {aten.contiguous.default, aten.clone.default, aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default}


_SPLITS = {aten.split_with_sizes.default, aten.split.Tensor, aten.chunk.default}


@dataclass(frozen=True)
class View:
    """What is left of a parameter after views: per axis (axis of the parameter, start, stop); what `select` fixed."""

    parameter: str
    axes: tuple[tuple[int, int, int], ...]
    fixed: dict[int, int] = field(default_factory=dict)


def view_of(node: Any, shape_of: Any) -> View | None:
    """The view of a parameter that `node` is, or None; `shape_of(name)` gives a parameter's shape or None."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "get_attr":
        shape = shape_of(str(node.target))
        return None if shape is None else View(str(node.target), tuple((i, 0, n) for i, n in enumerate(shape)))
    if node.op != "call_function" or not node.args:
        return None
    if node.target is operator.getitem:
        return _piece(node, shape_of)
    before = view_of(node.args[0], shape_of)
    return None if before is None else _viewed(node, before)


def _viewed(node: fx.Node, before: View) -> View | None:
    axes, rest = list(before.axes), list[Any](node.args[1:])
    if node.target in _SAME:
        return before
    if node.target in _TRANSPOSES and len(axes) >= 2:
        axes[-1], axes[-2] = axes[-2], axes[-1]
    elif node.target is aten.transpose.int:
        one, other = (_at(a, len(axes)) for a in rest)
        axes[one], axes[other] = axes[other], axes[one]
    elif node.target is aten.permute.default:
        axes = [axes[_at(a, len(axes))] for a in rest[0]]
    elif node.target is aten.slice.Tensor:
        defaults: list[Any] = [0, None, None, 1]
        at, start, stop, step = rest + defaults[len(rest) :]
        return _narrowed(before, _at(at, len(axes)), start or 0, stop, step)
    elif node.target is aten.select.int:
        at = _at(rest[0], len(axes))
        axis, start, stop = axes.pop(at)
        if not isinstance(rest[1], int):
            return None
        index = rest[1] if rest[1] >= 0 else rest[1] + stop - start
        return View(before.parameter, tuple(axes), {**before.fixed, axis: start + index})
    else:
        return None
    return View(before.parameter, tuple(axes), before.fixed)


def _piece(node: fx.Node, shape_of: Any) -> View | None:
    """One part of a split or chunk."""
    split, index = node.args
    if isinstance(split, fx.Node) and split.target not in _SPLITS and isinstance(index, slice):
        before = view_of(split, shape_of)  # the slice of rows that this project's own passes make
        return None if before is None else _narrowed(before, 0, index.start or 0, index.stop, index.step or 1)
    if not isinstance(split, fx.Node) or split.target not in _SPLITS or not isinstance(index, int):
        return None
    before = view_of(split.args[0], shape_of)
    if before is None:
        return None
    at = _at(split.args[2] if len(split.args) > 2 else 0, len(before.axes))
    _, start, stop = before.axes[at]
    sizes: Any = split.args[1]
    if isinstance(sizes, int):
        size = -(-(stop - start) // sizes) if split.target is aten.chunk.default else sizes
        return _narrowed(before, at, index * size, (index + 1) * size, 1)
    return _narrowed(before, at, sum(sizes[:index]), sum(sizes[: index + 1]), 1)


def _narrowed(view: View, at: int, start: Any, stop: Any, step: Any) -> View | None:
    axis, low, high = view.axes[at]
    size = high - low
    if not (isinstance(start, int) and isinstance(stop, int | None) and step == 1):
        return None
    start, stop, _ = slice(start, stop).indices(size)
    axes = [*view.axes[:at], (axis, low + start, low + stop), *view.axes[at + 1 :]]
    return View(view.parameter, tuple(axes), view.fixed)


def _at(axis: Any, count: int) -> int:
    return axis if axis >= 0 else axis + count


def parameter_shapes(module: nn.Module) -> Any:
    """A function name -> shape of the parameter there, or None."""

    def shape_of(name: str) -> tuple[int, ...] | None:
        owner, _, last = name.rpartition(".")
        try:
            value: Any = module.get_submodule(owner)._parameters.get(last)
        except AttributeError:
            return None
        return tuple(value.shape) if isinstance(value, Tensor) else None

    return shape_of
