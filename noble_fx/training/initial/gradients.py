"""Σ over batches of dL/dW [N, K], of the base model, for the layers that have branches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.attach.restore import unchanged
from noble_fx.errors import ConfigError, shown
from noble_fx.transform import disabled

Loss = Callable[[nn.Module, Any], Tensor]


def summed_gradients(
    model: nn.Module, weights: dict[str, Tensor], loss: Loss, batches: Iterable[Any]
) -> dict[str, Tensor]:
    """By name, the sum over `batches` of the gradient of loss(model, batch), on the CPU, branches off, in eval mode.

    No `.grad` is written, and frozen weights stay frozen. Raises `ConfigError` for a loss that is none, for no batch,
    and for a layer that no batch reached.
    """
    learning = {name: weight.requires_grad for name, weight in weights.items()}
    totals: dict[str, Tensor] = {}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        with disabled(model), unchanged(model), torch.enable_grad():
            model.eval()
            for batch in batches:
                _add(totals, weights, loss(model, batch))
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(learning[name])
    if missing := sorted(weights.keys() - totals.keys()):
        raise ConfigError(f"no batch has reached {missing[0]!r}, so it has no gradient; give other batches")
    return totals


def _add(totals: dict[str, Tensor], weights: dict[str, Tensor], value: Any) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise ConfigError(f"loss(model, batch) gave {shown(value)}; it must give a scalar tensor with a gradient")
    found = torch.autograd.grad(value.sum(), list(weights.values()), allow_unused=True)
    for name, gradient in zip(weights, found, strict=True):
        if gradient is not None:
            own = gradient.detach().to("cpu", torch.promote_types(gradient.dtype, torch.float32))
            totals[name] = totals[name] + own if name in totals else own
