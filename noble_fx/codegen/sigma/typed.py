"""σ's graphs for the kernels: typed, and taken apart into the operators of the lowering table."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from noble_fx.branches.trace import ActivationProgram, activation_functions, activation_program
from noble_fx.torch_versions import decompositions, merge_equal_nodes
from noble_fx.tracing_lock import as_part, tracing

ROWS = 10_007  # stands for the rows in the shapes of a typed program; a prime that no bottleneck has as its width


@functools.cache
def typed_program(key: str, rank: int) -> ActivationProgram:
    """The same graphs for the kernels: float32, every node's shape in `meta["val"]` (`ROWS` for the rows), and derived
    operators (GELU, SiLU, norms and their derivatives) taken apart into those of the lowering table."""
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
    return _graph(act.forward, torch.empty(ROWS, rank), *_tensors(act), table={}).graph


@tracing()
def _trace_typed(key: str, rank: int) -> ActivationProgram:
    act, table = activation_functions(key), _decompositions()
    tensors, h, dt = _tensors(act), torch.empty(ROWS, rank), torch.empty(ROWS, rank)
    forward = _graph(act.forward, h, *tensors, table=table)
    backward = _graph(act.backward, h, *tensors, dt, table=table)
    return ActivationProgram(forward, backward, act.names, act.parameters)


def _tensors(act: Any) -> list[Tensor]:
    return [torch.empty(t.shape, dtype=torch.float32 if t.is_floating_point() else t.dtype) for t in act.tensors]


def _graph(fn: Callable[..., Any], *args: Tensor, table: dict[Any, Callable[..., Any]]) -> fx.GraphModule:
    pure = torch.func.functionalize(fn, remove="mutations")
    graph_module = make_fx(pure, decomposition_table=table, tracing_mode="fake")(*args)
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
