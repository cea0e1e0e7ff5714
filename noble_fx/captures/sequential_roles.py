"""What the layers of an `nn.Sequential` do, from its order alone: nothing is traced and no code of the user runs."""

from __future__ import annotations

from torch import fx, nn

from noble_fx.sites.roles_from_graph import roles_from_graph


def roles_of_sequentials(model: nn.Module) -> dict[str, str]:
    """Role by layer name, of the layers in every `nn.Sequential` of the class itself."""
    roles: dict[str, str] = {}
    for fqn, module in model.named_modules():
        if _is_plain(module):
            graph = fx.Graph()
            graph.output(_in_order(graph, fqn, module, graph.placeholder("x")))
            roles = roles_from_graph(model, graph) | roles  # an outer one sees more than the one inside it
    return roles


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Sequential and "forward" not in vars(module)


def _in_order(graph: fx.Graph, fqn: str, module: nn.Module, x: fx.Node) -> fx.Node:
    for name, child in module.named_children():
        path = f"{fqn}.{name}" if fqn else name
        x = _in_order(graph, path, child, x) if _is_plain(child) else graph.call_module(path, (x,))
    return x
