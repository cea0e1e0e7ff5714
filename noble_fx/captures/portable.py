"""A graph run in ordinary operators: what a user's export of a captured model sees, whose program knows no key of σ."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from noble_fx.errors import CaptureError
from noble_fx.ops.factorized import eager_factorized
from noble_fx.ops.linear import eager_linear
from noble_fx.ops.linear_group import eager_linear_group
from noble_fx.schema import FACTORIZED, LINEAR, LINEAR_GROUP

_ORDINARY = {LINEAR: eager_linear, LINEAR_GROUP: eager_linear_group, FACTORIZED: eager_factorized}


def run_portable(module: fx.GraphModule, *args: Any) -> Any:
    """What the module's graph gives, node by node; raises `CaptureError` where Dynamo exports, which cannot."""
    if torch.compiler.is_dynamo_compiling():
        raise CaptureError("a model that runs graphs is exported by torch.export.export(..., strict=False)")
    return fx.Interpreter(module, graph=portable(module._graph)).run(*args)


def portable(graph: fx.Graph) -> fx.Graph:
    """The same graph, fused sites as the operators that they stand for."""
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    for node in copied.nodes:
        node.target = _ORDINARY.get(node.target, node.target)
    return copied
