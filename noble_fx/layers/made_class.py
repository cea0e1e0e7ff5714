"""Classes that are made while a program runs: a mixin in front of a layer's own class, the same one each time.

A layer that gets a branch, or another form of W, stays the same object and an instance of its own class: its class is
swapped for one made of a mixin and that class. Parameter names, attributes, hooks and `isinstance` stay what they were.

    Linear            ->  NobleLinear(Augmented, Linear)
    Linear            ->  StructuredLinear(Structured, Linear)
    StructuredLinear  ->  NobleStructuredLinear(Augmented, StructuredLinear)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn


class Made:
    """What such a class can do: it is pickled and copied by what it is made of, since it has no name to import."""

    _mixin: ClassVar[type[Made]]
    _prefix = ""  # of the name of the class that is made
    _input_name = "input"
    _argument_names: tuple[str, ...] = ()

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        recipe = _recipe(type(self))
        if reduced[1] != (type(self),) or recipe is type(self):
            return reduced  # the layer's own class, or a user's subclass, says how it is pickled
        return _blank, recipe, *reduced[2:]


_CLASSES: dict[tuple[type, type], type] = {}  # (mixin, plain) -> the class made of the two


def _recipe(kind: type) -> Any:
    """(mixin, plain) of a class that was made, where plain may be such a pair again; any other class as it is."""
    mixin, plain = vars(kind).get("_mixin"), vars(kind).get("_plain")
    if mixin is None or _CLASSES.get((mixin, plain)) is not kind:  # type: ignore[arg-type]
        return kind
    return mixin, _recipe(plain)  # type: ignore[arg-type]


def _class_of(recipe: Any) -> type:
    return made_class(recipe[0], _class_of(recipe[1])) if isinstance(recipe, tuple) else recipe


def _blank(mixin: type[Made], plain: Any) -> Any:
    kind: Any = made_class(mixin, _class_of(plain))
    return kind.__new__(kind)


def made_class(mixin: type[Made], plain: type) -> Any:
    """The class of a `plain` layer behind that mixin."""
    if (mixin, plain) not in _CLASSES:
        named_class(mixin, plain)(type(f"{mixin._prefix}{plain.__name__}", (mixin, plain), {"__module__": __name__}))
    return _CLASSES[mixin, plain]


def named_class(mixin: type[Made], plain: type[nn.Module]) -> Callable[[Any], Any]:
    """A decorator: this class, which has a name to import, is the one of a `plain` layer behind that mixin."""

    def remember(kind: Any) -> Any:
        kind._mixin, kind._plain = mixin, plain
        kind._argument_names = tuple(list(inspect.signature(plain.forward).parameters)[1:])
        kind._input_name = next(iter(kind._argument_names), "input")
        return _CLASSES.setdefault((mixin, plain), kind)

    return remember
