"""A copy of σ that runs σ's own code alone and, while it is watched, notes what that reads and writes of its modules.

The classes of its modules are swapped for ones with the same methods. No hook runs, neither a module's own nor one of
all modules (a FLOP counter's): those are about the user's modules, and this is none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

_NOTES = "_noble_notes"


@dataclass
class Notes:
    """Of one module: the names of the attributes that were read, and of those that were set or deleted."""

    reads: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)


class _Quiet:
    def __init_subclass__(cls, **settings: Any) -> None:
        """Not the user's: a class of theirs may keep a list of its subclasses."""

    def __getattribute__(self, name: str) -> Any:
        notes = object.__getattribute__(self, "__dict__").get(_NOTES)
        if notes is not None:
            notes.reads.add(name)
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._note_write(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._note_write(name)
        super().__delattr__(name)

    def _note_write(self, name: str) -> None:
        notes = object.__getattribute__(self, "__dict__").get(_NOTES)
        if notes is not None:
            notes.writes.add(name)


def _forward_alone(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return self.forward(*args, **kwargs)


def quiet(own: nn.Module) -> nn.Module:
    """This copy of σ itself, whose modules call no hooks any more and can be watched."""
    for part in own.modules():
        kind: Any = type(part)
        made_by: Any = type(kind)
        # A `__call__` of the class's own is a part of what it computes.
        call = {"__call__": _forward_alone} if kind.__call__ is nn.Module.__call__ else {}
        part.__class__ = made_by(kind.__name__, (_Quiet, kind), {"__module__": kind.__module__, **call})
    return own


@contextmanager
def watched(own: nn.Module, notes: dict[str, Notes]) -> Iterator[None]:
    """While inside, a quiet copy adds what it does to the notes of its modules, by their paths."""
    parts = dict(own.named_modules())
    before = {path: _tables(part) for path, part in parts.items()}
    for path, part in parts.items():
        part.__dict__[_NOTES] = notes.setdefault(path, Notes())
    try:
        yield
    finally:
        for path, part in parts.items():
            del part.__dict__[_NOTES]
            notes[path].writes |= _differing(before[path], _tables(part))  # past `__setattr__`


def _tables(part: nn.Module) -> dict[str, Any]:
    return {**part._parameters, **part._buffers, **part._modules}


def _differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) is not other.get(name)}
