"""What `torch.utils.flop_counter` counts of the operators: the products of what they do in PyTorch operators.

It knows ATen's operators by name, and would take a fused site of a captured graph for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from noble_fx.imports import after_import
from noble_fx.ops import factorized, inference, linear, linear_group

_ops = torch.ops.noble_fx
# y += a b for a [m, k] and b [k, n], of which torch counts the form out of place alone; it hands over shapes.
_IN_PLACE = {torch.ops.aten.addmm_: lambda y, a, b, **settings: 2 * a[0] * a[1] * b[1]}
_IMPLEMENTATIONS: dict[Any, Callable[..., Any]] = {
    _ops.linear: linear.forward,
    _ops.linear_forward: linear.forward,
    _ops.linear_backward: linear.backward,
    _ops.factorized_linear: factorized.forward,
    _ops.factorized_linear_forward: factorized.forward,
    _ops.factorized_linear_backward: factorized.backward,
    _ops.joined_factorized: inference.joined_factorized,
    _ops.linear_group: linear_group.forward,
    _ops.linear_group_forward: linear_group.forward,
    _ops.linear_group_backward: linear_group.backward,
    _ops.joined_down: inference.joined_down,
    _ops.joined_up: inference.joined_up,
}


def _counted(implementation: Callable[..., Any]) -> Callable[..., int]:
    from torch.utils.flop_counter import FlopCounterMode

    def formula(*arguments: Any, out_val: Any = None, **settings: Any) -> int:
        without_values = pytree.tree_map_only(Tensor, lambda t: torch.empty_like(t, device="meta"), arguments)
        with FlopCounterMode(display=False, custom_mapping=_IN_PLACE) as counter, torch.no_grad():
            implementation(*without_values)
        return int(counter.get_total_flops())

    return formula


def _of_grouped_product(x: Any, weight: Any, offsets: Any, **settings: Any) -> int:
    return 2 * int(x[0] * weight[1] * weight[2])  # a row meets one expert's matrix


def _of_grouped_outer(x: Any, y: Any, offsets: Any, **settings: Any) -> int:
    return 2 * int(x[0] * x[1] * y[1])


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    for operator, implementation in _IMPLEMENTATIONS.items():
        register_flop_formula(operator, get_raw=True)(_counted(implementation))
    register_flop_formula(_ops.grouped_product)(_of_grouped_product)
    register_flop_formula(_ops.grouped_outer)(_of_grouped_outer)


after_import("torch.utils.flop_counter", _register)  # which imports triton
