"""A model run by exported graphs, one for each mode, over its own module tree.

    noble_modules   train, eval    run by `forward`, chosen by `training`; they read the tree live
    noble_graphs    train, eval    the same without branches, for `disabled`
    noble_call      how arguments become the graphs' inputs, and their outputs the original result
    noble_checks    train, eval    what each graph takes for granted of the model, looked at before it runs

The graphs stand in for the forward of every module inside: hooks on those modules would not run, and are refused.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from noble_fx.captures.assumed import Assumed, Check
from noble_fx.captures.base import HISTORY
from noble_fx.captures.call import Call
from noble_fx.captures.graph_pickle import read_graph, set_keys, write_graph
from noble_fx.captures.in_place import OverUsersClass, enter_class
from noble_fx.captures.portable import run_portable
from noble_fx.errors import CaptureError
from noble_fx.exporting import leaves_this_process
from noble_fx.passes.history import History

MODES = ("train", "eval")
_OWN = frozenset(("noble_modules", "noble_graphs", "noble_call", "noble_checks"))
_TABLES = ("_modules", "_parameters", "_buffers")


class GraphOverTree(fx.GraphModule):
    """A graph that reads its parameters and modules from another module's tables, as they are at that moment."""

    def __init__(self, tree: nn.Module, graph: fx.Graph, constants: dict[str, Any], class_name: str):
        super().__init__(_Root(tree, constants), graph, class_name)
        for table in _TABLES:
            self.__dict__[table] = tree.__dict__[table]  # the very same dicts
        self.__dict__.update(constants)

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        raise CaptureError("copy the ExportedModel, not one of its graphs")


class _Root(nn.Module):
    def __init__(self, tree: nn.Module, constants: dict[str, Any]):
        super().__init__()
        self.__dict__.update({table: tree.__dict__[table] for table in _TABLES})
        self.__dict__.update(constants)


@dataclass
class Graphs:
    """The graphs of the base model by mode, what they read besides its tree, and where they were made for."""

    base: dict[str, fx.Graph]
    constants: dict[str, Any]
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class Captured:
    """What export makes of a model: graphs, how they are called, and what each takes for granted, by mode."""

    graphs: Graphs
    call: Call
    assumed: dict[str, Assumed]


@dataclass(frozen=True)
class Held:
    """All that makes a model an `ExportedModel`: `running` and `history` by mode."""

    captured: Captured
    running: dict[str, fx.Graph]
    history: dict[str, History]


class ExportedModel(OverUsersClass, nn.Module):
    """A model as two exported programs, `.train()` and `.eval()`, behind its original signature and result types."""

    noble_modules: dict[str, GraphOverTree]
    noble_graphs: Graphs
    noble_call: Call
    noble_checks: dict[str, Check]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        mode = "train" if self.training else "eval"
        self.noble_checks[mode]()
        leaves, graph = self.noble_call.leaves(args, kwargs), self.noble_modules[mode]
        out = run_portable(graph, *leaves) if leaves_this_process() else graph(*leaves)
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
        for name, value in held.constants.items():
            if isinstance(value, Tensor):
                held.constants[name] = fn(value)
        if after.device != held.device:
            _move(self, after.device)
        return self

    def noble_copied(self) -> Held:
        base = {mode: copy.deepcopy(graph) for mode, graph in self.noble_graphs.base.items()}
        constants = {name: copy.deepcopy(value) for name, value in self.noble_graphs.constants.items()}
        running = {mode: copy.deepcopy(module.graph) for mode, module in self.noble_modules.items()}
        return Held(self._captured(base, constants), running, histories(self))

    def noble_written(self) -> Any:
        base = {mode: write_graph(graph) for mode, graph in self.noble_graphs.base.items()}
        running = {mode: write_graph(module.graph) for mode, module in self.noble_modules.items()}
        return Held(self._captured({}, self.noble_graphs.constants), {}, histories(self)), base, running

    @staticmethod
    def noble_read(model: nn.Module, written: Any) -> Held:
        held, base, running = written
        graphs = {mode: read_graph(text) for mode, text in running.items()}
        for graph in graphs.values():
            set_keys(graph, model)
        captured: Captured = held.captured
        base = {mode: read_graph(text) for mode, text in base.items()}
        return replace(held, captured=replace(captured, graphs=replace(captured.graphs, base=base)), running=graphs)

    def _captured(self, base: dict[str, fx.Graph], constants: dict[str, Any]) -> Captured:
        """What was captured, with these graphs and constants."""
        assumed = {mode: check.as_now() for mode, check in self.noble_checks.items()}
        return Captured(replace(self.noble_graphs, base=base, constants=constants), self.noble_call, assumed)

    @staticmethod
    def noble_enter(model: Any, held: Held) -> None:
        captured = held.captured
        enter_class(model, ExportedModel, forward=_forward_with_signature(captured.call))
        checks = {mode: Check(model, assumed) for mode, assumed in captured.assumed.items()}
        vars(model).update(noble_graphs=captured.graphs, noble_call=captured.call, noble_checks=checks)
        use_graphs(model, held.running, held.history)

    def noble_own(self) -> frozenset[str]:
        return _OWN


def use_graphs(model: ExportedModel, graphs: dict[str, fx.Graph], history: dict[str, History]) -> None:
    """Run these from now on, one per mode."""
    constants, modules = model.noble_graphs.constants, {}
    for mode, graph in graphs.items():
        modules[mode] = GraphOverTree(model, graph, constants, f"Exported{mode.capitalize()}")
        modules[mode].meta[HISTORY] = history.get(mode, History())
    vars(model)["noble_modules"] = modules


def histories(model: ExportedModel) -> dict[str, History]:
    """What the passes did to each running graph."""
    return {mode: module.meta.get(HISTORY, History()) for mode, module in model.noble_modules.items()}


def _move(model: ExportedModel, device: torch.device) -> None:
    """Graphs name the device of the tensors that they make; follow the parameters."""
    before, model.noble_graphs.device = model.noble_graphs.device, device

    def moved(value: Any) -> Any:
        return device if value == before or (isinstance(value, torch.device) and value.type == before.type) else value

    running = {mode: module.graph for mode, module in model.noble_modules.items()}
    for graph in {id(g): g for g in [*model.noble_graphs.base.values(), *running.values()]}.values():
        for node in graph.nodes:
            node.args = fx.node.map_aggregate(node.args, moved)
            node.kwargs = fx.node.map_aggregate(node.kwargs, moved)
    use_graphs(model, running, histories(model))


def _forward_with_signature(call: Call) -> Any:
    """A forward for one model, so that `inspect.signature(model.forward)` and what relies on it see the original's."""

    def forward(self: ExportedModel, *args: Any, **kwargs: Any) -> Any:
        return ExportedModel.forward(self, *args, **kwargs)

    forward.__signature__ = call.signature()  # type: ignore[attr-defined]
    return forward
