"""Make an operator's node read the tensors of its folded branch."""

from __future__ import annotations

import operator

from torch import fx

from noble_fx.branches.base import Branch
from noble_fx.passes.fuse.fuse_branch import fused
from noble_fx.passes.history import Skip
from noble_fx.passes.rule import Answer, Build, Target, rule
from noble_fx.schema import LINEAR


@rule(LINEAR)
def fold_branch(build: Build, node: fx.Node, target: Target) -> Answer:
    """linear(x, w, b, D, d, U, ω₁ φ₁ M m ω₂ φ₂, cosnet)  ->  linear(x, w, b, D', d', U', M' m', cos∘M'∘cos)"""
    x, weight, bias, down, _, up, _, key = node.args
    path = str(down.target).removesuffix(".down") if isinstance(down, fx.Node) and down.op == "get_attr" else ""
    branch = target.module(path) if path else None
    if not isinstance(branch, Branch) or not branch.folded:
        return Skip("its branch is not folded")
    if key == branch.key:
        return Skip("folded already")
    rows = up.args[1:] if isinstance(up, fx.Node) and up.target is operator.getitem else ()
    return fused(build, branch, path, x, weight, bias, rows)
