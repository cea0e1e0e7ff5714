"""What is off while somebody asks for it: nested, in several threads, for a model and for a part of it at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from torch import nn

from noble_fx.branches.base import Branch

_LOCK = threading.RLock()


class _Off:
    """A module that is off: who asks for it, and the way back. It holds the module, so that its id stays its own."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.askers: set[object] = set()
        self.back: ExitStack | None = None


_OFF: dict[int, _Off] = {}  # by the module's identity: a class of the user's may have no hash


@contextmanager
def switched_off(module: nn.Module, off: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Inside, `module` is off: the first who asks for it enters `off()`, the last one leaves it."""
    asker = object()
    try:
        with _LOCK:
            entry = _OFF.setdefault(id(module), _Off(module))
            entry.askers.add(asker)
            if entry.back is None:
                entry.back = ExitStack()
                entry.back.enter_context(off())
        yield
    finally:
        with _LOCK:
            found = _OFF.get(id(module))
            if found is not None:
                found.askers.discard(asker)
                if not found.askers:
                    del _OFF[id(module)]
                    if found.back is not None:
                        found.back.close()


def is_off(module: nn.Module) -> bool:
    """Whether somebody has switched the module off."""
    return id(module) in _OFF


@contextmanager
def without_branch(branch: Branch) -> Iterator[None]:
    """Inside, the layer of `branch` runs alone."""
    was, branch.enabled = branch.enabled, False
    try:
        yield
    finally:
        branch.enabled = was
