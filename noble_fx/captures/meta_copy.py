"""A copy of a model without values: every parameter and buffer on the meta device, so it costs no memory.

Tracing runs the user's Python, which may change what it finds; a copy without values can neither change the model nor
be run by mistake.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noble_fx.attach.attach import carriers, detach
from noble_fx.captures.base import Declined


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy over the meta device, tied tensors still tied; raises `Declined` for a model that cannot be copied."""
    return copy_over(model, to_meta)[0]


def copy_over(model: nn.Module, stand_in: Callable[[Tensor], Tensor]) -> tuple[nn.Module, frozenset[int]]:
    """A copy with `stand_in(t)` for each of the model's tensors t, and the identities of what is the copy's own."""
    memo: dict[int, Any] = {}
    try:
        for parameter in model.parameters():
            other = stand_in(parameter)
            memo[id(parameter)] = other if other is parameter else nn.Parameter(other, parameter.requires_grad)
        for tensor in [*model.buffers(), *_plain_tensors(model)]:
            memo.setdefault(id(tensor), stand_in(tensor))
        copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise Declined(f"it cannot be copied: {type(error).__name__}: {str(error).splitlines()[0]}") from None
    return copied, frozenset(map(id, memo.values()))


def _plain_tensors(model: nn.Module) -> list[Tensor]:
    """The tensors in attributes, which are neither parameters nor buffers."""
    every = vars(nn.Module()).keys()
    values = [value for module in model.modules() for name, value in vars(module).items() if name not in every]
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


@contextmanager
def without_branches(model: nn.Module) -> Iterator[None]:
    """Inside, the layers of `model` have their own classes and no branches: what a capture traces."""
    carried: list[tuple[nn.Module, Any, Any]] = []
    for module in list(carriers(model)):
        carried.append((module, type(module), module._modules["noble"]))
        detach(module)
    try:
        yield
    finally:
        for module, kind, branches in carried:
            module.__class__ = kind
            module.noble = branches


def to_meta(value: Any) -> Any:
    """A tensor's stand-in on the meta device, never the tensor itself; what is no tensor stays."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone() if value.is_meta else value.detach().to("meta")
