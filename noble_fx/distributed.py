"""Tensors that are spread over ranks: what FSDP2 (`fully_shard`) and parallel plans make of parameters."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

from noble_fx.torch_state import PLAIN_TENSORS


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


def whole(tensor: Any) -> Tensor:
    """The tensor of all ranks, so every rank must call it; a plain one is whole."""
    gathered: Tensor = tensor.full_tensor() if is_distributed(tensor) else tensor
    return gathered


def lay_beside(branch: Any, weight: Any, layout: str, src_data_rank: int | None = 0) -> None:
    """Spread a whole `branch` over the ranks of `weight`: what has N is cut where N is cut, what has K where K is.

    `layout` says what the dimensions of `weight` are ("[N, K]"; "" where nobody knows), `branch.axes` what those of the
    branch's own tensors are; the rest is whole on every rank. The values are those of `src_data_rank`, or where that is
    None each rank's own. A plain weight asks for nothing.
    """
    if not is_distributed(weight):
        return
    from torch.distributed.tensor import distribute_tensor

    mesh = weight.device_mesh
    cut = [_axis(placement, layout) for placement in weight.placements]

    def placed(tensor: Tensor, axes: tuple[str, ...]) -> Tensor:
        return distribute_tensor(tensor, mesh, _placements(cut, axes), src_data_rank=src_data_rank)

    for path, module in branch.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                own = placed(parameter.detach(), branch.axes.get(name, ()) if not path else ())
                module._parameters[name] = nn.Parameter(own, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = placed(buffer, ())


def _axis(placement: Any, layout: str) -> str:
    """The letter of the dimension that is cut, "" where none is, or not in one piece a rank."""
    from torch.distributed.tensor import Shard

    letters = layout.strip("[]").split(", ")
    return letters[placement.dim] if type(placement) is Shard and -len(letters) <= placement.dim < len(letters) else ""


def _placements(cut: list[str], axes: tuple[str, ...]) -> list[Any]:
    from torch.distributed.tensor import Replicate, Shard

    return [Shard(axes.index(letter)) if letter and letter in axes else Replicate() for letter in cut]


def reduced(tensor: Tensor) -> Tensor:
    """The sum over ranks of what each holds a part of, as σ needs it; any other tensor as it is."""
    if type(tensor) in PLAIN_TENSORS or not is_distributed(tensor):
        return tensor
    from torch.distributed.tensor import Replicate

    spread: Any = tensor
    if not any(placement.is_partial() for placement in spread.placements):
        return tensor
    summed: Tensor = spread.redistribute(placements=[Replicate() if p.is_partial() else p for p in spread.placements])
    return summed
