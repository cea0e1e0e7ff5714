"""What a rule may ask while it looks at a node: of the model behind the graph, and of who reads what."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from noble_fx.branches.base import Branch
from noble_fx.branches.experts import BranchGroup
from noble_fx.errors import Refusal
from noble_fx.layers.structured import Structured
from noble_fx.passes.history import Skip
from noble_fx.sites.products import Product, product_of
from noble_fx.sites.site import BLOCK
from noble_fx.sites.views import parameter_shapes


class ModelGraph:
    """A graph together with the modules and parameters that it reads."""

    def __init__(self, graph_module: fx.GraphModule):
        self.graph_module = graph_module
        self._shapes = parameter_shapes(graph_module)

    def module(self, path: Any) -> nn.Module | None:
        """The module at `path`, or None where there is none."""
        try:
            return self.graph_module.get_submodule(path) if isinstance(path, str) else None
        except AttributeError:
            return None

    def attribute(self, path: str) -> Any:
        """What the graph reads at `path`, or None."""
        owner, _, name = path.rpartition(".")
        module = self.module(owner)
        return getattr(module, name, None) if module is not None else None

    def shape_of(self, parameter: str) -> tuple[int, ...] | None:
        """The shape of a parameter, or None where there is none of that name."""
        return self._shapes(parameter)

    # --- branches ----------------------------------------------------------------------------------------------------

    @cached_property
    def _branch_paths(self) -> dict[int, str]:
        """Module path of the branch by the identity of the weight it belongs to."""
        paths: dict[int, str] = {}
        for fqn, module in self.graph_module.named_modules():
            branch = module._modules.get("noble")
            path = f"{fqn}.noble" if fqn else "noble"
            if isinstance(module, Structured):  # its weight is none of the graph's
                continue
            if isinstance(branch, Branch) and branch.role != BLOCK:  # a block has no weight of its own
                paths.setdefault(id(module.weight), path)
            elif isinstance(branch, BranchGroup):
                paths |= {id(module._parameters[name]): f"{path}.{name}" for name in branch}
        return paths

    def branch_of(self, parameter: str) -> str | None:
        """Module path of the branch that belongs to a parameter, or None."""
        owner, _, name = parameter.rpartition(".")
        module = self.module(owner)
        weight = module._parameters.get(name) if module is not None else None
        return self._branch_paths.get(id(weight)) if weight is not None else None

    def branch_around(self, block: str) -> str | None:
        """Module path of the branch around the block of that name, or None."""
        path = f"{block}.noble" if block else "noble"
        return path if isinstance(self.module(path), Branch) else None

    def branch(self, node: Any) -> Branch | None:
        """The branch that a `call_module` node runs, or None."""
        module = self.module(node.target) if isinstance(node, fx.Node) and node.op == "call_module" else None
        return module if isinstance(module, Branch) else None

    def owning_branch(self, node: Any) -> tuple[str, Branch] | None:
        """Path and branch that hold the parameter which `node` reads, or None."""
        path = str(node.target) if isinstance(node, fx.Node) and node.op == "get_attr" else ""
        while path:
            path = path.rpartition(".")[0]
            module = self.module(path)
            if isinstance(module, Branch):
                return path, module
        return None

    def product(self, node: fx.Node) -> tuple[Product, str] | Skip:
        """The product at `node` and the path of its weight's branch; or why there is nothing to do."""
        product = product_of(node, self.shape_of)
        if isinstance(product, Refusal):
            return Skip(product.reason)
        path = self.branch_of(product.view.parameter) if product is not None else None
        if product is None or path is None:
            return Skip("not selected")
        return Skip("has its branch already") if node.meta.get("noble") else (product, path)

    # --- constants ---------------------------------------------------------------------------------------------------

    def constant(self, node: Any) -> Tensor | None:
        """The value of a node that is a parameter, or views and sums of parameters alone; else None."""
        if not isinstance(node, fx.Node):
            return None
        if node.op == "get_attr":
            value = self.attribute(str(node.target))
            return value.detach() if isinstance(value, Tensor) else None
        inputs = {arg: self.constant(arg) for arg in node.all_input_nodes}
        if not is_constant(node) or any(value is None for value in inputs.values()):
            return None
        with torch.no_grad():
            value = node.target(*fx.map_arg(node.args, inputs.__getitem__), **node.kwargs)  # type: ignore[operator]
        return value if isinstance(value, Tensor) else None

    def constants(self, *nodes: Any) -> list[Any] | Skip:
        """The values of several such nodes, None where there is no node; or why they are no constants."""
        values = [None if node is None else self.constant(node) for node in nodes]
        if any(value is None and node is not None for value, node in zip(values, nodes, strict=True)):
            return Skip("its matrices are computed in the graph, not constant")
        return values

    def sole_reader(self, value: Any, reader: fx.Node) -> bool:
        """True where no other node needs the parameters behind `value`, under any name."""
        parameters = {id(self.attribute(str(read.target))) for read in parameter_reads(value)}
        return all(
            _readers(node) <= {reader}
            for node in self.graph_module.graph.nodes
            if node.op == "get_attr" and id(self.attribute(str(node.target))) in parameters
        )


def parameter_reads(value: Any) -> list[fx.Node]:
    """The reads of parameters that a value is made of."""
    if not isinstance(value, fx.Node):
        return []
    if value.op == "get_attr":
        return [value]
    return [read for arg in value.all_input_nodes for read in parameter_reads(arg)]


def is_constant(node: fx.Node) -> bool:
    """True for a read of a parameter, and for pure functions of such reads."""
    if node.op == "get_attr":
        return True
    schema, tags = getattr(node.target, "_schema", None), getattr(node.target, "tags", ())
    if node.op != "call_function" or torch.Tag.nondeterministic_seeded in tags or (schema and schema.is_mutable):
        return False
    return bool(node.all_input_nodes) and all(map(is_constant, node.all_input_nodes))


def _readers(node: fx.Node) -> set[fx.Node]:
    """The nodes that use a parameter, seen through what only prepares it (a transpose of the weight)."""
    readers: set[fx.Node] = set()
    for user in node.users:
        prepares = user.op == "call_function" and all(map(is_constant, user.all_input_nodes))
        readers |= _readers(user) if prepares else {user}
    return readers
