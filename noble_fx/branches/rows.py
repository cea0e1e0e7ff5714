"""Whether σ treats rows one by one, read off its graph.

σ is traced with h [u0, r] and with h [u0, u1, r], where u0 and u1 are sizes of which nothing is known, so Python that
decides on them cannot be traced. In the graph such a size marks an axis of rows. An entry i of a value depends on row i
of h alone where

    it has the rows of all values that it is made of, each once       a sum, a product or a choice along rows loses them
    its operator is known to keep entries apart along an axis that stays         any other operator is refused

What no graph shows is Python that looks at how many axes there are. Such questions are noted, and σ of [rows, r] is
compared in numbers with σ of more dimensions.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from noble_fx.torch_versions import OpOverload, UnknownSizes, decides_on_values, unknown_sizes

# Besides the operators that torch calls pointwise; the first line are those that torch 2.11 does not call so yet.
# One whose name ends in "_" is the one without it.
_APART = frozenset(
    """_conj_physical celu elu hardsigmoid hardtanh leaky_relu selu
    _prelu_kernel _to_copy alias clone copy detach fill hardswish lift_fresh_copy log_sigmoid_forward masked_fill
    rsub zero cat diagonal expand permute repeat select slice split split_with_sizes squeeze stack t transpose unbind
    unsqueeze addmm addmv baddbmm bmm mm mv constant_pad_nd glu topk native_layer_norm _fused_rms_norm all amax
    amin aminmax any argmax argmin linalg_vector_norm logsumexp max mean min norm prod std sum var var_mean empty
    empty_like full full_like new_empty new_full new_ones new_zeros ones ones_like zeros zeros_like""".split()  # noqa: SIM905
)
_VIEWS = frozenset(("view", "reshape", "_unsafe_view"))  # could carry entries from one row to another
_ALONG = frozenset(  # along `dim` or `dims`, which may be no axis of rows
    """_log_softmax _softmax argsort cummax cummin cumprod cumsum flip gather logcumsumexp roll slice_scatter
    sort""".split()  # noqa: SIM905
)
_LOOKUPS = frozenset(("embedding", "index", "index_select"))  # of a table without rows, or by indices without
_SIZED = _VIEWS | {
    "expand",
    "repeat",
    *(name for name in _APART if name.startswith(("empty", "full", "new_", "ones", "z"))),
}
# What σ may ask about a tensor: what is the same for any number of dimensions, and sizes, whose use a graph shows.
_ASKED = frozenset(
    ("__setitem__", "shape", "size", "numel", "__len__", "dtype", "device", "is_floating_point", "is_complex")
)


_Axes = list[list[Any]]  # of a value: the sizes along each of its axes, numbers and symbols of rows


class MixesRows(Exception):
    """Why σ is not known to treat rows one by one."""


def check_rows(forward: Callable[..., Tensor], rank: int, tensors: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Raises `MixesRows` where σ, `forward(h, *tensors)` of h [.., rank], may not be one function of every row."""
    for axes in (1, 2):
        with unknown_sizes(axes) as unknown:
            _check_graph(forward, unknown, rank, tensors, dtype)
    # In float64: at a wide bottleneck float32's own rounding, through several cosines, looks like a difference.
    h = 2 * torch.randn(12, rank, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    tensors = [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]
    with _Asked():
        whole = forward(h.clone(), *tensors)
    for shape in ((2, 6), (3, 2, 2)):
        boxed = forward(h.view(*shape, -1).clone(), *tensors).reshape(whole.shape)
        if not torch.allclose(boxed, whole, rtol=1e-6, atol=1e-6, equal_nan=True):
            raise MixesRows("computes something else for an input of more dimensions")


class _Asked(TorchFunctionMode):
    """Refuses questions about a tensor whose answers may differ between rows [rows, r] and the caller's h."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = function(*args, **(kwargs or {}))
        name = function.__self__.__name__ if function.__name__ == "__get__" else function.__name__  # of a property
        if not any(isinstance(item, Tensor) for item in pytree.tree_leaves(answer)) and name not in _ASKED:
            raise MixesRows(f"asks a tensor for {name}")
        return answer


# --- the graph -------------------------------------------------------------------------------------------------------


def _check_graph(
    forward: Callable[..., Tensor], unknown: UnknownSizes, rank: int, tensors: Sequence[Tensor], dtype: torch.dtype
) -> None:
    with unknown.mode:
        h = torch.empty(*unknown.sizes, rank, dtype=dtype)
        own = [torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in tensors]
    rows = [size.node.expr for size in unknown.sizes]
    try:
        with torch.no_grad():
            graph = make_fx(forward)(h, *own).graph
    except Exception as error:
        if decides_on_values(error):
            reason = "cannot be traced for an unknown number of rows: something is decided by that, or by values"
            raise MixesRows(reason) from error
        raise
    if unknown.assumed():
        raise MixesRows("is made for a certain number of rows")
    for node in graph.nodes:
        if node.op == "call_function" and not _keeps_rows(node, rows):
            raise MixesRows(f"mixes rows, as far as is known ({node.target})")
    (result,) = graph.find_nodes(op="output")[0].args
    if not isinstance(result, fx.Node) or _axes(result.meta["val"], rows) != [*([row] for row in rows), [rank]]:
        raise MixesRows("mixes rows: its result has not the rows of its input")


def _keeps_rows(node: fx.Node, rows: list[Any]) -> bool:
    """Whether row i of every result depends on row i of the operands alone."""
    values = _tensors(arg.meta["val"] for arg in node.all_input_nodes)
    results = _tensors([node.meta["val"]])
    if node.target is operator.getitem or not results:
        return True  # one of several results, or arithmetic with sizes
    try:
        inputs, outputs = ([_axes(value, rows) for value in group] for group in (values, results))
    except ValueError:
        return False
    if not any(map(_carried, inputs + outputs)):
        return True  # made of σ's own tensors: the same for all rows
    if not isinstance(node.target, OpOverload):
        return False
    needed = {row for axes in inputs for row in _carried(axes)}
    kept = [_carried(axes) for axes in outputs if [0] not in axes]  # an empty one holds nothing
    if any(len(set(own)) < len(own) or not needed <= set(own) for own in kept):
        return False  # lost along the way: summed, chosen from, multiplied with each other
    return _keeps_apart(node, inputs, outputs)


def _keeps_apart(node: Any, inputs: list[_Axes], outputs: list[_Axes]) -> bool:
    name = node.target._schema.name.removeprefix("aten::").removesuffix("_")
    sizes = [arg for arg in node.all_input_nodes if isinstance(arg.meta["val"], torch.SymInt | torch.SymFloat)]
    if sizes and (name not in _SIZED or any(arg in sizes for arg in node.args)):
        return False  # computes with the number of rows
    if name in _VIEWS:
        return _in_order(inputs[0]) == _in_order(outputs[0])
    if name in _LOOKUPS:
        return sum(bool(_carried(axes)) for axes in inputs) == 1
    if name in _ALONG:
        places = [[at for at, axis in enumerate(axes) if _carried([axis])] for axes in inputs if _carried(axes)]
        dims = _argument(node, "dim", "dims")
        along = {dim % len(inputs[0]) for dim in (dims if isinstance(dims, list) else [dims])}
        return bool(along) and all(own == places[0] and not along & set(own) for own in places)
    return torch.Tag.pointwise in node.target.tags or name in _APART


def _argument(node: Any, *names: str) -> Any:
    for place, argument in enumerate(node.target._schema.arguments):
        if argument.name in names:
            return (
                node.args[place] if place < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
            )
    return []


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [value for value in pytree.tree_leaves(list(values)) if isinstance(value, Tensor)]


def _axes(value: Tensor, rows: list[Any]) -> _Axes:
    """The sizes along each axis; raises `ValueError` where they are none that rows have."""
    return [_axis(size, rows) for size in value.shape]


def _axis(size: Any, rows: list[Any]) -> list[Any]:
    if isinstance(size, int):
        return [size]
    if size.node.expr in rows:
        return [size.node.expr]
    if size.node.expr == math.prod(rows):
        return rows
    raise ValueError(size)


def _carried(axes: _Axes) -> list[Any]:
    """The axes of rows in a value, in its order."""
    return [size for axis in axes for size in axis if not isinstance(size, int)]


def _in_order(axes: _Axes) -> list[Any]:
    """The sizes in memory's order, what lies between two axes of rows as one: equal before and after a view."""
    order: list[Any] = [1]
    for size in itertools.chain.from_iterable(axes):
        if isinstance(size, int):
            order[-1] *= size
        else:
            order += [size, 1]
    return order
