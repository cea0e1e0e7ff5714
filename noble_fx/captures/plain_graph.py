"""An exported program's graph as this project holds it: flat, over the model's own tree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn


def plain_graph(module: fx.GraphModule, model: nn.Module, constants: dict[str, Any], mode: str) -> fx.Graph:
    """The program's graph with flat inputs and outputs; what it reads besides the model's own goes to `constants`."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    own = {
        name
        for name, _ in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    }
    for node in list(graph.nodes):
        if node.op == "call_module":  # torch's own check of the inputs; `Call` does it
            graph.erase_node(node)
        elif node.op == "get_attr" and node.target not in own:
            value = _attribute(module, node.target)
            name = f"_{mode}_{node.target.replace('.', '_')}"
            constants[name], node.target = value, name
    for node in list(graph.nodes):
        if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
            _inline_without_grad(graph, node, constants)
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    for name in [n for n in constants if n.startswith(f"_{mode}_") and n not in used]:
        del constants[name]
    return graph


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module


def _inline_without_grad(graph: fx.Graph, node: fx.Node, constants: dict[str, Any]) -> None:
    """no_grad(f)(x)  ->  f(detach(x)): the same values, and the same lack of gradients, as a flat graph."""
    args: Any = node.args
    enabled, body, *inputs = args
    inner: fx.Graph = constants[str(body.target)].graph
    with graph.inserting_before(node):
        values: dict[fx.Node, Any] = {}
        for placeholder, value in zip((n for n in inner.nodes if n.op == "placeholder"), inputs, strict=True):
            is_tensor = isinstance(value, fx.Node) and isinstance(placeholder.meta.get("val"), Tensor)
            floats = is_tensor and placeholder.meta["val"].is_floating_point()
            cut = floats and not enabled
            values[placeholder] = graph.call_function(torch.ops.aten.detach.default, (value,)) if cut else value
            if cut:
                values[placeholder].meta = dict(value.meta)
        for one in inner.nodes:
            if one.op not in ("placeholder", "output"):
                values[one] = graph.node_copy(one, lambda n: values[n])
    (output,) = (n for n in inner.nodes if n.op == "output")
    results = [values[n] if isinstance(n, fx.Node) else n for n in output.args[0]]
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
        graph.erase_node(user)
    graph.erase_node(node)
