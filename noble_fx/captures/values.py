"""What a value is at this moment, in a form that can be compared later: by what it holds, not by which object it is.

    [1, {"scale": 2.0}]   ->   (list, (1, (dict, (("scale", 2.0),))))

A module, a parameter and a buffer go by their name in the model, another tensor by being that very tensor, unchanged.
What has a state that cannot be seen (a generator, an array of another library, a file) is not followed.
"""

from __future__ import annotations

import enum
import functools
import logging
import types
from typing import Any

import torch
from torch import Tensor, nn

Frozen = Any
MISSING = object()  # in the place of an attribute that is not there
_PLAIN: tuple[type, ...] = (
    type(None), bool, int, float, complex, str, bytes, type(...), range, slice, enum.Enum, type, types.FunctionType,
    types.BuiltinFunctionType, types.ModuleType, logging.Logger, torch.dtype, torch.device, torch.layout,
    torch.memory_format,
)  # fmt: skip
_CONTAINERS = (list, tuple, dict, set, frozenset)
_DEPTH = 20


class Unfollowed(Exception):
    """What kind of value it is that cannot be compared later."""


def is_plain(value: Any) -> bool:
    """True for a value that never changes and is compared as it is."""
    return isinstance(value, _PLAIN)


def same(one: Frozen, other: Frozen) -> bool:
    """Whether two frozen values are equal, 1, 1.0 and True being three."""
    return one is other or (type(one) is type(other) and bool(one == other))


def state(owner: Any, name: str, names: dict[int, str]) -> Frozen:
    """What the attribute is now; of the owner's own method, which function it is. Raises `Unfollowed`."""
    value = owner._modules if name == "_modules" else getattr(owner, name, MISSING)
    if isinstance(value, types.MethodType) and value.__self__ is owner:
        return (types.MethodType, value.__func__)
    return MISSING if value is MISSING else freeze(value, names)


def names_of(model: nn.Module) -> dict[int, str]:
    """The names of a model's modules, parameters and buffers by identity."""
    named = [*model.named_modules(), *model.named_parameters(), *model.named_buffers()]
    return {id(each): name for name, each in named}


def freeze(value: Any, names: dict[int, str], depth: int = 0) -> Frozen:
    """What `value` is now; `names` are those of the model's modules and tensors by identity. Raises `Unfollowed`."""
    if is_plain(value):
        return _Exactly(value) if isinstance(value, bool | int | float | complex) and depth else value
    if depth > _DEPTH:
        raise Unfollowed("a value that is nested so deeply, or in a circle")

    def inside(part: Any) -> Frozen:
        return freeze(part, names, depth + 1)

    match value:
        case Tensor():
            return (Tensor, names[id(value)]) if id(value) in names else SameTensor(value)
        case nn.Module():
            if id(value) not in names:
                raise Unfollowed(f"a {type(value).__qualname__} that is no part of the model's tree")
            return (nn.Module, names[id(value)])
        case dict():
            return (type(value), tuple((inside(key), inside(part)) for key, part in value.items()))
        case set() | frozenset():
            return (type(value), frozenset(map(inside, value)))
        case list() | tuple():
            return (type(value), tuple(map(inside, value)))
        case functools.partial():
            return (type(value), inside(value.func), inside(value.args), inside(value.keywords))
        case types.MethodType():
            return (type(value), value.__func__, inside(value.__self__))
    if type(value).__module__.startswith("torch.") or not hasattr(value, "__dict__"):
        raise Unfollowed(f"what a {type(value).__qualname__} holds")
    return (type(value), tuple((name, inside(part)) for name, part in vars(value).items()))


class _Exactly:
    """A number inside another value, told apart by its type."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Exactly) and same(self.value, other.value)

    def __hash__(self) -> int:
        return hash(self.value)


class SameTensor:
    """This very tensor, as it is."""

    def __init__(self, tensor: Tensor):
        self.tensor, self.version = tensor, tensor._version

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameTensor) and self.tensor is other.tensor and self.version == other.version

    def __hash__(self) -> int:
        return hash(id(self.tensor))
