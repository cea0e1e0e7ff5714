"""A layer gets its two factors, the bias that goes with them, and the U of its branch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.bases.low_rank import LowRank
from noble_fx.compressing.places import Place
from noble_fx.compressing.solve import Replacement
from noble_fx.layers.restructure import structure


def put(place: Place, new: Replacement, method: str) -> None:
    """Replace W of the layer in place, in the dtype, on the device and as ready to learn as it was."""
    weight: Any = place.layer._parameters["weight"]
    branch: Any = place.branch

    def alike(tensor: Tensor) -> Tensor:
        return tensor.detach().to(weight.device, weight.dtype)

    base = LowRank.of(alike(new.up), alike(new.down))
    base.error, base.method = new.error, method
    base.train(place.layer.training).requires_grad_(weight.requires_grad)
    bias = new.bias
    if bias is not None and bias is not place.bias:
        learns = weight.requires_grad if place.bias is None else place.bias.requires_grad
        bias = nn.Parameter(alike(bias), requires_grad=learns)
    if new.branch_up is not None and branch is not None:
        with torch.no_grad():
            branch.up.copy_(new.branch_up)
    structure(place.layer, base, bias)
