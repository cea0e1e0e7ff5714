"""The interface of every capture, and what all of them share.

    Capture.plan(model, config, examples)  ->  Plan | Refusal      decides everything, changes nothing
    Capture.build(model, plan)             ->  the module to call  the branches are in the tree by then

`captures/table.py` has the captures by name; a verb asks the table and never for a captured model's class.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from noble_fx.config import NobleConfig
from noble_fx.errors import CaptureError, Refusal
from noble_fx.passes.history import History
from noble_fx.passes.pipeline import PIPELINES
from noble_fx.passes.rule import run_passes
from noble_fx.sites.find import LinearMap, find_maps
from noble_fx.sites.site import Site
from noble_fx.torch_versions import is_compiled

HISTORY = "noble_fx"  # where a graph module keeps the history of its passes, in `meta`


class Declined(Exception):
    """Why a capture would not be faithful; inside captures/ alone, `Capture.plan` answers with a `Refusal`."""


@dataclass(frozen=True)
class Examples:
    """The inputs that the caller gave to run a model on, and `dynamic_shapes` in torch.export's form."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None

    @classmethod
    def of(cls, args: Any = None, kwargs: dict[str, Any] | None = None, dynamic_shapes: Any = None) -> Examples:
        """From what a user may pass: nothing, one tensor, or a sequence."""
        args = (args,) if isinstance(args, Tensor) else tuple(args if args is not None else ())
        return cls(args, dict(kwargs or {}), dynamic_shapes)

    def __bool__(self) -> bool:
        return bool(self.args or self.kwargs or self.dynamic_shapes is not None)


@dataclass(frozen=True)
class Plan:
    """What a transform will do: the settings, every site, and what the capture builds from."""

    config: NobleConfig
    sites: tuple[Site, ...]
    graphs: Any = None

    @property
    def selected(self) -> list[Site]:
        """The sites that get a branch."""
        return [site for site in self.sites if site.selected]


class Capture(ABC):
    """One way from a model to graphs. `plan` and `build` must be written; the rest is right for one without graphs."""

    takes_examples: ClassVar[bool] = False  # whether it runs the model on example inputs
    calls_layers: ClassVar[bool] = False  # whether what it builds calls the layers, whatever form their W has

    @abstractmethod
    def plan(self, model: nn.Module, config: NobleConfig, examples: Examples) -> Plan | Refusal:
        """What to do with `model`, which stays as it is, or why this capture cannot hold it; raises `ConfigError`."""

    @abstractmethod
    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        """The module that runs in the place of `model`, whose tree has its branches already."""

    def maps(self, model: nn.Module) -> list[LinearMap]:
        """Every linear map of `model`, captured or not, as far as it shows without example inputs."""
        return find_maps(model)

    def holds(self, module: nn.Module) -> bool:
        """True for a module that runs graphs which this capture built."""
        return False

    def graphs(self, module: nn.Module) -> dict[str, fx.GraphModule]:
        """The graphs that a module which it holds runs, by mode ("" where both modes have one)."""
        return {}

    def check(self, module: nn.Module) -> None:  # noqa: B027  # a graph that takes nothing for granted
        """Raise `CaptureError` where a graph of `graphs` must not be run: for who runs it past the module's forward."""

    def rewrite(self, module: nn.Module, pipeline: str) -> History:
        """Run a pipeline over each of the module's graphs, in place; each keeps the history."""
        done = History()
        for graph_module in self.graphs(module).values():
            steps = run_passes(graph_module, PIPELINES[pipeline], listed=True)
            graph_module.meta[HISTORY] = graph_module.meta.get(HISTORY, History()) + steps
            done += steps
        return done

    @contextmanager
    def disabled(self, module: nn.Module) -> Iterator[None]:
        """Inside, a module that it holds runs the base model's graphs."""
        running = [(graph_module, graph_module.graph) for graph_module in self.graphs(module).values()]
        try:
            for graph_module, graph in running:
                graph_module.graph = copy.deepcopy(graph)
                run_passes(graph_module, PIPELINES["base"])
            yield
        finally:
            for graph_module, graph in running:
                graph_module.graph = graph

    def remove(self, module: nn.Module) -> None:
        """Undo `build`: nothing that a module which it holds runs needs a branch. They are taken out afterwards."""
        self.rewrite(module, "base")

    def inputs(self, module: nn.Module) -> dict[str, Any] | None:
        """The example inputs as plain JSON values, for `save`; None where none were needed."""
        return None

    def notes(self, module: nn.Module) -> tuple[str, ...]:
        """What a user should know of a module that it holds: sizes that are fixed, a cache that is left out."""
        return ()


def check_model(model: Any) -> None:
    """Refuse what is no plain nn.Module any more (compiled, scripted)."""
    if not isinstance(model, nn.Module):
        raise CaptureError(f"noble_fx.transform takes an nn.Module, not {type(model).__name__}")
    if is_compiled(model):
        raise CaptureError("the model is already compiled; transform the plain model, then call torch.compile on it")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("the model is a ScriptModule, which cannot be rewritten; transform the Python model")
