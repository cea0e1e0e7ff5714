"""σ's graphs for the kernels: typed, and taken apart into the operators of the lowering table.

Which axis of a value is the rows is seen, not guessed from a number: σ is traced with two numbers of rows, and the
sizes that differ are the rows. So no width, whatever it is, can be taken for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from noble_fx.branches.trace import (
    ActivationFunctions,
    ActivationProgram,
    Untraceable,
    activation_functions,
    activation_program,
)
from noble_fx.torch_versions import decompositions, merge_equal_nodes
from noble_fx.tracing_lock import as_part, tracing

ROWS = "rows"  # stands for their number in shapes, and in arguments that are sizes
_TRACED = (10_007, 10_009)  # numbers of rows


@functools.cache
def typed_program(key: str, rank: int) -> ActivationProgram:
    """The same graphs for the kernels: float32, dtype and shape of every node in `meta["val"]` and `meta["shape"]`
    (`ROWS` for the rows), and derived operators (GELU, SiLU, norms and their derivatives) taken apart into those of
    the lowering table; raises `Untraceable`."""
    activation_program(key, rank, torch.float32)  # refuses what is not faithful
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(as_part(_trace_typed), key, rank).result()


@functools.cache
def plain_forward(key: str, rank: int) -> fx.Graph:
    """σ alone as PyTorch's operators have it, GELU still GELU; shapes as in `typed_program`. For reading."""
    activation_program(key, rank, torch.float32)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(as_part(_trace_plain), key, rank).result()


@tracing()
def _trace_plain(key: str, rank: int) -> fx.Graph:
    act = activation_functions(key)
    return _graph(act.forward, lambda rows: (torch.empty(rows, rank), *_tensors(act)), {}).graph


@tracing()
def _trace_typed(key: str, rank: int) -> ActivationProgram:
    act, table = activation_functions(key), _decompositions()
    tensors = _tensors(act)
    forward = _graph(act.forward, lambda rows: (torch.empty(rows, rank), *tensors), table)
    backward = _graph(act.backward, lambda rows: (torch.empty(rows, rank), *tensors, torch.empty(rows, rank)), table)
    return ActivationProgram(forward, backward, act.names, act.parameters)


def _tensors(act: ActivationFunctions) -> list[Tensor]:
    return [torch.empty(t.shape, dtype=torch.float32 if t.is_floating_point() else t.dtype) for t in act.tensors]


def _graph(
    fn: Callable[..., Any], inputs: Callable[[int], Sequence[Tensor]], table: dict[Any, Callable[..., Any]]
) -> fx.GraphModule:
    first, second = (_traced(fn, inputs(rows), table) for rows in _TRACED)
    if [node.target for node in first.graph.nodes] != [node.target for node in second.graph.nodes]:
        raise Untraceable("computes something else for another number of rows")
    for node, other in zip(first.graph.nodes, second.graph.nodes, strict=True):
        if isinstance(value := node.meta.get("val"), Tensor):
            node.meta["shape"] = tuple(map(_marked, value.shape, other.meta["val"].shape))
        node.args = tuple(map(_argument, node.args, other.args))
        node.kwargs = {name: _argument(value, other.kwargs[name]) for name, value in node.kwargs.items()}
    return first


def _argument(argument: Any, other: Any) -> Any:
    """An argument, sizes marked that are the rows; `other` is what stands there for another number of them."""
    if isinstance(argument, list | tuple):
        return [_marked(*pair) for pair in zip(argument, other, strict=True)]
    if not isinstance(argument, fx.Node) and argument != other:
        raise Untraceable("computes with the number of rows")
    return argument


def _marked(size: Any, other: Any) -> Any:
    return ROWS if (size, other) == _TRACED else _argument(size, other)


def _traced(fn: Callable[..., Any], inputs: Sequence[Tensor], table: dict[Any, Callable[..., Any]]) -> fx.GraphModule:
    pure = torch.func.functionalize(fn, remove="mutations")
    graph_module = make_fx(pure, decomposition_table=table, tracing_mode="fake")(*inputs)
    graph_module.graph.eliminate_dead_code()
    graph_module.graph = merge_equal_nodes(graph_module.graph)  # forward, traced again inside backward
    return graph_module


def _decompositions() -> dict[Any, Callable[..., Any]]:
    names = """gelu gelu_backward silu silu_backward tanh_backward sigmoid_backward leaky_relu leaky_relu_backward
        threshold_backward softplus softplus_backward elu elu_backward hardtanh_backward hardswish hardswish_backward
        hardsigmoid hardsigmoid_backward mish mish_backward log_sigmoid_forward log_sigmoid_backward celu selu
        softshrink hardshrink softshrink_backward _softmax _softmax_backward_data addcmul addcdiv lerp slice_backward
        logit relu6 prelu _prelu_kernel _prelu_kernel_backward""".split()  # noqa: SIM905
    return decompositions(names)
