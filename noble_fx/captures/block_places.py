"""Blocks that show in a graph where a branch around them belongs: what a capture traces for scope="block".

    block(x)   ->   add_to_block(block(x), noble_fx::block_branch(x, "layers.0"))      zeros, until a pass fills it

A linear map is a node, and a branch can be put beside it in any graph. A block is many nodes, or none of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from noble_fx.config import NobleConfig
from noble_fx.layers import block
from noble_fx.layers.block import hidden_input, with_hidden
from noble_fx.schema import BLOCK_BRANCH
from noble_fx.sites.block_maps import block_maps
from noble_fx.sites.find import find_maps
from noble_fx.sites.site import BLOCK

fx.wrap("add_to_block")
add_to_block = block.add_to_block


def candidates(model: nn.Module, config: NobleConfig) -> dict[str, int]:
    """The blocks of `model` that may get a branch, with their widths; none with another scope."""
    maps = block_maps(model, find_maps(model)) if config.scope == BLOCK else []
    return {entry.site.fqn: entry.site.in_features for entry in maps if not entry.obstacle}


@contextmanager
def places_shown(model: nn.Module, blocks: dict[str, int]) -> Iterator[None]:
    """Inside, these blocks of `model`, which have no branches, are of classes that show the place of one."""
    swapped = [(model.get_submodule(name), name, width) for name, width in blocks.items()]
    kinds = [(module, type(module)) for module, *_ in swapped]
    try:
        for module, name, width in swapped:
            module.__class__ = _showing(type(module), name, width)
        yield
    finally:
        for module, kind in kinds:
            module.__class__ = kind


def _showing(kind: Any, name: str, width: int) -> Any:
    argument = block.class_with_branch(block.AroundBlock, kind)._input_name

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        x = hidden_input(kind.__qualname__, argument, width, args, kwargs)
        added = BLOCK_BRANCH(x, name)
        return with_hidden(kind.forward(self, *args, **kwargs), lambda y: add_to_block(y, added), kind.__qualname__)

    own = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__, "_noble_kind": kind}
    return type(kind.__name__, (kind,), own)


def plain_stacks(graph: fx.Graph) -> fx.Graph:
    """The graph with the blocks' own classes in what its nodes say of where they come from."""
    for node in graph.nodes:
        if stack := node.meta.get("nn_module_stack"):
            own = {key: (name, getattr(kind, "_noble_kind", kind)) for key, (name, kind) in stack.items()}
            node.meta["nn_module_stack"] = own
    return graph


def shown_in(graph: fx.Graph) -> set[str]:
    """The names of the blocks whose places the graph shows."""
    return {str(node.args[1]) for node in graph.nodes if node.target is BLOCK_BRANCH}
