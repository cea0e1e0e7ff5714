"""A whole block with a branch around it: what every other layer's mixin is to a linear map.

    y = block(x) + noble(x)          x, y [.., C], the hidden states that go into the block and come out of it

x is the first argument, y the result or the first entry of a tuple or list. What does not fit is an error at the call.

The class that is made keeps the block's own name: other libraries look a block up by the name of its class (the units
of FSDP, `_no_split_modules` of Hugging Face).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from noble_fx.errors import CaptureError
from noble_fx.layers.base import Augmented, class_with_branch, plain_class
from noble_fx.torch_state import autocast_is_on

_REMEDY = "leave such blocks out with exclude=…, or use scope='linear'"


class AroundBlock(Augmented):
    """A block with a branch from its input to its result."""

    _prefix = ""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.noble.enabled:
            return self.without_branch(*args, **kwargs)
        # Before the block, which may change x in place.
        x = hidden_input(self._name, self._input_name, self.noble.in_features, args, kwargs)
        added = self.branch_output(self.in_stored_dtype(x))
        return with_hidden(self.without_branch(*args, **kwargs), lambda y: add_to_block(y, added), self._name)

    def without_branch(self, *args: Any, **kwargs: Any) -> Any:
        """What the block itself gives."""
        return super(Augmented, self).forward(*args, **kwargs)  # type: ignore[misc]

    @property
    def _name(self) -> str:
        return plain_class(self).__qualname__  # type: ignore[arg-type]

    def in_stored_dtype(self, x: Tensor) -> Tensor:
        """A block may take hidden states of another dtype than its weights have; its branch takes its own."""
        return x if x.dtype == self.noble.dtype or autocast_is_on(x.device.type) else x.to(self.noble.dtype)


def hidden_input(name: str, argument: str, width: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The hidden state [.., C] among the arguments of the block `name`, the first; raises `CaptureError` for others."""
    x = args[0] if args else kwargs.get(argument)
    if isinstance(x, fx.Proxy):
        return x
    if isinstance(x, Tensor) and not x.is_nested and x.ndim > 0 and x.shape[-1] == width:
        return x
    raise CaptureError(
        f"{name} was called with {_described(x)} for {argument!r}, where its hidden state [.., {width}] belongs, so no "
        f"branch can be around it; {_REMEDY}"
    )


def _described(value: Any) -> Any:
    return list(value.shape) if isinstance(value, Tensor) and not value.is_nested else f"a {type(value).__name__}"


def hidden_of(result: Any, name: str = "the block") -> Any:
    """The hidden state in the result of a block: itself, or the first entry of a tuple or list, else `CaptureError`."""
    if isinstance(result, Tensor | fx.Proxy):
        return result
    if result and (type(result) in (tuple, list) or _is_named(result)):
        return result[0]
    raise CaptureError(
        f"{name} gives a {type(result).__name__}, in which nobody knows the hidden state; a branch is added to a "
        f"tensor, or to the first entry of a tuple or list: {_REMEDY}"
    )


def with_hidden(result: Any, change: Callable[[Any], Any], name: str = "the block") -> Any:
    """The result of a block with its hidden state changed."""
    y = change(hidden_of(result, name))
    if isinstance(result, Tensor | fx.Proxy):
        return y
    return type(result)(y, *result[1:]) if _is_named(result) else type(result)((y, *result[1:]))


def _is_named(result: Any) -> bool:
    return isinstance(result, tuple) and hasattr(result, "_fields")


def add_to_block(y: Any, added: Tensor) -> Tensor:
    """A block's hidden state and its branch, which must be of one shape; also a node of graphs."""
    if isinstance(y, Tensor) and not y.is_nested and y.shape == added.shape:
        return y + (added if added.dtype == y.dtype else added.to(y.dtype))
    raise CaptureError(
        f"a block with a branch gives {_described(y)} where its hidden state was {list(added.shape)}, so no branch can "
        f"be added to it; {_REMEDY}"
    )


def block_with_branch(block: nn.Module) -> type[Augmented]:
    """The class with a branch for this block."""
    return type(block) if isinstance(block, Augmented) else class_with_branch(AroundBlock, type(block))
