"""A layer whose W is A B, with its branch: what the tests of its operator and its kernels share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from noble_fx import NobleLinear
from noble_fx.bases.low_rank import LowRank
from noble_fx.layers.restructure import structure
from noble_fx.ops.factorized import eager_factorized
from noble_fx.runtime.factorized_kernels import FactorizedKernels
from tests.fused_layer import layer_of, near


def factorized_layer(
    act: str = "cosnet",
    in_features: int = 9,
    out_features: int = 7,
    rank: int = 4,
    base_rank: int = 5,
    **settings: object,
) -> NobleLinear:
    """`layer_of` with the best W of rank `base_rank` in the place of its own."""
    layer = layer_of(act, in_features, out_features, rank, **settings)
    base_rank = min(base_rank, in_features, out_features)
    base = LowRank(in_features, out_features, base_rank)
    base.fill(layer.weight)
    structure(layer, base, layer.bias)
    return layer


def arguments(layer: Any, x: Tensor) -> list[Any]:
    """The arguments of `noble_fx::factorized_linear`."""
    noble, base = layer.noble, layer.base
    matrices = x, base.down, base.up, layer.bias, noble.down, noble.down_bias, noble.up
    return [*matrices, noble.act_tensors(), noble.key]


def wide(value: Any) -> Any:
    """The same arguments in float64, to be differentiated."""
    if isinstance(value, list):
        return list(map(wide, value))
    return value.detach().double().requires_grad_() if isinstance(value, Tensor) else value


def leaves(values: list[Any]) -> list[Tensor]:
    """The tensors among the operator's arguments."""
    *fixed, act, _ = values
    return [tensor for tensor in (*fixed, *act) if tensor is not None]


def check(layer: Any, x: Tensor, scale: float = 1.0) -> None:
    """y and every gradient against the eager maths in float64, from the same numbers."""
    x = x.detach().requires_grad_()
    given = arguments(layer, x)
    exact = wide(given)
    y, truth = layer(x), eager_factorized(*exact)
    dy = torch.randn(truth.shape, device=y.device).to(y.dtype)
    y.backward(dy)
    truth.backward(dy.double())
    near("y", y, truth, scale)
    for at, (mine, wanted) in enumerate(zip(leaves(given), leaves(exact), strict=True)):
        if mine.requires_grad:
            assert mine.grad.shape == mine.shape
            near(f"operand {at}", mine.grad, wanted.grad, scale)


def take(monkeypatch: pytest.MonkeyPatch, product: str, weights: str) -> None:
    """Every choice from now on: of the products, and of the branch's weight gradients."""
    both = (product, weights)
    monkeypatch.setattr(FactorizedKernels, "forward_variants", lambda self: ([(product,)], (product,)))
    monkeypatch.setattr(FactorizedKernels, "backward_variants", lambda self, needs: ([both], both))
