"""A copy of a model without values: every parameter and buffer on the meta device, so it costs no memory.

Tracing runs the user's Python, which may change what it finds; a copy without values can neither change the model nor
be run by mistake.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from noble_fx.attach.attach import carriers, detach
from noble_fx.captures.base import Declined


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy over the meta device, tied tensors still tied; raises `Declined` for a model that cannot be copied."""
    memo: dict[int, Any] = {}
    try:
        for parameter in model.parameters():
            memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for buffer in model.buffers():
            memo[id(buffer)] = buffer.detach().to("meta") if not buffer.is_meta else buffer.detach().clone()
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise Declined(f"it cannot be copied: {type(error).__name__}: {str(error).splitlines()[0]}") from None


@contextmanager
def without_branches(model: nn.Module) -> Iterator[None]:
    """Inside, the layers of `model` have their own classes and no branches: what a capture traces."""
    held: list[tuple[nn.Module, Any, Any]] = []
    for module in list(carriers(model)):
        held.append((module, type(module), module._modules["noble"]))
        detach(module)
    try:
        yield
    finally:
        for module, kind, branches in held:
            module.__class__ = kind
            module.noble = branches


def to_meta(value: Any) -> Any:
    """An input's stand-in on the meta device; what is no tensor stays."""
    return value.detach().to("meta") if isinstance(value, Tensor) else value
