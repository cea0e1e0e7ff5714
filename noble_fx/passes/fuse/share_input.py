"""Make sites that read the same input one call: q, k and v of an attention, gate and up of an FFN."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from noble_fx.passes.effects import has_effect
from noble_fx.passes.history import Skip
from noble_fx.passes.rule import Answer, Build, Target, rule
from noble_fx.schema import LINEAR, LINEAR_GROUP
from noble_fx.sites.views import view_of

_SITES = (LINEAR, LINEAR_GROUP)
_ARGUMENTS = 8


@rule(LINEAR)
def share_input(build: Build, node: fx.Node, target: Target) -> Answer:
    """linear(x, …), linear(x, …)  ->  getitem(linear_group(x, […], …), 0), getitem(linear_group(x, […], …), 1)"""
    if len(node.args) != _ARGUMENTS:
        return Skip("called with keywords")
    siblings = [user for user in node.args[0].users if user is not node and _reads(user, node.args[0])]  # type: ignore[union-attr]
    if not siblings:
        return Skip("reads x alone")
    members, _ = _members(node, target)
    if len(members) == 1:
        reason = _difference(node, siblings[0], target) or _members(min(node, siblings[0]), target)[1]
        return Skip(reason or "the others are a group already")
    fields = [[_hoisted(build, member.args[i], target) for member in members] for i in range(1, 6)]
    act = [_hoisted(build, one, target) for member in members for one in member.args[6]]  # type: ignore[union-attr]
    present = [[] if field[0] is None else field for field in fields]
    group = build.call(LINEAR_GROUP, node.args[0], *present, act, node.args[7])
    group.meta = {name: value for name, value in node.meta.items() if name not in ("val", "example_value")}
    for name in ("val", "example_value"):
        if all(name in member.meta for member in members):
            group.meta[name] = [member.meta[name] for member in members]
    return {member: build.call(operator.getitem, group, i) for i, member in enumerate(members)}


def _reads(node: fx.Node, x: Any) -> bool:
    return node.target in _SITES and len(node.args) == _ARGUMENTS and node.args[0] is x


def _members(node: fx.Node, target: Target) -> tuple[list[fx.Node], str]:
    """`node` and the later sites that may join it, and why the walk through the graph ended or left one out.

    It ends at the next site of another input: what is computed before it would be held until after it. So the keys
    and values that every layer of a decoder makes of the encoder's output stay with their layers.
    """
    members, reason, one = [node], "", node.next
    while one.op != "output":
        if _reads(one, node.args[0]) and one.target is LINEAR:
            why = _difference(node, one, target)
            if not why and not all(_movable(arg, node, target) for arg in one.all_input_nodes):
                why = "the parameters of another are computed after it"
            members += [] if why else [one]
            reason = reason or why
        elif one.target in _SITES:
            return members, reason or "another site lies in between"
        elif has_effect(one, target):
            return members, reason or f"{one.name} in between may change what it reads, or how"
        one = one.next
    return members, reason


def _difference(one: fx.Node, other: fx.Node, target: Target) -> str:
    """Why two sites of one input cannot share a call; empty where they can."""
    rank, key, bias, down_bias = _traits(one, target)
    rank_there, key_there, bias_there, down_bias_there = _traits(other, target)
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


def _traits(node: fx.Node, target: Target) -> tuple[int | None, Any, bool, bool]:
    """Rank, σ, and whether there is a bias and a bias of D, of a site or of a group of them."""
    _, _, bias, down, down_bias, _, _, key = node.args
    down = down if node.target is LINEAR else down[0]  # type: ignore[index]
    return _rank(down, target), key, bool(bias), bool(down_bias)


def _rank(down: Any, target: Target) -> int | None:
    shape = target.shape_of(str(down.target)) if down.op == "get_attr" else None
    value = down.meta.get("val", down.meta.get("example_value"))
    return int(shape[0]) if shape is not None else int(value.shape[0]) if value is not None else None


def _movable(arg: fx.Node, anchor: fx.Node, target: Target) -> bool:
    """True for what is there before `anchor`, and for parameters and views of them, which can be read earlier."""
    return arg < anchor or arg.op == "get_attr" or view_of(arg, target.shape_of) is not None


def _hoisted(build: Build, arg: Any, target: Target) -> Any:
    """`arg` where it stands before the insertion point, else the same reads and views once more."""
    if not isinstance(arg, fx.Node) or build.sees(arg):
        return arg
    return build.copy(arg, lambda inner: _hoisted(build, inner, target))
