"""Graphs that hold generated kernels, traced and run on a CPU: as nodes they are Triton's, run they are interpreted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from functorch.compile import make_boxed_func
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._higher_order_ops import triton_kernel_wrap
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

from noble_fx.ops import decompose
from noble_fx.runtime import traced_call
from noble_fx.runtime.load import load_kernel
from tests.fused_layer import kernels_on_cpu

_interpreted: dict[Any, Any] = {}  # by the function that Triton would compile
_written: dict[Any, list[str]] = {}  # by the same


def _load(plan: Any, kernel: Any) -> Any:
    """What Triton would compile, which a graph can hold; beside it what it interprets."""
    interpreted = load_kernel(plan, kernel)
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = False
        compiled = load_kernel.__wrapped__(plan, kernel)
    _interpreted[compiled] = interpreted
    _written[compiled] = [argument.name for argument in kernel.arguments if argument.written]
    return compiled


def _mutated(kernel_idx: int, *_: Any) -> list[str]:
    """What torch reads off Triton's own form of a kernel, which the interpreter does not make."""
    return _written[kernel_side_table.get_kernel(kernel_idx).fn]


@contextmanager
def kernels_in_graphs(cache: Path) -> Iterator[None]:
    """CPU tensors are traced as those of a GPU are."""
    with kernels_on_cpu(cache), pytest.MonkeyPatch.context() as patch:
        patch.setattr(traced_call, "load_kernel", _load)
        patch.setattr(triton_kernel_wrap, "get_mutated_tensors", _mutated)
        patch.setattr(decompose, "_device", lambda x: "cuda")
        yield


def compiled(function: Callable[..., Any], graphs: list[fx.GraphModule], **settings: Any) -> Callable[..., Any]:
    """`function`, whose graphs of forward and backward are kept, and run with interpreted kernels."""

    def keep(graph: fx.GraphModule, example_inputs: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(Interpreted(graph).run)

    torch._dynamo.reset()
    return torch.compile(function, backend=aot_autograd(fw_compiler=keep), **{"fullgraph": True, **settings})


class Interpreted(fx.Interpreter):
    """Runs a graph, its kernels by Triton's interpreter."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is not torch.ops.higher_order.triton_kernel_wrapper_functional:
            return super().call_function(target, args, kwargs)
        given = dict(kwargs["kwargs"]) | kernel_side_table.get_constant_args(kwargs["constant_args_idx"])
        written = {name: given[name].clone() for name in kwargs["tensors_to_clone"]}
        kernel = kernel_side_table.get_kernel(kwargs["kernel_idx"])
        _interpreted[kernel.fn][kwargs["grid"][0]](**(given | written))
        return written


def targets(graphs: list[fx.GraphModule]) -> list[str]:
    """The names of all that the graphs call; kernels by their own."""
    return [_name(node) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]


def _name(node: fx.Node) -> str:
    if "kernel_idx" in node.kwargs:
        name: str = kernel_side_table.get_kernel(node.kwargs["kernel_idx"]).fn.__name__
        return name
    return str(node.target)
