"""Take a group of sites apart again: for exports, and for passes that look at one site at a time."""

from __future__ import annotations

from typing import Any, cast

from torch import fx

from noble_fx.passes.build import Build
from noble_fx.passes.fuse.share_input import EXAMPLE
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.schema import LINEAR, LINEAR_GROUP


@rule(LINEAR_GROUP, example=EXAMPLE.reversed())
def split_group(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """getitem(linear_group(x, [w…], …), i)  ->  noble_fx::linear(x, wᵢ, …)"""
    x, *fields, act, key = cast("tuple[Any, ...]", node.args)
    count = len(fields[0])
    each = len(act) // count

    def site(i: int) -> fx.Node:
        own = [field[i] if field else None for field in fields]
        return build.call(LINEAR, x, *own, act[i * each : (i + 1) * each], key)

    return {user: site(cast("int", user.args[1])) for user in list(node.users)}
