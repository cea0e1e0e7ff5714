"""The fused call of a layer with its branch, or none: what the operator assumes is looked at here, once a call.

It is known to be right for plain tensors of fitting shapes (`on_ranks.py` knows of DTensors), outside of every
transform of functions, for a branch that is what it was when it was prepared. Whatever else comes runs the layer and
the branch themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from noble_fx.bases.low_rank import LowRank
from noble_fx.branches.base import Branch
from noble_fx.branches.bound import is_untouched, read
from noble_fx.distributed import is_distributed
from noble_fx.exporting import leaves_this_process
from noble_fx.schema import FACTORIZED, LINEAR, call
from noble_fx.torch_state import PLAIN_TENSORS, in_transform


def fused_call(layer: Any, branch: Branch, x: Any) -> Tensor | None:
    """y [.., N] = x Wᵀ + b + branch(x) by `noble_fx::linear`; None where it may not stand for the two."""
    bound = branch.bound
    if bound is None or in_transform() or leaves_this_process():
        return None
    if type(x) not in PLAIN_TENSORS:
        return _on_ranks(layer, branch, x) if is_distributed(x) else None
    if x.is_nested or x.layout is not torch.strided:
        return None
    attributes = vars(layer)
    if "base" in layer._modules:
        return _factorized(layer, branch, x)
    weight, bias = (read(layer._parameters, attributes, name) for name in ("weight", "bias"))
    if type(weight) not in PLAIN_TENSORS or not (bias is None or type(bias) in PLAIN_TENSORS):
        return None
    weight = layer.matrix(weight)
    operands = bound.operands(branch, x, weight.shape)
    if operands is None:
        return None
    down, down_bias, up, up_bias, *act = operands
    if up_bias is not None:
        bias = up_bias if bias is None else bias + up_bias
    y: Tensor = call(LINEAR, x, weight, bias, down, down_bias, up, act, branch.key)
    return y


def _factorized(layer: Any, branch: Branch, x: Tensor) -> Tensor | None:
    """y [.., N] = (x Bᵀ) Aᵀ + b + branch(x) by `noble_fx::factorized_linear`; None as above."""
    base, bound = layer._modules["base"], branch.bound
    if type(base) is not LowRank or not is_untouched(base) or bound is None:
        return None
    parameters, attributes = base._parameters, vars(base)
    base_down, base_up = (read(parameters, attributes, name) for name in ("down", "up"))
    bias = read(layer._parameters, vars(layer), "bias")
    if any(type(tensor) not in PLAIN_TENSORS for tensor in (base_down, base_up)) or not (
        bias is None or type(bias) in PLAIN_TENSORS
    ):
        return None
    operands = bound.operands(branch, x, (base_up.shape[0], base_down.shape[1]))
    if operands is None:
        return None
    down, down_bias, up, up_bias, *act = operands
    if up_bias is not None:
        bias = up_bias if bias is None else bias + up_bias
    y: Tensor = call(FACTORIZED, x, base_down, base_up, bias, down, down_bias, up, act, branch.key)
    return y


def _on_ranks(layer: Any, branch: Branch, x: Any) -> Tensor | None:
    from noble_fx.layers.on_ranks import fused_on_ranks  # half a second, for those who have DTensors alone

    return fused_on_ranks(layer, branch, x)
