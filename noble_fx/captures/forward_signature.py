"""What torch.export sees of a forward that takes some of its arguments by `**kwargs`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def arguments_named(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """While it lasts, forward's signature names every one of `names`, those that `**kwargs` takes too.

    torch.export (2.13) wants `dynamic_shapes` nested under the name of `**kwargs` first and flat later, so that no
    shapes satisfy it; with every argument named there is one form.
    """
    signature, inner = inspect.signature(model.forward), model.forward
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    missing = [name for name in names if name not in signature.parameters]
    if not missing or len(named) == len(signature.parameters):
        yield
        return

    def forward(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in missing]
    forward.__signature__ = signature.replace(parameters=[*named, *more])  # type: ignore[attr-defined]
    own = model.__dict__.get("forward")
    model.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del model.__dict__["forward"]
        else:
            model.__dict__["forward"] = own
