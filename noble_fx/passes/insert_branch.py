"""Add the branch beside a chosen linear map."""

from __future__ import annotations

import operator

from torch import fx
from torch.nn import functional as F

from noble_fx.passes.rule import Answer, Build, Target, rule
from noble_fx.program import Skip


@rule(F.linear)
def insert_branch(build: Build, node: fx.Node, target: Target) -> Answer:
    """linear(x, w, b)  ->  linear(x, w, b) + noble(x)"""
    found = target.layer_of(node)
    if found is None:
        return Skip("not selected")
    if any(target.branch(other) for user in node.users for other in user.args):
        return Skip("has its branch already")
    x, weight, *rest = node.args
    again = build.call(F.linear, x, weight, rest[0] if rest else node.kwargs.get("bias"))
    return build.call(operator.add, again, build.module(f"{found[0]}.noble", x))
