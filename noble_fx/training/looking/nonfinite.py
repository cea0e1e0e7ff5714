"""Where numbers stop being finite: the first tensor on the way that holds a NaN or an infinity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noble_fx.distributed import whole
from noble_fx.errors import ConfigError, printable
from noble_fx.layers.quantized import is_frozen
from noble_fx.random_states import random_states_kept
from noble_fx.training.looking.norms import floats
from noble_fx.training.looking.observed import observed
from noble_fx.training.looking.observer import Call
from noble_fx.training.looking.places import places
from noble_fx.wrappers import own_name

_MODEL, _OWN_INPUT = "the model", "own input"


@dataclass(frozen=True)
class Nonfinite:
    """What `find_nonfinite` found: false where all was finite, and as text a sentence that names the place."""

    place: str = ""  # the site, or the name of a parameter or buffer
    part: str = (
        ""  # parameter, buffer, own input (of the model), input, base output, h, σ, branch, output, result, gradient
    )
    nans: int = 0
    infinities: int = 0
    numbers: int = 0  # how many there are
    remark: str = "every parameter, gradient, site and result is finite"

    def __bool__(self) -> bool:
        return bool(self.part)

    def __str__(self) -> str:
        if not self:
            return self.remark
        counted = f"{self.nans} NaN and {self.infinities} infinite of {self.numbers} numbers"
        whose = f"{_MODEL}'s" if self.place == _MODEL else f"{self.place}: its"
        return f"{whose} {self.part} has {counted}; {self.remark}"


class _Counted(NamedTuple):
    """How many numbers of a tensor are NaN and infinite, still on its device, and at which call of a site it was."""

    place: str
    part: str
    nans: Tensor
    infinities: Tensor
    numbers: int
    call: int = 0


def find_nonfinite(model: nn.Module, *args: Any, **kwargs: Any) -> Nonfinite:
    """The first tensor that is not finite when `model(*args, **kwargs)` runs; `print` shows a sentence.

    Looked at in this order: parameters, the model's own inputs, the forward site by site (input, base output, h, σ,
    branch, output), its result, and the gradients that are there. The model runs without gradients in the mode that it
    is in; buffers and random generators are put back. Of a sharded model every rank must call it. Raises `ConfigError`
    as `watching` does, on the meta device, and where forward fails on a dictionary.
    """
    if found := _in_tensors(model):
        return found
    calls = _Calls()
    with random_states_kept(), _buffers_kept(model), torch.no_grad(), observed(model, calls.note):
        calls.begin(args, kwargs)
        try:
            calls.finish(model(*args, **kwargs))
        except Exception as error:
            if any(isinstance(argument, Mapping) for argument in args):
                raise ConfigError(
                    f"forward cannot run on this ({type(error).__name__}: {printable(error)}); pass a dictionary of "
                    "inputs as find_nonfinite(model, **batch)"
                ) from error
            raise
    return calls.first() or _in_gradients(model, calls.order) or Nonfinite()


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Inside, a forward in train mode may change buffers; afterwards they are as they were."""
    tables = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for table, content in tables:
            table.update(content)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)


class _Calls:
    """What was counted, in the order in which it was computed; nothing waits for the device meanwhile."""

    def __init__(self) -> None:
        self.counted: list[_Counted] = []
        self.inputs: list[_Counted] = []
        self.order: list[str] = []

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count what the model is given; an infinity may be one of a mask, and is blamed for what comes of it alone."""
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                counted = _count(_MODEL, _OWN_INPUT, leaf)
                self.inputs.append(counted)
                self.counted.append(counted._replace(infinities=torch.zeros_like(counted.infinities)))

    def note(self, call: Call) -> None:
        stages = [] if call.x.is_nested else call.stages()
        for part, tensor in (("input", call.x), *stages, ("output", call.y)):
            self.counted.append(_count(call.site, part, tensor, len(self.order)))
        self.order.append(call.site)

    def finish(self, result: Any) -> None:
        """Count what the model gave; an infinity is one of its masks, unless it is the loss."""
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                counted = _count(_MODEL, "result", leaf, len(self.order))
                none = torch.zeros_like(counted.infinities)
                self.counted.append(counted if leaf.ndim == 0 else counted._replace(infinities=none))

    def first(self) -> Nonfinite | None:
        found = next(_not_finite(self.counted), None)
        if found is not None and found.part in (_OWN_INPUT, "input") and not found.call:
            found = next(_not_finite(self.inputs), found)
        return None if found is None else _named(found, self._remark(found))

    def _remark(self, found: _Counted) -> str:
        if found.part == _OWN_INPUT:
            return "every parameter is finite: look at what makes the batch"
        if found.part in ("input", "result"):
            after = f"after {self.order[found.call - 1]}" if found.call else "before the first of them"
            return f"every site before is finite, so it happened {after}, outside of any site"
        if found.part == "output":
            return "the layer and its branch by themselves are finite, and their sum, or the fused call, is not"
        return "its input is finite, and so is every site before"


def _in_tensors(model: nn.Module) -> Nonfinite | None:
    """A parameter that is not finite, or a buffer with a NaN: an infinity there is a mask."""
    places(model)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ConfigError("the model is on the meta device and has no values; model.to_empty(...) and load it first")
    counted = [
        _count(own_name(name, model), "parameter", p) for name, p in model.named_parameters() if not is_frozen(p)
    ]
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            of_buffer = _count(own_name(name, model), "buffer", buffer)
            counted.append(of_buffer._replace(infinities=torch.zeros_like(of_buffer.infinities)))
    found = list(_not_finite(counted))
    if not found:
        return None
    these = f"{len(found)} parameters and buffers are not finite" if len(found) > 1 else "it is not finite"
    remedy = "load a checkpoint, or draw branches anew by noble_fx.reset_branches(model)"
    return _named(found[0], f"{these} before any forward: {remedy}")


def _in_gradients(model: nn.Module, order: list[str]) -> Nonfinite | None:
    """A gradient that is not finite: that of the last site to run, to which backward came first."""
    held = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    found = list(_not_finite(_count(own_name(name, model), "gradient", gradient) for name, gradient in held))
    if not found:
        return None
    ran = {site: i for i, site in enumerate(order)}

    def when(counted: _Counted) -> int:
        return max((i for site, i in ran.items() if f"{counted.place}.".startswith(f"{site}.")), default=-1)

    last = max(found, key=when)
    where = "is that of the last site to run, where backward came first" if when(last) >= 0 else "is the first by name"
    return _named(last, f"of {len(found)} such gradients it {where}; the forward is finite")


def _count(place: str, part: str, tensor: Tensor, call: int = 0) -> _Counted:
    values = whole(tensor.detach())
    values = values.values() if values.is_nested else values
    return _Counted(place, part, values.isnan().sum(), values.isinf().sum(), values.numel(), call)


def _not_finite(counted: Iterable[_Counted]) -> Iterator[_Counted]:
    counted = list(counted)
    numbers = floats(count for each in counted for count in (each.nans, each.infinities))
    for each, nans, infinities in zip(counted, numbers[::2], numbers[1::2], strict=True):
        if nans or infinities:
            yield each


def _named(found: _Counted, remark: str) -> Nonfinite:
    return Nonfinite(found.place, found.part, int(found.nans), int(found.infinities), found.numbers, remark)
