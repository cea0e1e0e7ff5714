"""Make sites that read the same input one call: q, k and v of an attention, gate and up of an FFN."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from noble_fx.passes.build import Build
from noble_fx.passes.effects import has_effect
from noble_fx.passes.example import Example, branch_operands, layers
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.schema import LINEAR, LINEAR_GROUP
from noble_fx.sites.views import view_of

_SITES = (LINEAR, LINEAR_GROUP)
_ARGUMENTS = 8


def _apart(m: Any, x: Any) -> Any:
    return tuple(LINEAR(x, layer.weight, layer.bias, *branch_operands(layer.noble)) for layer in (m.q, m.k))


def _grouped(m: Any, x: Any) -> Any:
    weights, biases = [m.q.weight, m.k.weight], [m.q.bias, m.k.bias]
    down, down_bias, up, act, keys = zip(branch_operands(m.q.noble), branch_operands(m.k.noble), strict=True)
    y = LINEAR_GROUP(x, weights, biases, [*down], [*down_bias], [*up], [*act[0], *act[1]], keys[0])
    return y[0], y[1]


EXAMPLE = Example(before=_apart, after=_grouped, model=layers)


@rule(LINEAR, example=EXAMPLE)
def share_input(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """linear(x, …), linear(x, …)  ->  getitem(linear_group(x, […], …), 0), getitem(linear_group(x, […], …), 1)"""
    if len(node.args) != _ARGUMENTS:
        return Skip("called with keywords")
    siblings = [user for user in node.args[0].users if user is not node and _reads(user, node.args[0])]  # type: ignore[union-attr]
    if not siblings:
        return Skip("reads x alone")
    members, _ = _members(node, graph)
    if len(members) == 1:
        reason = _difference(node, siblings[0], graph) or _members(min(node, siblings[0]), graph)[1]
        return Skip(reason or "the others are a group already")
    fields = [[_hoisted(build, member.args[i], graph) for member in members] for i in range(1, 6)]
    act = [_hoisted(build, one, graph) for member in members for one in member.args[6]]  # type: ignore[union-attr]
    present = [[] if field[0] is None else field for field in fields]
    group = build.call(LINEAR_GROUP, node.args[0], *present, act, node.args[7])
    group.meta = {name: value for name, value in node.meta.items() if name not in ("val", "example_value")}
    for name in ("val", "example_value"):
        if all(name in member.meta for member in members):
            group.meta[name] = [member.meta[name] for member in members]
    return {member: build.call(operator.getitem, group, i) for i, member in enumerate(members)}


def _reads(node: fx.Node, x: Any) -> bool:
    return node.target in _SITES and len(node.args) == _ARGUMENTS and node.args[0] is x


def _members(node: fx.Node, graph: ModelGraph) -> tuple[list[fx.Node], str]:
    """`node` and the later sites that may join it, and why the walk through the graph ended or left one out.

    It ends at the next site of another input: what is computed before it would be held until after it. So the keys
    and values that every layer of a decoder makes of the encoder's output stay with their layers.
    """
    members, reason, one = [node], "", node.next
    while one.op != "output":
        if _reads(one, node.args[0]) and one.target is LINEAR:
            why = _difference(node, one, graph)
            if not why and not all(_movable(arg, node, graph) for arg in one.all_input_nodes):
                why = "the parameters of another are computed after it"
            members += [] if why else [one]
            reason = reason or why
        elif one.target in _SITES:
            return members, reason or "another site lies in between"
        elif has_effect(one, graph):
            return members, reason or f"{one.name} in between may change what it reads, or how"
        one = one.next
    return members, reason


def _difference(one: fx.Node, other: fx.Node, graph: ModelGraph) -> str:
    """Why two sites of one input cannot share a call; empty where they can."""
    rank, key, bias, down_bias = _traits(one, graph)
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


def _traits(node: fx.Node, graph: ModelGraph) -> tuple[int | None, Any, bool, bool]:
    """Rank, σ, and whether there is a bias and a bias of D, of a site or of a group of them."""
    _, _, bias, down, down_bias, _, _, key = node.args
    down = down if node.target is LINEAR else down[0]  # type: ignore[index]
    return _rank(down, graph), key, bool(bias), bool(down_bias)


def _rank(down: Any, graph: ModelGraph) -> int | None:
    shape = graph.shape_of(str(down.target)) if down.op == "get_attr" else None
    value = down.meta.get("val", down.meta.get("example_value"))
    return int(shape[0]) if shape is not None else int(value.shape[0]) if value is not None else None


def _movable(arg: fx.Node, anchor: fx.Node, graph: ModelGraph) -> bool:
    """True for what is there before `anchor`, and for parameters and views of them, which can be read earlier."""
    return arg < anchor or arg.op == "get_attr" or view_of(arg, graph.shape_of) is not None


def _hoisted(build: Build, arg: Any, graph: ModelGraph) -> Any:
    """`arg` where it stands before the insertion point, else the same reads and views once more."""
    if not isinstance(arg, fx.Node) or build.sees(arg):
        return arg
    return build.copy(arg, lambda inner: _hoisted(build, inner, graph))
