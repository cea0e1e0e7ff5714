"""Make an operator's node read the tensors of its folded branch."""

from __future__ import annotations

import copy
import operator
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from noble_fx.errors import Refusal
from noble_fx.ops.operands import Operands
from noble_fx.passes.build import Build
from noble_fx.passes.example import Example, branch_operands, layer
from noble_fx.passes.fuse.fuse_branch import fused
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.schema import LINEAR


def _folded() -> nn.Module:
    """A layer whose branch is folded, and in `before` the branch as it was."""
    model: Any = layer().double()
    model.before = copy.deepcopy(model.noble)
    model.noble.fold()
    return model


_EXAMPLE = Example(
    before=lambda m, x: LINEAR(x, m.weight, m.bias, *branch_operands(m.noble)[:3], *branch_operands(m.before)[3:]),
    after=lambda m, x: LINEAR(x, m.weight, m.bias, *branch_operands(m.noble)),
    truth=lambda m, x: F.linear(x, m.weight, m.bias) + m.before(x),
    model=_folded,
)


@rule(LINEAR, example=_EXAMPLE)
def fold_branch(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """linear(x, w, b, D, d, U, ω₁ φ₁ M m ω₂ φ₂, cosnet)  ->  linear(x, w, b, D', d', U', M' m', cos∘M'∘cos)"""
    operands: Operands[Any] = Operands.of_node(node)
    (site,) = operands.sites
    path, branch = graph.owning_branch(site.down) or ("", None)
    form = branch.fused_form() if branch is not None and branch.folded else None
    if form is None:
        return Skip("its branch is not folded")
    if isinstance(form, Refusal):
        return Skip(form.reason)
    if operands.key == form.key:
        return Skip("folded already")
    rows = site.up.args[1:] if site.up.target is operator.getitem else ()
    return fused(build, form, path, operands.x, site.weight, site.bias, rows)
