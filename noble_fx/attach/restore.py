"""A model is put back as it was where a verb fails half way: by an error, or by an interrupt.

Everything that a verb may change in a module lies in its class and its `__dict__`, or is the value of a tensor.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_TABLES = (dict, OrderedDict, list, set)  # parameters, buffers, submodules, hooks, and plain containers of the user's


class Before:
    """A model as it is: each module's class, attributes and tables, what learns, and values of tensors to `keep`."""

    def __init__(self, model: nn.Module):
        self._modules = [(module, type(module), *_contents(module)) for module in model.modules()]
        self._learns = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._values: list[tuple[Tensor, Tensor]] = []

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Remember the values of tensors that are about to change in place; on the CPU, beside the model's own."""
        for tensor in tensors:
            if not tensor.is_meta:
                self._values.append((tensor, tensor.detach().to("cpu", copy=True)))

    def put_back(self) -> None:
        """Make the model what it was. Tables stay the same objects, since handles of hooks and graphs refer to them."""
        for module, kind, attributes, tables in self._modules:
            if type(module) is not kind:
                object.__setattr__(module, "__class__", kind)
            for name in vars(module).keys() - attributes.keys():
                del vars(module)[name]
            vars(module).update(attributes)
            for table, content in tables:
                if _identities(table) != _identities(content):
                    _refill(table, content)
        for parameter, learns in self._learns:
            if parameter.requires_grad != learns:
                parameter.requires_grad_(learns)
        with torch.no_grad():
            for tensor, value in self._values:
                tensor.copy_(value)


def _contents(module: nn.Module) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
    """The module's attributes, and each of its tables with a copy of what is in it."""
    attributes = dict(vars(module))
    return attributes, [(value, type(value)(value)) for value in attributes.values() if type(value) in _TABLES]


def _identities(table: Any) -> list[int]:
    return list(map(id, [*table, *table.values()] if isinstance(table, dict) else table))


def _refill(table: Any, content: Any) -> None:
    if isinstance(table, list):
        table[:] = content
    else:
        table.clear()
        table.update(content)


@contextmanager
def restored_on_error(model: nn.Module) -> Iterator[Before]:
    """Inside, whatever is raised puts `model` back as it was; the values of tensors that are changed must be kept."""
    before = Before(model)
    try:
        yield before
    except BaseException:
        before.put_back()
        raise


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Inside, looking at `model` may change its classes, attributes and tables; afterwards it is as it was.

    torch.export replaces a module's plain containers by copies, and a forward that is traced may keep what it made.
    """
    before = Before(model)
    try:
        yield
    finally:
        before.put_back()
