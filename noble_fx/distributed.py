"""Tensors that are spread over ranks: what FSDP2 (`fully_shard`) and parallel plans make of parameters."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor; nothing is imported for a program that has none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def laid_out_like(tensor: Any, values: Tensor) -> Tensor:
    """`values`, which is whole, spread over ranks as `tensor` is: those of rank 0, so every rank must call it."""
    if not is_distributed(tensor):
        return values
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values.to(tensor.device, tensor.dtype), tensor.device_mesh, tensor.placements)


def replicate_beside(branch: nn.Module, weight: Any) -> None:
    """Put the whole `branch` on every rank that `weight` is spread over, with the values of rank 0."""
    if not is_distributed(weight):
        return
    from torch.distributed.tensor import Replicate, distribute_tensor

    mesh = weight.device_mesh
    for module in branch.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                placed = distribute_tensor(parameter.detach(), mesh, [Replicate()] * mesh.ndim)
                module._parameters[name] = nn.Parameter(placed, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = distribute_tensor(buffer, mesh, [Replicate()] * mesh.ndim)
