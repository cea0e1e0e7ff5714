"""A branch that is an affine map of x becomes one with its layer, whatever its kind: `Branch.merged` says so.

    x Wᵀ + b + (x ΔWᵀ + Δb)  ->  x (W + ΔW)ᵀ + (b + Δb)

The sum is a parameter of its own, so whatever else reads W finds it as it was; a W that nothing reads is in no file. In
captured graphs, which call no layer, `merge_branch` does the same.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from noble_fx.attach.attach import carriers, detach, site_name
from noble_fx.branches.base import Branch
from noble_fx.branches.own_tensors import more_than_its_tensors
from noble_fx.captures.table import captured
from noble_fx.errors import Refusal
from noble_fx.layers.registry import why_eager
from noble_fx.passes.history import Step
from noble_fx.passes.inference.merge_branch import merge_branch


def merge_in_place(model: nn.Module) -> list[Step]:
    """Merge the affine branches of a model that is nobody else's; one step a branch that was."""
    if any(captured(model)):
        return []
    names = {module: name for name, module in model.named_modules()}
    return [
        Step(merge_branch.name, site_name(f"{names[layer]}.noble".lstrip(".")), branch.label, "W + ΔW", "")
        for layer in list(carriers(model))
        if isinstance(branch := layer.noble, Branch) and _merge(layer, branch)
    ]


def _merge(layer: Any, branch: Branch) -> bool:
    """Whether the layer computes both by itself now."""
    if not branch.enabled or more_than_its_tensors(branch) or why_eager(layer):
        return False
    merged = copy.deepcopy(branch).double().merged()  # summed in float64, and rounded once
    if isinstance(merged, Refusal):
        return False
    (weight, bias), own, own_bias = merged, layer.matrix(layer.weight), layer.bias
    if own_bias is not None:
        bias = own_bias.double() if bias is None else bias + own_bias.double()
    detach(layer)
    layer.merged_weight = nn.Parameter((own.double() + weight).to(own.dtype), requires_grad=False)
    layer.merged_bias = None if bias is None else nn.Parameter(bias.to(own.dtype), requires_grad=False)
    layer.forward = partial(_forward, layer)
    return True


def _forward(layer: Any, x: Tensor) -> Tensor:
    return F.linear(x, layer.merged_weight, layer.merged_bias)
