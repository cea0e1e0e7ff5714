"""Make sites that read the same input one call: q, k and v of an attention, gate and up of an FFN."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from noble_fx.ops.operands import Operands
from noble_fx.passes.build import Build
from noble_fx.passes.effects import has_effect
from noble_fx.passes.example import Example, branch_operands, layers
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.schema import LINEAR, LINEAR_GROUP
from noble_fx.sites.views import view_of

_PUTS_TOGETHER = ("add", "cat", "pad")  # by name, since Dynamo calls pad by another function than fx
_VALUES = ("val", "example_value")  # what exporters and Dynamo know of a node's result


def _apart(m: Any, x: Any) -> Any:
    return tuple(LINEAR(x, layer.weight, layer.bias, *branch_operands(layer.noble)) for layer in (m.q, m.k))


def _grouped(m: Any, x: Any) -> Any:
    q, k = m.q.noble, m.k.noble
    tensors = [m.q.weight, m.k.weight], [m.q.bias, m.k.bias], [q.down, k.down], [q.down_bias, k.down_bias], [q.up, k.up]
    y = LINEAR_GROUP(x, *tensors, [*q.act.parameters(), *k.act.parameters()], q.key)
    return y[0], y[1]


EXAMPLE = Example(before=_apart, after=_grouped, model=layers)


@rule(LINEAR, example=EXAMPLE)
def share_input(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """linear(x, …), linear(x, …)  ->  getitem(linear_group(x, […], …), 0), getitem(linear_group(x, […], …), 1)"""
    siblings = [user for user in _x(node).users if user is not node and _reads(user, _x(node))]
    if not siblings:
        return Skip("reads x alone")
    members, _ = _members(node, graph)
    if len(members) == 1:
        reason = _difference(node, siblings[0], graph) or _members(min(node, siblings[0]), graph)[1]
        return Skip(reason or "the others are a group already")
    together: Operands[Any] = Operands.join([Operands.of_node(member) for member in members])
    group = build.call(LINEAR_GROUP, *together.map(lambda operand: _hoisted(build, operand, graph)).group_args())
    group.meta = {name: value for name, value in node.meta.items() if name not in _VALUES}
    for name in _VALUES:
        if all(name in member.meta for member in members):
            group.meta[name] = [member.meta[name] for member in members]
    return {member: build.call(operator.getitem, group, i) for i, member in enumerate(members)}


def _x(site: fx.Node) -> fx.Node:
    x: fx.Node = Operands.of_node(site).x
    return x


def _is_site(node: fx.Node) -> bool:
    return node.target in (LINEAR, LINEAR_GROUP)


def _reads(node: fx.Node, x: fx.Node) -> bool:
    return _is_site(node) and _x(node) is x


def _members(site: fx.Node, graph: ModelGraph) -> tuple[list[fx.Node], str]:
    """`site` and the later ones that may join it, and why the walk through the graph ended or left one out.

    It ends at the next site of another input: what is computed before it would be held until after it. So the keys
    and values that every layer of a decoder makes of the encoder's output stay with their layers.
    """
    members, reason, node = [site], "", site.next
    while node.op != "output":
        if node.target is LINEAR and _reads(node, _x(site)):
            against = _difference(site, node, graph)
            if not against and not all(_movable(arg, site, graph) for arg in node.all_input_nodes):
                against = "the parameters of another are computed after it"
            members += [] if against else [node]
            reason = reason or against
        elif _is_site(node):
            return members, reason or "another site lies in between"
        elif has_effect(node, graph):
            return members, reason or f"{node.name} in between may change what it reads, or how"
        node = node.next
    return members, reason


def _difference(site: fx.Node, other: fx.Node, graph: ModelGraph) -> str:
    """Why two sites of one input cannot share a call; empty where they can."""
    rank, key, bias, down_bias = _traits(site, graph)
    rank_there, key_there, bias_there, down_bias_there = _traits(other, graph)
    if rank is None or rank_there is None:
        return "the rank of a branch is not known here"
    if rank != rank_there:
        return f"another rank: {rank} here, {rank_there} there"
    if key != key_there:
        return "another σ there"
    for name, here, there in (("bias", bias, bias_there), ("bias of D", down_bias, down_bias_there)):
        if here != there:
            return f"a {name} here, none there" if here else f"no {name} here, one there"
    return ""


def _traits(node: fx.Node, graph: ModelGraph) -> tuple[int | None, str, bool, bool]:
    """Rank, σ, and whether there is a bias and a bias of D, of a site or of a group of them."""
    operands: Operands[Any] = Operands.of_node(node)
    first = operands.sites[0]
    return _rank(first.down, graph), operands.key, first.bias is not None, first.down_bias is not None


def _rank(down: fx.Node, graph: ModelGraph) -> int | None:
    if down.target is torch.cat:  # of a branch and adapters beside it
        ranks = [_rank(part, graph) for part in down.all_input_nodes]
        return None if None in ranks else sum(rank or 0 for rank in ranks)
    shape = graph.shape_of(str(down.target)) if down.op == "get_attr" else None
    value = next((down.meta[name] for name in _VALUES if name in down.meta), None)
    return int(shape[0]) if shape is not None else int(value.shape[0]) if value is not None else None


def _movable(arg: fx.Node, anchor: fx.Node, graph: ModelGraph) -> bool:
    """True for what is there before `anchor`, and for parameters, views and sums of them, which can be read earlier."""
    if arg < anchor or arg.op == "get_attr" or view_of(arg, graph.shape_of) is not None:
        return True
    # Of a layer's bias and the one of a folded branch; of the matrices of a branch and of adapters beside it.
    of_parameters = arg.op == "call_function" and getattr(arg.target, "__name__", "") in _PUTS_TOGETHER
    return of_parameters and all(_movable(term, anchor, graph) for term in arg.all_input_nodes)


def _hoisted(build: Build, operand: fx.Node, graph: ModelGraph) -> fx.Node:
    """`operand` where it stands before the insertion point, else the same reads and views once more."""
    if build.sees(operand):
        return operand
    return build.copy(operand, lambda read: _hoisted(build, read, graph))
