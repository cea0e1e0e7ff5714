"""The calling convention of an exported model: its signature, and what the examples fixed of it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from noble_fx.errors import CaptureError

_REMEDY = "transform the model again with example inputs as you call it, or with capture='modules'"


@dataclass
class Call:
    """The calling convention of the captured model: the original signature, and what the examples fixed of it."""

    names: tuple[str, ...]  # of the positional-or-keyword parameters, in order
    keyword_only: tuple[str, ...]
    examples: dict[str, Any]  # argument -> pytree of `Fixed` (tensors) and constants
    defaults: dict[str, Any]  # of the arguments that were not given
    out_specs: dict[str, pytree.TreeSpec]
    notes: tuple[str, ...] = ()
    _signature: inspect.Signature = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._signature = self.signature()  # not when it is called first: Dynamo cannot follow cached_property's lock

    def signature(self) -> inspect.Signature:
        """The original signature, `self` first; arguments that may be left out have the default None."""
        kind = inspect.Parameter
        parameters, optional = [kind("self", kind.POSITIONAL_OR_KEYWORD)], False
        for name in self.names:
            optional = optional or not _has_tensor(self.examples.get(name))
            parameters.append(kind(name, kind.POSITIONAL_OR_KEYWORD, default=None if optional else kind.empty))
        parameters += [kind(name, kind.KEYWORD_ONLY, default=None) for name in self.keyword_only]
        return inspect.Signature(parameters)

    def leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The flat inputs of the graphs; raises `CaptureError` where the graphs do not fit the call."""
        arguments = dict(self._signature.bind_partial(None, *args, **kwargs).arguments)
        del arguments["self"]
        leaves: list[Any] = []
        for name, example in self.examples.items():
            if name not in arguments and _has_tensor(example):
                raise CaptureError(f"forward needs {name!r}, which was among the example inputs; {_REMEDY}")
            leaves += _matched(name, arguments.pop(name, example), example)
        for name, value in arguments.items():
            if value is not None and not _same(value, self.defaults.get(name)):
                raise CaptureError(f"{name!r} was not among the example inputs, so no graph takes it; {_REMEDY}")
        return leaves


@dataclass(frozen=True)
class Fixed:
    """What the graphs take for a tensor: its sizes, None where dynamic, its dtype, and the sizes of the example."""

    sizes: tuple[int | None, ...]
    dtype: torch.dtype
    example: tuple[int, ...]

    def __str__(self) -> str:
        return (
            f"{str(self.dtype).removeprefix('torch.')}[{', '.join('*' if n is None else str(n) for n in self.sizes)}]"
        )


def _has_tensor(example: Any) -> bool:
    return any(isinstance(leaf, Fixed) for leaf in pytree.tree_leaves(example))


def _same(value: Any, other: Any) -> bool:
    return not isinstance(value, Tensor) and not isinstance(other, Tensor) and bool(value == other)


def _matched(name: str, value: Any, example: Any) -> list[Any]:
    if isinstance(example, Fixed) and isinstance(value, Tensor):  # the common case, also the one Dynamo traces through
        _check_tensor(name, value, example)
        return [value]
    leaves, spec = pytree.tree_flatten(value)
    known, known_spec = pytree.tree_flatten(example)
    if spec != known_spec:
        raise CaptureError(f"{name!r} has another structure than the example input; {_REMEDY}")
    for leaf, fixed in zip(leaves, known, strict=True):
        if isinstance(fixed, Fixed) and isinstance(leaf, Tensor):
            _check_tensor(name, leaf, fixed)
        elif isinstance(fixed, Fixed) or not _same(leaf, fixed):
            shown = fixed if isinstance(fixed, Fixed) else repr(fixed)
            raise CaptureError(f"{name!r} is {leaf!r} where the graphs have {shown}; {_REMEDY}")
    return leaves


def _check_tensor(name: str, value: Tensor, fixed: Fixed) -> None:
    fits = value.dim() == len(fixed.sizes) and all(
        size is None or size == have for size, have in zip(fixed.sizes, value.shape, strict=True)
    )
    if not fits:
        raise CaptureError(f"{name!r} is {list(value.shape)}, and the graphs take {fixed} (* is any); {_REMEDY}")
