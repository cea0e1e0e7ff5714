"""Whether σ is still what it was when it was traced: a few reads a module, in every call of the operator.

What σ computes is determined by the classes of its modules, their tree, their hooks, and the attributes that their
forwards read. A `Witness` remembers all of it; what is read was noted while σ was recorded (`observed.py`). Tensors are
read in every call and need no remembering. An attribute is remembered where a change of it shows: numbers, texts and
their like, containers of these, functions and classes; a σ that reads any other object is refused.

Not watched is what cannot be seen at this price: globals, what a function closes over, special methods of a class.
"""

from __future__ import annotations

import enum
import functools
import numbers
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from noble_fx.branches.keys import Recognised
from noble_fx.branches.observed import Notes
from noble_fx.errors import Refusal
from noble_fx.torch_versions import OpOverload, OpOverloadPacket

_ABSENT: Any = object()
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_TABLES = frozenset(vars(nn.Module())) - {"training"}  # of every module; of these, hooks and children are watched
_BY_VALUE = (numbers.Number, str, bytes, enum.Enum, torch.dtype, torch.device, torch.layout, torch.memory_format)
_BY_IDENTITY = (
    *(type, types.NoneType, types.ModuleType, types.FunctionType, types.MethodDescriptorType),
    *(OpOverload, OpOverloadPacket),
)
_CONTAINERS = (list, tuple, dict, set, frozenset, torch.Size)


@dataclass
class _Watched:
    """What is to be looked at."""

    empty: list[Any] = field(default_factory=list)  # tables of hooks, and of the children of modules that have none
    kinds: list[tuple[nn.Module, type]] = field(default_factory=list)
    children: list[tuple[Mapping[str, Any], int]] = field(default_factory=list)  # tables of children, and how many
    same: list[tuple[Mapping[str, Any], str, Any]] = field(default_factory=list)  # (table, name, the object there)
    tied: list[tuple[Any, str, Any, str]] = field(default_factory=list)  # (table, name, table, name): one tensor
    equal: list[tuple[Any, str, Any]] = field(default_factory=list)  # (module or class, name of an attribute, value)
    holding: list[tuple[Any, str, Any]] = field(default_factory=list)  # of lists and the like, whose `is` 2.11 lacks


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> tuple[tuple[Any, ...], ...]:
    """Rows as columns: of a row Dynamo would guard the tuple as well as what is in it."""
    return tuple(zip(*rows, strict=True)) or ((),) * width


class Witness:
    """Called, it says whether σ is what it was: True as long as nothing was changed."""

    __slots__ = ("_children", "_empty", "_equal", "_holding", "_kinds", "_same", "_tied")

    def __init__(self, watched: _Watched) -> None:
        self._empty = tuple(watched.empty)
        self._kinds = _columns(watched.kinds, 2)
        self._children = _columns(watched.children, 2)
        self._same = _columns(watched.same, 3)
        self._tied = _columns(watched.tied, 4)
        self._equal = _columns(watched.equal, 3)
        self._holding = _columns(watched.holding, 3)

    def __call__(self) -> bool:
        if any(self._empty):
            return False
        for part, kind in zip(*self._kinds, strict=True):
            if type(part) is not kind:
                return False
        for children, count in zip(*self._children, strict=True):
            if len(children) != count:
                return False
        for table, name, item in zip(*self._same, strict=True):
            if table.get(name, _ABSENT) is not item:
                return False
        for table, name, other, twin in zip(*self._tied, strict=True):
            if table.get(name) is not other.get(twin):
                return False
        for owner, name, value in zip(*self._equal, strict=True):
            now = getattr(owner, name, _ABSENT)
            if now is not value and (type(now) is not type(value) or now != value):
                return False
        for owner, name, value in zip(*self._holding, strict=True):
            now = getattr(owner, name, _ABSENT)
            if type(now) is not type(value) or now != value:
                return False
        return True


def _twins(act: nn.Module) -> Iterator[tuple[Any, str, Any, str]]:
    """Each further name of a parameter or buffer of σ, after its first one."""
    first: dict[int, tuple[Any, str]] = {}
    for part in act.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None and id(tensor) in first:
                    yield (*first[id(tensor)], table, name)
                elif tensor is not None:
                    first[id(tensor)] = (table, name)


def witness(owner: nn.Module, name: str, recognised: Recognised) -> Witness | Refusal:
    """The witness of σ, the child `name` of `owner`; a refusal where it could be changed without being seen."""
    act = owner._modules[name]
    assert act is not None
    watched, ran = _Watched(), dict(recognised.after.named_modules()) if recognised.after is not None else {}
    watched.same.append((owner._modules, name, act))
    watched.tied += _twins(act)
    for path, part in act.named_modules():
        reason = _watch(watched, part, recognised.notes.get(path, Notes()), ran.get(path))
        if reason is not None:
            return Refusal(f"{type(part).__name__} {reason}")
    return Witness(watched)


def _watch(watched: _Watched, part: nn.Module, notes: Notes, ran: nn.Module | None) -> str | None:
    """Add a module of σ; or why it may not be added. `ran` is its copy, after it was run."""
    kind, attributes = type(part), vars(part)
    if any(attributes[hooks] for hooks in _HOOKS):
        return "has a hook"
    if notes.writes:
        return f"sets self.{min(notes.writes)} while it runs"
    watched.kinds.append((part, kind))
    watched.empty += [attributes[hooks] for hooks in _HOOKS]
    if part._modules:
        watched.children.append((part._modules, len(part._modules)))
    else:
        watched.empty.append(part._modules)
    for table in (part._modules, part._parameters, part._buffers):
        watched.same += [(table, name, item) for name, item in table.items() if item is None or table is part._modules]
    held = {*part._parameters, *part._buffers, *part._modules}
    for name in sorted(notes.reads - held - _TABLES):
        if name.startswith("__"):
            continue
        if name == "training":
            return "reads self.training"
        defined = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), _ABSENT)
        if name not in attributes and _is_code(defined):
            watched.same.append((attributes, name, _ABSENT))
            if defined is not vars(nn.Module).get(name):
                watched.equal.append((kind, name, getattr(kind, name)))
        else:
            value = getattr(part, name, _ABSENT)
            try:
                noted = watched.holding if type(value) in _CONTAINERS else watched.equal
                noted.append((part, name, _snapshot(value)))
            except TypeError:
                return f"reads self.{name}, and a change inside a {type(value).__name__} could not be seen"
            if type(value) in _CONTAINERS and ran is not None and getattr(ran, name, _ABSENT) != value:
                return f"changes self.{name} while it runs"
    return None


def _is_code(defined: Any) -> bool:
    """Whether a class's attribute is a method or a property, and no value; a slot is a value."""
    return hasattr(type(defined), "__get__") and not isinstance(defined, types.MemberDescriptorType)


def _snapshot(value: Any) -> Any:
    """What equals this value until it changes; raises `TypeError` where a change would not show."""
    if value is _ABSENT or isinstance(value, (*_BY_VALUE, *_BY_IDENTITY)):
        return value
    if type(value) is dict:
        return {_snapshot(key): _snapshot(item) for key, item in value.items()}
    if type(value) in _CONTAINERS:
        return type(value)(map(_snapshot, value))
    if isinstance(value, functools.partial):
        _snapshot([value.func, list(value.args), value.keywords])
        return value
    owner = getattr(value, "__self__", _ABSENT)  # of a built-in function its module, of Function.apply the class
    if isinstance(value, types.BuiltinFunctionType | types.MethodType) and isinstance(owner, _BY_IDENTITY):
        return value
    raise TypeError
