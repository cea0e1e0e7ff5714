"""The groups of an optimizer after a change of branches: as `param_groups` would give them, at today's rates.

A multiplier depends on the rank. So a parameter that takes another's place may have to go to a group of another
"lr_scale", and where there is none, one is made like the group that it leaves. Groups without "lr_scale" have one rate
for all, and keep it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.training.changing.parameter_changes import Change
from noble_fx.training.groups import Group

_RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # what schedulers keep in a group goes with its rate
_OWN = ("params", "param_names", "name", "lr_scale", *_RATES)
_Entry = tuple[nn.Parameter, str | None]


def changed_groups(groups: Sequence[Group], changes: Sequence[Change], order: Mapping[int, int]) -> list[Group]:
    """New groups for `changes`; `order` [id] is the place of each parameter of a branch in the model."""
    exchanged = {id(change.old): change for change in changes if not change.added}
    added: dict[int, list[Change]] = {}
    for change in changes:
        if change.added:
            added.setdefault(id(change.old), []).append(change)
    made: list[tuple[Group, list[_Entry]]] = [({**group}, []) for group in groups]
    filled = list(made)
    for group, (own, entries) in zip(groups, made, strict=True):
        for parameter, name in _entries(group):
            gone = exchanged.get(id(parameter))
            coming = [*added.get(id(parameter), []), *([gone] if gone is not None and gone.new is not None else [])]
            if gone is None:
                entries.append((parameter, name))
            for change in coming:
                assert change.new is not None
                entry = (change.new, None if name is None else change.name)
                _bucket(filled, own, change.ratio)[1].append(entry)
    kept = [(group, entries) for at, (group, entries) in enumerate(filled) if entries or _was_empty(groups, at)]
    return [_with(group, entries) for group, entries in _in_order(kept, order)]


def _entries(group: Group) -> list[_Entry]:
    names = group.get("param_names", [None] * len(group["params"]))
    return list(zip(group["params"], names, strict=True))


def _was_empty(groups: Sequence[Group], at: int) -> bool:
    return at < len(groups) and not groups[at]["params"]


def _bucket(filled: list[tuple[Group, list[_Entry]]], own: Group, ratio: float) -> tuple[Group, list[_Entry]]:
    """The group for a parameter of `own` at `ratio` times its multiplier, made where there is none."""
    if "lr_scale" not in own or math.isclose(ratio, 1.0, rel_tol=1e-9):
        return next(bucket for bucket in filled if bucket[0] is own)
    wanted = _scaled(own, ratio)
    for bucket in filled:
        if _alike(bucket[0], wanted):
            return bucket
    filled.append((wanted, []))
    return filled[-1]


def _scaled(group: Group, ratio: float) -> Group:
    out = {key: value * ratio if key in ("lr_scale", *_RATES) else value for key, value in group.items()}
    stem, times, _ = str(group.get("name", "")).rpartition(" ×")
    return {**out, "name": f"{stem} ×{out['lr_scale']:.4g}"} if times else out


def _alike(group: Group, other: Group) -> bool:
    if group.keys() != other.keys() or group.get("name") != other.get("name"):
        return False
    rates = ("lr_scale", *(key for key in _RATES if key in group))
    return all(math.isclose(float(group[key]), float(other[key]), rel_tol=1e-6) for key in rates) and all(
        _equal(group[key], other[key]) for key in group if key not in _OWN
    )


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return one is other or bool(one == other)


def _with(group: Group, entries: Sequence[_Entry]) -> Group:
    names = {"param_names": [name for _, name in entries]} if "param_names" in group else {}
    return {**group, "params": [parameter for parameter, _ in entries], **names}


def _in_order(
    filled: Sequence[tuple[Group, list[_Entry]]], order: Mapping[int, int]
) -> list[tuple[Group, list[_Entry]]]:
    """Groups of branches last and in the order of `param_groups`: a state_dict goes by positions."""

    def place(entry: _Entry) -> int:
        return order[id(entry[0])]

    def of_branches(group: Group, entries: Sequence[_Entry]) -> bool:
        return "lr_scale" in group and bool(entries) and all(id(parameter) in order for parameter, _ in entries)

    ours = [(group, sorted(entries, key=place)) for group, entries in filled if of_branches(group, entries)]
    others = [bucket for bucket in filled if not of_branches(*bucket)]
    return [*others, *sorted(ours, key=lambda bucket: place(bucket[1][0]))]
