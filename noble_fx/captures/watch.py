"""What forward reads and changes besides tensors, noted while a copy of the model runs.

    layer  --class swapped-->  the same, of a subclass that notes what is read and set of it  --back-->  layer

A graph keeps what was read as constants, and does not do again what was changed. So what was read is looked at before
each call of the graph (`captures/assumed.py`), and whatever was changed declines.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from noble_fx.captures.base import Declined
from noble_fx.captures.values import MISSING, Frozen, Unfollowed, is_plain, names_of, same, state

Path = tuple[str, ...]  # the name of a module, then of an attribute, then of an attribute of that
_OF_EVERY_MODULE = (frozenset(vars(nn.Module())) | frozenset(vars(nn.Module))) - {"training", "_modules"}
_RNN_OWN = ("_flat_weights", "_flat_weight_refs")  # the weights again, which `nn.RNNBase` keeps up to date
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that Python code made


class Watch:
    """What is read and changed of the modules of `copied` inside `running`; nobody else may hold the copy."""

    def __init__(self, copied: nn.Module, own: frozenset[int], buffers_may_change: bool = False):
        self.modules = {id(module): name for name, module in copied.named_modules()}
        self._names = names_of(copied)
        self.reads: dict[Path, Frozen] = {}
        self.against: list[str] = []
        self.called: set[str] = set()
        self.modes: dict[str, bool] = {}  # of the modules that were asked for `training`
        self.sets: dict[Path, bool] = {}  # what was set, and whether to another value
        self.buffers_may_change = buffers_may_change
        self._own = own  # identities of the objects that belong to the copy alone
        self._places: dict[int, tuple[Any, Path]] = {id(m): (m, (name,)) for name, m in copied.named_modules()}
        self._kinds: dict[type, type] = {}
        self._swapped: list[tuple[Any, type]] = []
        self._noting = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, the objects are of the classes that note; raises `Declined` where a class cannot be derived from."""
        try:
            for module, _ in list(self._places.values()):
                self._swap(module)
            yield
        finally:
            for instance, kind in self._swapped:
                object.__setattr__(instance, "__class__", kind)
            self._swapped.clear()

    @contextmanager
    def noting(self, on: bool = True) -> Iterator[None]:
        """Inside, what is read and set is noted, or with `on=False` is not."""
        before, self._noting = self._noting, on
        try:
            yield
        finally:
            self._noting = before

    def check(self) -> None:
        """Raise `Declined` with what a graph could not do: what forward changed, and reads that cannot be followed."""
        owners = {path: owner for owner, path in self._places.values()}
        with self.noting(False):
            for path, frozen in self.reads.items():
                if not same(self._state(owners[path[:-1]], path), frozen):
                    self.against.append(f"forward changes {shown(path)}, which a graph would not do again")
        if self.against:
            raise Declined(self.against[0])

    def real_class(self, kind: type) -> type:
        """The class for which one that notes stands."""
        return next((real for real, watched in self._kinds.items() if watched is kind), kind)

    # --- what the classes call ---------------------------------------------------------------------------------------

    def _read(self, instance: Any, name: str, value: Any) -> None:
        """Note what is no tensor of the model's; of a plain object, what is read of that instead."""
        if not self._noting or name.startswith("__") or id(instance) not in self._places:  # made by forward itself
            return
        is_module = isinstance(instance, nn.Module)
        with self.noting(False):
            owner = self._places[id(instance)][1]
            path = (*owner, name)
            if is_module and name == "forward":
                self.called.add(owner[0])
            if path in self.reads or (is_module and name in _OF_EVERY_MODULE):
                return
            if name in _RNN_OWN and isinstance(instance, nn.RNNBase):
                return
            if is_module and name == "training":
                self.modes[owner[0]] = value
            elif not _computed(instance, name, value) and not self._look_into(path, value):
                self.reads[path] = self._state(instance, path)

    def _set(self, instance: Any, name: str, value: Any) -> None:
        if not self._noting or id(instance) not in self._places:
            return
        with self.noting(False):
            path = (*self._places[id(instance)][1], name)
            if isinstance(instance, nn.Module) and name in instance._buffers and self.buffers_may_change:
                return
            before = getattr(instance, name, MISSING)
            self.sets[path] = not (is_plain(value) and is_plain(before) and same(value, before))
            if self.sets[path]:
                self.against.append(f"forward sets {shown(path)}, which a graph would not do again")

    def _called(self, module: nn.Module) -> None:
        if self._noting and id(module) in self.modules:
            self.called.add(self.modules[id(module)])

    def _state(self, owner: Any, path: Path) -> Frozen:
        try:
            return state(owner, path[-1], self._names)
        except Unfollowed as reason:
            self.against.append(f"forward reads {shown(path)}, and a graph cannot follow {reason}")
            return None

    # --- objects ------------------------------------------------------------------------------------------------------

    def _look_into(self, path: Path, value: Any) -> bool:
        """Whether what is read of `value` will be noted in its turn: an object with attributes, the copy's own."""
        if id(value) in self._places:
            return not isinstance(value, nn.Module)
        if id(value) not in self._own or not _has_attributes(value):
            return False
        self._places[id(value)] = (value, path)
        try:
            self._swap(value)
        except Declined:
            del self._places[id(value)]
            return False
        return True

    def _swap(self, instance: Any) -> None:
        real = type(instance)
        if real not in self._kinds:
            self._kinds[real] = _noting_class(real, self)
        try:
            object.__setattr__(instance, "__class__", self._kinds[real])
        except TypeError as error:
            raise Declined(f"{real.__qualname__} cannot be watched while it is traced: {error}") from None
        self._swapped.append((instance, real))


def shown(path: Path) -> str:
    """The path as one would write it: 'blocks.0.scale'."""
    return repr(".".join(part for part in path if part))


def _has_attributes(value: Any) -> bool:
    kind = type(value)
    heap = bool(kind.__flags__ & _HEAP_TYPE)
    containers = (nn.Module, Tensor, type, types.ModuleType, list, tuple, dict, set, frozenset, str, int, float)
    return heap and hasattr(value, "__dict__") and not callable(value) and not isinstance(value, containers)


def _computed(instance: Any, name: str, value: Any) -> bool:
    """True for a property, whose reads are noted themselves, and for a tensor or a child in the module's own tables."""
    if isinstance(instance, nn.Module) and value is not None:
        tables = vars(instance)
        if name in tables["_parameters"] or name in tables["_buffers"]:
            return True
    found = inspect.getattr_static(type(instance), name, None)
    return hasattr(type(found), "__set__") and not isinstance(found, types.MemberDescriptorType)


class _Unannounced:
    """Keeps a class that is made for a moment from the `__init_subclass__` of the user's."""

    def __init_subclass__(cls, **settings: Any) -> None:
        pass


def _noting_class(real: Any, watch: Watch) -> type:
    def getattribute(self: Any, name: str) -> Any:
        value = real.__getattribute__(self, name)
        watch._read(self, name, value)
        return value

    def getattr_(self: Any, name: str) -> Any:
        value = real.__getattr__(self, name)  # nn.Module's, as a tracer has it now
        watch._read(self, name, value)
        return value

    def setattr_(self: Any, name: str, value: Any) -> None:
        watch._set(self, name, value)
        real.__setattr__(self, name, value)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch._called(self)
        return real.__call__(self, *args, **kwargs)

    def fill(namespace: dict[str, Any]) -> None:
        namespace.update(
            __module__=real.__module__,
            __qualname__=real.__qualname__,
            __doc__=real.__doc__,
            __getattribute__=getattribute,
            __setattr__=setattr_,
        )
        if hasattr(real, "__getattr__"):
            namespace["__getattr__"] = getattr_
        if issubclass(real, nn.Module):
            namespace["__call__"] = call

    try:
        return types.new_class(real.__name__, (_Unannounced, real), {}, fill)
    except Exception as error:  # a class may refuse to be derived from in any way it likes
        raise Declined(f"{real.__qualname__} cannot be watched while it is traced: {error}") from None
