"""A model run by exported graphs, one for each mode, over its own module tree.

    ExportedModel
      the user's modules, parameters and buffers, under their own names: what state_dict, .to and optimizers see
      graphs   train, eval       run by `forward`, chosen by `training`; they read the tree live
      base     train, eval       the same without branches, for `disabled` and `remove`
      call     how arguments become the graphs' inputs, and their outputs the original result

The graphs stand in for the forward of every module inside: hooks on those modules do not run.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from noble_fx.captures.call import Call
from noble_fx.captures.graph_pickle import read_graph, write_graph
from noble_fx.errors import CaptureError

MODES = ("train", "eval")
_OWN = ("noble_modules", "noble_graphs", "noble_call")


class GraphOverTree(fx.GraphModule):
    """A graph that reads its parameters and modules from another module's tables, as they are at that moment."""

    def __init__(self, tree: nn.Module, graph: fx.Graph, constants: dict[str, Any], class_name: str):
        super().__init__(_Root(tree, constants), graph, class_name)
        for table in ("_modules", "_parameters", "_buffers"):
            self.__dict__[table] = tree.__dict__[table]  # the very same dicts
        self.__dict__.update(constants)

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        raise CaptureError("copy the ExportedModel, not one of its graphs")


class _Root(nn.Module):
    def __init__(self, tree: nn.Module, constants: dict[str, Any]):
        super().__init__()
        self.__dict__.update({k: v for k, v in tree.__dict__.items() if k in ("_modules", "_parameters", "_buffers")})
        self.__dict__.update(constants)


@dataclass
class Graphs:
    """The graphs of an `ExportedModel`, base and rewritten, with the history of the rewrite by mode."""

    base: dict[str, fx.Graph]
    constants: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    history: dict[str, tuple[Any, ...]] = field(default_factory=dict)


class ExportedModel(nn.Module):
    """A model as two exported programs, `.train()` and `.eval()`, behind its original signature and result types."""

    noble_modules: dict[str, GraphOverTree]
    noble_graphs: Graphs
    noble_call: Call

    def __init__(self, tree: nn.Module, graphs: Graphs, call: Call, rewritten: dict[str, fx.Graph] | None = None):
        super().__init__()
        for table in ("_modules", "_parameters", "_buffers"):
            self.__dict__[table] = dict(tree.__dict__[table])
        self._non_persistent_buffers_set = set(tree._non_persistent_buffers_set)
        for name, value in vars(tree).items():
            if name not in vars(self) and not name.startswith("_"):
                self.__dict__[name] = value
        self.training = tree.training
        self.__dict__["noble_graphs"], self.__dict__["noble_call"] = graphs, call
        self.use_graphs(rewritten or graphs.base)
        self.__class__ = _class_with_signature(call)

    def use_graphs(self, graphs: dict[str, fx.Graph]) -> None:
        """Run these from now on, one per mode."""
        self.__dict__["noble_modules"] = {
            mode: GraphOverTree(self, graph, self.noble_graphs.constants, f"Exported{mode.capitalize()}")
            for mode, graph in graphs.items()
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        mode = "train" if self.training else "eval"
        out = self.noble_modules[mode](*self.noble_call.leaves(args, kwargs))
        return pytree.tree_unflatten(out, self.noble_call.out_specs[mode])

    def _apply(self, fn: Any, recurse: bool = True) -> ExportedModel:
        held = self.noble_graphs
        after = fn(torch.empty(0, dtype=held.dtype, device=held.device))
        if after.dtype != held.dtype:
            raise CaptureError(
                f"the graphs were exported in {held.dtype}, and {after.dtype} would need others; use autocast, or "
                f"convert the model before noble_fx.transform"
            )
        super()._apply(fn, recurse)
        for name, value in self.noble_graphs.constants.items():
            if isinstance(value, Tensor):
                self.noble_graphs.constants[name] = fn(value)
        if after.device != held.device:
            self._move(after.device)
        return self

    def _move(self, device: torch.device) -> None:
        """Graphs name the device of the tensors that they make; follow the parameters."""
        before, self.noble_graphs.device = self.noble_graphs.device, device

        def moved(value: Any) -> Any:
            return (
                device if value == before or (isinstance(value, torch.device) and value.type == before.type) else value
            )

        current = {mode: module.graph for mode, module in self.noble_modules.items()}
        for graph in {id(g): g for g in [*self.noble_graphs.base.values(), *current.values()]}.values():
            for node in graph.nodes:
                node.args = fx.node.map_aggregate(node.args, moved)
                node.kwargs = fx.node.map_aggregate(node.kwargs, moved)
        self.use_graphs(current)

    def __deepcopy__(self, memo: dict[int, Any]) -> ExportedModel:
        tree = nn.Module()
        memo[id(self)] = tree  # a module that refers to the whole finds its copy
        tree.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self._tree_state().items()})
        graphs = copy.copy(self.noble_graphs)
        graphs.base = {mode: copy.deepcopy(graph) for mode, graph in self.noble_graphs.base.items()}
        graphs.history = dict(self.noble_graphs.history)
        graphs.constants = {k: copy.deepcopy(v) for k, v in self.noble_graphs.constants.items()}
        rewritten = {mode: copy.deepcopy(module.graph) for mode, module in self.noble_modules.items()}
        result = ExportedModel(tree, graphs, self.noble_call, rewritten)
        memo[id(self)] = result
        return result

    def _tree_state(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in _OWN}

    def __reduce__(self) -> tuple[Any, ...]:
        graphs = copy.copy(self.noble_graphs)
        graphs.base = {}
        base = {mode: write_graph(graph) for mode, graph in self.noble_graphs.base.items()}
        rewritten = {mode: write_graph(module.graph) for mode, module in self.noble_modules.items()}
        return _restore, (self._tree_state(), graphs, self.noble_call, base, rewritten)


def _class_with_signature(call: Call) -> type[ExportedModel]:
    """A class for one model, so that `inspect.signature(model.forward)` and what relies on it see the original's."""

    def forward(self: ExportedModel, *args: Any, **kwargs: Any) -> Any:
        return ExportedModel.forward(self, *args, **kwargs)

    forward.__signature__ = call.signature()  # type: ignore[attr-defined]
    return type("ExportedModel", (ExportedModel,), {"forward": forward, "__module__": __name__})


def _restore(state: dict[str, Any], graphs: Graphs, call: Call, base: Any, rewritten: Any) -> ExportedModel:
    tree = nn.Module()
    tree.__dict__.update(state)
    graphs.base = {mode: read_graph(written) for mode, written in base.items()}
    return ExportedModel(tree, graphs, call, {mode: read_graph(written) for mode, written in rewritten.items()})
