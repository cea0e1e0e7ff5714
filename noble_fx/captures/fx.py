"""The fx capture, by name: a model run as one `fx.GraphModule` that is an instance of the user's class too."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from noble_fx.captures.assumed import Assumed, Check, check_hooks
from noble_fx.captures.base import HISTORY, Capture, Declined, Examples, Plan
from noble_fx.captures.block_places import candidates, places_shown, plain_stacks, shown_in
from noble_fx.captures.graph_pickle import read_graph, set_keys, write_graph
from noble_fx.captures.in_place import OverUsersClass, enter_class, leave_class
from noble_fx.captures.portable import portable, run_portable
from noble_fx.captures.tracing import trace, trace_watched
from noble_fx.config import NobleConfig
from noble_fx.errors import Refusal
from noble_fx.exporting import leaves_this_process
from noble_fx.layers.registry import projections
from noble_fx.passes.history import History
from noble_fx.sites.choose import choose
from noble_fx.sites.find import LinearMap, find_maps
from noble_fx.sites.flow import flow_roles
from noble_fx.sites.site import Site


@dataclass(frozen=True)
class Running:
    """All that makes a model a `CapturedModel`."""

    graph: fx.Graph
    assumed: Assumed
    history: History = History()  # noqa: RUF009  # it never changes


class CapturedModel(OverUsersClass, fx.GraphModule):
    """A model as one graph over its own module tree, whose parameters are read when the graph runs."""

    noble_check: Check

    @property  # torch.export takes the graph of a GraphModule without calling it
    def graph(self) -> fx.Graph:
        if not leaves_this_process():
            return self._graph
        self.noble_check()
        return portable(self._graph)

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        fx.GraphModule.graph.fset(self, graph)  # type: ignore[attr-defined]

    def recompile(self) -> Any:
        code = super().recompile()
        kind: Any = type(self)
        run = kind.forward
        called = {str(node.target) for node in self.graph.nodes if node.op == "call_module"}
        self.noble_check.run_past(called)

        @functools.wraps(run)
        def forward(self: CapturedModel, *args: Any, **kwargs: Any) -> Any:
            self.noble_check()
            if leaves_this_process():
                return run_portable(self, *args, **kwargs)
            return run(self, *args, **kwargs)

        kind.forward = forward
        return code

    def noble_copied(self) -> Running:
        return Running(copy.deepcopy(self.graph), self.noble_check.as_now(), self.meta.get(HISTORY, History()))

    def noble_written(self) -> Any:
        return write_graph(self.graph), self.noble_check.as_now(), self.meta.get(HISTORY, History())

    @staticmethod
    def noble_read(model: nn.Module, written: Any) -> Running:
        graph = read_graph(written[0])
        set_keys(graph, model)
        return Running(graph, *written[1:])

    @staticmethod
    def noble_enter(model: Any, running: Running) -> None:
        enter_class(model, CapturedModel)
        attributes = vars(fx.GraphModule(nn.Module(), fx.Graph()))
        vars(model).update({name: attributes[name] for name in graph_attributes()})
        vars(model)["noble_check"] = Check(model, running.assumed)
        model.graph = running.graph
        model.meta[HISTORY] = running.history

    def noble_own(self) -> frozenset[str]:
        return graph_attributes() | {"noble_check"}


@functools.cache
def graph_attributes() -> frozenset[str]:
    """The instance attributes that this torch's `GraphModule` has besides those of every module."""
    return frozenset(vars(fx.GraphModule(nn.Module(), fx.Graph()))) - frozenset(vars(nn.Module()))


def run_as_graph(model: nn.Module, graph: fx.Graph, assumed: Assumed = Assumed()) -> Any:  # noqa: B008  # it is frozen
    """Make `model` run `graph`, in place; returns it."""
    CapturedModel.noble_enter(model, Running(graph, assumed))
    return model


class Fx(Capture):
    """One graph of the whole model by symbolic tracing, only where that is faithful."""

    calls_layers = True

    def plan(self, model: nn.Module, config: NobleConfig, examples: Examples) -> Plan | Refusal:
        try:
            _check_names(model)
            check_hooks(model)
            with places_shown(model, candidates(model, config)):
                graph, assumed = trace_watched(model)
        except Declined as reason:
            return Refusal(str(reason))
        sites = choose(model, find_maps(model, flow_roles(model, plain_stacks(graph))), config)
        hidden = unreachable(graph, model, sites)
        return hidden or Plan(config, sites, (graph, assumed))

    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        run_as_graph(model, *plan.graphs)
        self.rewrite(model, "train")
        return model

    def maps(self, model: nn.Module) -> list[LinearMap]:
        if self.holds(model):
            return super().maps(model)
        try:
            return find_maps(model, flow_roles(model, trace(model)))
        except Declined:
            return super().maps(model)

    def holds(self, module: nn.Module) -> bool:
        return isinstance(module, CapturedModel)

    def graphs(self, module: Any) -> dict[str, fx.GraphModule]:
        return {"": module}

    def check(self, module: Any) -> None:
        module.noble_check()

    def rewrite(self, module: Any, pipeline: str) -> History:
        steps = super().rewrite(module, pipeline)
        module.noble_check.take_branches(module)
        return steps

    def remove(self, module: Any) -> None:
        leave_class(module)


def _check_names(model: nn.Module) -> None:
    if isinstance(model, fx.GraphModule):
        raise Declined("it is a GraphModule already")
    taken = {name for name in vars(fx.GraphModule) if not name.startswith("__")} | graph_attributes()
    own = {name for kind in type(model).__mro__ if kind not in nn.Module.__mro__ for name in vars(kind)} | set(
        vars(model)
    )
    members = {*model._modules, *model._parameters, *model._buffers}
    if both := sorted(taken & (own | members)):
        raise Declined(f"it has {both[0]!r}, which is a GraphModule's own word")


def unreachable(graph: fx.Graph, model: nn.Module, sites: Iterable[Site]) -> Refusal | None:
    """Why a chosen layer cannot be rewritten in this graph: it lies inside a leaf, or is never called."""
    called = {node.target for node in graph.nodes if node.op == "call_module"}
    leaves = tuple(f"{target}." for target in called)
    called |= shown_in(graph)
    for fqn in (_runner(model, site) for site in sites if site.selected):
        if fqn not in called:
            inside = [leaf[:-1] for leaf in leaves if fqn.startswith(leaf)]
            where = f"inside {inside[0]}, which the graph calls as a whole" if inside else "not called as a module"
            return Refusal(f"{fqn} is {where}")
    return None


def _runner(model: nn.Module, site: Site) -> str:
    """The module whose call runs the site: the layer itself, or the attention that reads its weight."""
    owner = site.fqn.rpartition(".")[0]
    return owner if projections(model.get_submodule(owner)) else site.fqn
