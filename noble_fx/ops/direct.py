"""An operator's implementation called without the dispatcher, where the dispatcher would find nothing else to do.

An operator that is written in Python costs 5 to 10 µs to be found, as much as a plain layer, and each call of a layer
would ask several times. So where no mode looks on and every tensor is a plain one, the autograd rule calls the device's
implementation itself. Implementations take operands in the flat order (`operands.py`), and answer with no views: a
view that an autograd function returns, or that was made without gradients, cannot be changed in place, as the result of
nn.Linear can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor, nn

from noble_fx.torch_state import a_mode_looks_on

Tensors = Sequence[Tensor | None]
Flat = list[Tensor | None]


class Implementation(NamedTuple):
    """forward(flat, count, act_key, keep_h) -> [y…, h]; backward(dy, h, flat, count, act_key, needs) -> flat."""

    forward: Callable[..., list[Any]]
    backward: Callable[..., Flat]


IMPLEMENTATIONS: dict[str, Implementation] = {}  # by the type of device
_PLAIN = frozenset((Tensor, nn.Parameter, type(None)))


def implementation(flat: Tensors) -> Implementation | None:
    """What runs these operands, or None where the dispatcher must be asked."""
    if a_mode_looks_on() or not _PLAIN.issuperset(map(type, flat)):
        return None
    x: Any = flat[0]
    return IMPLEMENTATIONS.get(x.device.type)


def flat_of_linear(arguments: Sequence[Any]) -> Flat:
    """The operands of `noble_fx::linear` in the flat order."""
    x, weight, bias, down, down_bias, up, act, _ = arguments
    return [x, weight, bias, down, down_bias, up, *act]


def flat_of_group(arguments: Sequence[Any]) -> Flat:
    """The operands of `noble_fx::linear_group` in the flat order."""
    x, weight, bias, down, down_bias, up, act, _ = arguments
    absent = [None] * len(weight)
    return list(chain((x,), weight, bias or absent, down, down_bias or absent, up, act))
