"""The operators, made of an implementation that takes operands in the flat order (`direct.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from noble_fx.ops.direct import Implementation, flat_of_group, flat_of_linear
from noble_fx.ops.linear import present


def operators_of(own: Implementation) -> dict[str, Callable[..., Any]]:
    """By the operators' names, functions of the arguments that `schema.py` says."""

    def linear(*arguments: Any) -> Tensor:
        y: Tensor = own.forward(flat_of_linear(arguments), 1, arguments[-1], False)[0]
        return y

    def linear_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        y, h = own.forward(flat_of_linear(arguments), 1, arguments[-1], True)
        return y, h

    def linear_backward(dy, x, h, weight, down, up, act, act_key, needs):
        return present(own.backward([dy], h, [x, weight, None, down, None, up, *act], 1, act_key, needs), dy)

    def linear_group(*arguments: Any) -> list[Tensor]:
        count = len(arguments[1])
        return own.forward(flat_of_group(arguments), count, arguments[-1], False)[:count]

    def linear_group_forward(*arguments: Any) -> tuple[list[Tensor], Tensor]:
        *y, h = own.forward(flat_of_group(arguments), len(arguments[1]), arguments[-1], True)
        return y, h

    def linear_group_backward(dy, x, h, weight, down, up, act, act_key, needs):
        flat = flat_of_group((x, weight, [], down, [], up, act, act_key))
        return present(own.backward(dy, h, flat, len(weight), act_key, needs), x)

    made = linear, linear_forward, linear_backward, linear_group, linear_group_forward, linear_group_backward
    return {function.__name__: function for function in made}
