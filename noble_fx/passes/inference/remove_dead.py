"""The last pass before an export: nothing is left that the result does not need."""

from __future__ import annotations

import torch
from torch import fx
from torch.nn import functional as F

from noble_fx.passes.build import Build
from noble_fx.passes.example import Example
from noble_fx.passes.history import Changed, Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule

_EXAMPLE = Example(
    before=lambda m, x: (torch.relu(x), F.linear(x, m.weight))[1],
    after=lambda m, x: F.linear(x, m.weight),
)


@rule("output", example=_EXAMPLE)
def remove_dead(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """graph  ->  the nodes that its output needs, over the parameters that those read"""
    graph_module = graph.graph_module
    changed = graph_module.graph.eliminate_dead_code()
    read = set()  # by module object: one that has two paths is read under either
    for inner in (module for module in graph_module.modules() if isinstance(module, fx.GraphModule)):
        for path in (str(attribute.target) for attribute in inner.graph.nodes if attribute.op == "get_attr"):
            owner, _, name = path.rpartition(".")
            read.add((id(inner.get_submodule(owner)), name))
    for module in graph_module.modules():
        for table in (module._parameters, module._buffers):
            for name in [name for name in table if (id(module), name) not in read]:
                del table[name]
                changed = True
    return Changed(node) if changed else Skip("nothing is dead")
