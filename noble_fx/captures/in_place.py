"""A captured model is the user's own object: its class becomes one that runs graphs and has the user's among its bases.

    Tiny  --enter-->  Tiny(CapturedModel, Tiny)  --leave-->  Tiny

The object stays the same one. So its methods, properties, constants and hooks, an overridden `train()`, `model[0]` and
whatever refers to it live on; the graphs are only what `forward` runs.
"""

from __future__ import annotations

import copy
import types
from abc import abstractmethod
from typing import Any, ClassVar

from torch import nn

from noble_fx.attach.switched_off import is_off
from noble_fx.errors import CaptureError


class OverUsersClass:
    """Base of the classes that run graphs: copying and pickling by the user's class, then entering again."""

    noble_class: ClassVar[type[nn.Module]]  # the user's own

    @abstractmethod
    def noble_copied(self) -> Any:
        """What `noble_enter` needs to make a copy of the model run the same graphs."""

    @abstractmethod
    def noble_written(self) -> Any:
        """The same as plain picklable values."""

    @staticmethod
    @abstractmethod
    def noble_enter(model: Any, held: Any) -> None:
        """Make `model` run the graphs of `noble_copied`."""

    @staticmethod
    @abstractmethod
    def noble_read(model: nn.Module, written: Any) -> Any:
        """What `noble_copied` would answer, from `noble_written`; `model` is the tree that was pickled with it."""

    @abstractmethod
    def noble_own(self) -> frozenset[str]:
        """The names of the instance attributes that the graphs need."""

    def __copy__(self) -> Any:
        result = copy.copy(_twin(self))
        self.noble_enter(result, self.noble_copied())
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = _twin(self)
        if hasattr(self.noble_class, "__deepcopy__"):
            result = copy.deepcopy(twin, memo)
        else:
            result = self.noble_class.__new__(self.noble_class)
            memo[id(self)] = result  # a module that refers to the whole finds its copy
            _set_state(result, copy.deepcopy(twin.__getstate__(), memo))
        self.noble_enter(result, self.noble_copied())
        memo[id(self)] = result
        return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__reduce__()

    def __reduce__(self) -> Any:
        state = (_twin(self).__getstate__(), base_class(self), self.noble_written())
        return _empty, (self.noble_class,), state, None, None, _restore


def base_class(model: OverUsersClass) -> type[OverUsersClass]:
    """The class with the user's own that a captured model's is made of."""
    base = type(model).__bases__[0]
    assert issubclass(base, OverUsersClass)
    return base


def enter_class(model: nn.Module, base: type[OverUsersClass], **members: Any) -> None:
    """Give `model` the class made of `base` and its own; raises `CaptureError` where Python does not allow that."""
    user = type(model)

    def fill(namespace: dict[str, Any]) -> None:
        # `type(self)(…)`, as in `sequential[:2]`, makes an ordinary object of the user's class.
        new = staticmethod(lambda cls, *args, **kwargs: user(*args, **kwargs))
        namespace.update(noble_class=user, __module__=base.__module__, __doc__=user.__doc__, __new__=new, **members)

    try:
        model.__class__ = types.new_class(user.__name__, (base, user), {}, fill)
    except TypeError as error:
        raise CaptureError(f"{user.__qualname__} cannot be a base of a class that runs graphs: {error}") from error


def leave_class(model: OverUsersClass) -> None:
    """Give a captured model its user's class back."""
    for name in model.noble_own():
        vars(model).pop(name, None)
    model.__class__ = model.noble_class  # type: ignore[assignment]


def _twin(model: OverUsersClass) -> Any:
    """The model as an object of the user's class with the same attributes, to be copied or pickled as such."""
    if is_off(model):  # type: ignore[arg-type]
        raise CaptureError(
            "inside noble_fx.disabled(model) a captured model runs graphs without branches, and a copy would for good; "
            "copy it outside"
        )
    twin = object.__new__(model.noble_class)
    twin.__dict__.update({name: value for name, value in vars(model).items() if name not in model.noble_own()})
    return twin


def _empty(user: type[nn.Module]) -> nn.Module:
    return user.__new__(user)


def _set_state(model: nn.Module, state: Any) -> None:
    if hasattr(model, "__setstate__"):
        model.__setstate__(state)
    else:
        vars(model).update(state)


def _restore(model: nn.Module, held: tuple[Any, type[OverUsersClass], Any]) -> None:
    state, base, written = held
    _set_state(model, state)
    base.noble_enter(model, base.noble_read(model, written))
