"""The last pass before an export: nothing is left that the result does not need."""

from __future__ import annotations

from torch import fx

from noble_fx.passes.rule import Answer, Build, Target, rule
from noble_fx.program import Skip


@rule("output")
def remove_dead(build: Build, node: fx.Node, target: Target) -> Answer:
    """graph  ->  the nodes that its output needs, over the parameters that those read"""
    graph_module = target.graph_module
    changed = graph_module.graph.eliminate_dead_code()
    read = {str(one.target) for one in graph_module.graph.nodes if one.op == "get_attr"}
    for path, module in graph_module.named_modules(remove_duplicate=False):
        for table in (module._parameters, module._buffers):
            for name in [n for n in table if (f"{path}.{n}" if path else n) not in read]:
                del table[name]
                changed = True
    return node if changed else Skip("nothing is dead")
