"""The sizes at which a file is compared: those of the example, and others for every dynamic axis.

Every dynamic size is one symbol of the exported program, so a case is a value for each symbol: 1, one less, one more,
twice as many. All symbols change alike, so inputs stay consistent with one another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from noble_fx.captures.torch_export import user_inputs

_CHANGES = (lambda n: 1, lambda n: n - 1, lambda n: n + 1, lambda n: 2 * n)


def cases(args: Any, kwargs: Any, program: ExportedProgram, ranged: bool) -> Iterator[tuple[Any, Any]]:
    """Arguments of the model: as given, then at other sizes; `ranged`: inside the ranges of the program's symbols."""
    yield args, kwargs
    leaves, spec = pytree.tree_flatten((args, kwargs))
    placeholders = user_inputs(program)
    if len(placeholders) != len(leaves):
        return
    pairs = list(zip(leaves, placeholders, strict=True))
    symbols = {symbol for value in placeholders for size in _dynamic(value).values() for symbol in size.free_symbols}
    current = _current_sizes(pairs)
    for change in _CHANGES:
        sizes = {
            symbol: _within(change(current.get(symbol, 2)), program.range_constraints.get(symbol) if ranged else None)
            for symbol in symbols
        }
        yield pytree.tree_unflatten([_resized(leaf, value, sizes) for leaf, value in pairs], spec)


def shape_text(tensors: Any) -> str:
    """The sizes of a call's tensors: [1, 5] × [1, 5]."""
    return " × ".join(str(list(t.shape)) for t in pytree.tree_leaves(tensors) if isinstance(t, Tensor))


def _dynamic(value: Any) -> dict[int, Any]:
    """The symbolic size of every dynamic axis of a program's input."""
    shape: Any = value.shape if isinstance(value, Tensor) else ()
    return {axis: size.node.expr for axis, size in enumerate(shape) if not isinstance(size, int)}


def _current_sizes(pairs: list[tuple[Any, Any]]) -> dict[Any, int]:
    """The example's own value of every symbol that is a size by itself."""
    sizes: dict[Any, int] = {}
    for leaf, value in pairs:
        if isinstance(leaf, Tensor):
            sizes |= {size: leaf.shape[axis] for axis, size in _dynamic(value).items() if size.is_symbol}
    return sizes


def _within(size: int, bounds: Any) -> int:
    """A size of at least 1 and inside the bounds, whose ends may be infinite."""
    size = max(size, 1)
    if bounds is not None and bool(bounds.lower > size):
        return int(bounds.lower)
    return int(bounds.upper) if bounds is not None and bool(bounds.upper < size) else size


def _resized(leaf: Any, value: Any, sizes: dict[Any, int]) -> Any:
    """The example with its dynamic axes cut or repeated to the sizes."""
    for axis, size in _dynamic(value).items() if isinstance(leaf, Tensor) else ():
        wanted = int(size.subs(sizes))
        leaf = leaf.index_select(axis, torch.arange(wanted, device=leaf.device) % leaf.shape[axis])
    return leaf
