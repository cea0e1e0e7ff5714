"""What a rule makes: nodes in front of the one that it rewrites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from noble_fx.passes.match import parameter_reads


class Build:
    """Inserts nodes in front of the one that is being rewritten."""

    def __init__(self, graph: fx.Graph, node: fx.Node):
        self._graph, self._node = graph, node

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A call of a function or operator."""
        with self._graph.inserting_before(self._node):
            return self._graph.call_function(function, args, kwargs)

    def method(self, name: str, *args: Any) -> fx.Node:
        """A call of a tensor's method."""
        with self._graph.inserting_before(self._node):
            return self._graph.call_method(name, args)

    def module(self, path: str, *args: Any) -> fx.Node:
        """A call of the submodule at `path`."""
        with self._graph.inserting_before(self._node):
            return self._graph.call_module(path, args)

    def attribute(self, path: str) -> fx.Node:
        """A read of the parameter or buffer at `path`."""
        with self._graph.inserting_before(self._node):
            return self._graph.get_attr(path)

    def constant(self, name: str, value: Tensor, beside: Any) -> fx.Node:
        """A read of a new parameter that is put next to the one behind `beside`, under `name` or one like it."""
        owner = str(parameter_reads(beside)[0].target).rpartition(".")[0]
        graph_module = self._graph.owning_module
        assert graph_module is not None
        module = graph_module.get_submodule(owner)
        while name in module._parameters:
            name += "_"
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        return self.attribute(f"{owner}.{name}" if owner else name)

    def again(self) -> fx.Node:
        """The node that is being rewritten, once more, marked as one that has its branch."""
        copied = self.copy(self._node, lambda inner: inner)
        copied.meta["noble"] = True
        return copied

    def copy(self, node: fx.Node, inputs: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """`node` once more, with what `inputs` gives for each node that it reads."""
        with self._graph.inserting_before(self._node):
            return self._graph.node_copy(node, inputs)

    def sees(self, node: fx.Node) -> bool:
        """True for a node that stands before the insertion point."""
        return node < self._node
