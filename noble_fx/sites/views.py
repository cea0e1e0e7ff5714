"""A parameter followed through views (transpose, slice, select, split)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.operator_schemas import normalize_function

aten = torch.ops.aten

ShapeOf = Callable[[str], tuple[int, ...] | None]  # the shape of the parameter of that name, None where there is none

SPLITS = {aten.split_with_sizes.default, aten.split.Tensor, aten.chunk.default}
_TRANSPOSES = {aten.t.default, aten.numpy_T.default, aten.mT.default, torch.t}
_SAME = {aten.contiguous.default, aten.clone.default, aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default}


@dataclass(frozen=True)
class View:
    """What is left of a parameter after views: per axis (axis of the parameter, start, stop); what `select` fixed."""

    parameter: str
    axes: tuple[tuple[int, int, int], ...]
    fixed: dict[int, int] = field(default_factory=dict)


def view_of(node: Any, shape_of: ShapeOf) -> View | None:
    """The view of a parameter that `node` is, or None."""
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


def bound(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operator's call by the names of its schema (`self` is "input"), defaults filled in."""
    function: Any = node.target
    arguments = normalize_function(function, node.args, node.kwargs, normalize_to_only_use_kwargs=True)
    if arguments is None:
        raise TypeError(f"the arguments of {node.format_node()} do not fit the operator's schema")
    return arguments.kwargs


def _viewed(node: fx.Node, before: View) -> View | None:
    axes = list(before.axes)
    if node.target in _SAME:
        return before
    if node.target in _TRANSPOSES and len(axes) >= 2:
        axes[-1], axes[-2] = axes[-2], axes[-1]
    elif node.target is aten.transpose.int:
        first, second = (_at(bound(node)[name], len(axes)) for name in ("dim0", "dim1"))
        axes[first], axes[second] = axes[second], axes[first]
    elif node.target is aten.permute.default:
        axes = [axes[_at(axis, len(axes))] for axis in bound(node)["dims"]]
    elif node.target is aten.slice.Tensor:
        dim, start, stop, step = (bound(node)[name] for name in ("dim", "start", "end", "step"))
        return _narrowed(before, _at(dim, len(axes)), start or 0, stop, step)
    elif node.target is aten.select.int:
        return _selected(before, _at(bound(node)["dim"], len(axes)), bound(node)["index"])
    else:
        return None
    return View(before.parameter, tuple(axes), before.fixed)


def _piece(node: fx.Node, shape_of: ShapeOf) -> View | None:
    """One part of a split or chunk, or a slice of rows."""
    split, index = node.args
    if not isinstance(split, fx.Node):
        return None
    if split.target not in SPLITS:  # the slice of rows that this project's own passes make
        whole = view_of(split, shape_of) if isinstance(index, slice) else None
        return None if whole is None else _narrowed(whole, 0, index.start or 0, index.stop, index.step or 1)  # type: ignore[union-attr]
    before = view_of(split.args[0], shape_of)
    if before is None or not isinstance(index, int):
        return None
    arguments = bound(split)
    at = _at(arguments["dim"], len(before.axes))
    _, start, stop = before.axes[at]
    if "split_sizes" in arguments:
        sizes = arguments["split_sizes"]
        return _narrowed(before, at, sum(sizes[:index]), sum(sizes[: index + 1]), 1)
    size = -(-(stop - start) // arguments["chunks"]) if "chunks" in arguments else arguments["split_size"]
    return _narrowed(before, at, index * size, (index + 1) * size, 1)


def _narrowed(view: View, at: int, start: Any, stop: Any, step: Any) -> View | None:
    axis, low, high = view.axes[at]
    if not (isinstance(start, int) and isinstance(stop, int | None) and step == 1):
        return None
    start, stop, _ = slice(start, stop).indices(high - low)
    axes = [*view.axes[:at], (axis, low + start, low + stop), *view.axes[at + 1 :]]
    return View(view.parameter, tuple(axes), view.fixed)


def _selected(view: View, at: int, index: Any) -> View | None:
    axis, start, stop = view.axes[at]
    if not isinstance(index, int):
        return None
    index = start + index if index >= 0 else stop + index
    return View(view.parameter, (*view.axes[:at], *view.axes[at + 1 :]), {**view.fixed, axis: index})


def _at(axis: int, count: int) -> int:
    return axis if axis >= 0 else axis + count


def parameter_shapes(module: nn.Module) -> ShapeOf:
    """The shapes of a module's parameters by their names."""

    def shape_of(name: str) -> tuple[int, ...] | None:
        owner, _, last = name.rpartition(".")
        try:
            value: Any = module.get_submodule(owner)._parameters.get(last)
        except AttributeError:
            return None
        return tuple(value.shape) if isinstance(value, Tensor) else None

    return shape_of
