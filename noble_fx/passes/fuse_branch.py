"""Make a linear map and its branch one operator."""

from __future__ import annotations

import operator

from torch import fx
from torch.nn import functional as F

from noble_fx.passes.rule import Answer, Build, Target, rule
from noble_fx.program import Skip
from noble_fx.schema import LINEAR


@rule(operator.add)
def fuse_branch(build: Build, node: fx.Node, target: Target) -> Answer:
    """linear(x, w, b) + noble(x)  ->  noble_fx::linear(x, w, b, D, d, U, σ's tensors, σ's key)"""
    linear, call = node.args
    branch = target.branch(call)
    if branch is None or not isinstance(linear, fx.Node) or linear.target is not F.linear:
        return Skip("not a branch")
    if branch.unfused:
        return Skip(branch.unfused)
    path = str(call.target)  # type: ignore[union-attr]
    names = [f"{path}.act.{n}" for n, _ in [*branch.act.named_parameters(), *branch.act.named_buffers()]]
    rows = [arg for arg in call.args[1:] if arg is not None]  # type: ignore[union-attr]
    up = build.attribute(f"{path}.up")
    down_bias = build.attribute(f"{path}.down_bias") if branch.down_bias is not None else None
    return build.call(
        LINEAR,
        *linear.args,
        build.attribute(f"{path}.down"),
        down_bias,
        build.call(operator.getitem, up, *rows) if rows else up,
        [build.attribute(name) for name in names],
        branch.key,
    )
