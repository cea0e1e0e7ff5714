"""Whoever asks is told what each site computes, in one stretch of a program; outside of it nothing is there.

    with observed(model, see):      see(Call) at every call of a site with a branch
        model(x)

A layer's forward is replaced on the object, inside its hooks, where a sharded parameter is whole; the graphs of a
captured model run node by node. torch.compile steps aside meanwhile, and finds its compiled code as it was.
What runs again in backward (activation checkpointing) is not told twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from noble_fx.captures.table import captured
from noble_fx.errors import ConfigError
from noble_fx.layers.base import Augmented
from noble_fx.training.looking.observed_graphs import GraphObserver, called_modules
from noble_fx.training.looking.observed_layers import layer_observers
from noble_fx.training.looking.observer import Observer, See, in_place
from noble_fx.training.looking.places import names_by_holder, places
from noble_fx.wrappers import wrapper


@contextmanager
def observed(model: nn.Module, see: See) -> Iterator[None]:
    """Inside, `see` is told of every call of a site; `ConfigError` without branches, and where nobody could look."""
    names = names_by_holder(places(model))
    _check(model)
    with torch.compiler.set_stance("force_eager"), in_place(_observers(model, names, see)):
        yield


def _observers(model: nn.Module, names: dict[int, str], see: See) -> Iterator[Observer]:
    replaced: set[int] = set()  # by a graph that stands for them
    for capture, module in captured(model):
        graphs = capture.graphs(module).values()
        called = {id(each) for graph in graphs for each in called_modules(graph)}
        replaced |= {id(part) for part in module.modules()} - called
        for graph in graphs:
            yield GraphObserver(graph, partial(capture.check, module), names, see)
    for module in model.modules():
        if isinstance(module, Augmented) and id(module) not in replaced:
            yield from layer_observers(module, names, see)


def _check(model: nn.Module) -> None:
    """Refuse what copies its modules in each call, and a model that is watched already."""
    for fqn, module in model.named_modules():
        if wrapper(module) == "DataParallel":
            raise ConfigError(
                "DataParallel copies the model in each call, where nobody can look; use DistributedDataParallel, or "
                "look at its .module"
            )
        if any(isinstance(value, Observer) for value in vars(module).values()):
            raise ConfigError(f"{fqn or 'the model'} is being watched already; leave that `with` block first")
