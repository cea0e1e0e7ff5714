"""The fused call of a layer whose tensors lie over several ranks: the operator on what each rank has.

                      x            W, b, U      D, d, σ      y
    column parallel   whole        cut on N     whole        cut on N
    sequence, batch   cut on rows  whole        whole        cut on rows

These are known to be right without a word between ranks. In a row-parallel layer (x, W and D cut on K) h must be summed
over ranks before σ, so layer and branch run themselves there, on DTensors.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from noble_fx.branches.base import Branch
from noble_fx.branches.bound import read
from noble_fx.schema import LINEAR

_DISTRIBUTED = frozenset((DTensor,))
_WHOLE, _ON_N, _SUM = Replicate(), Shard(0), Partial()


def fused_on_ranks(layer: Any, branch: Branch, x: Any) -> Tensor | None:
    """y [.., N], a DTensor as x [.., K] is one; None where no rule is known."""
    parameters, attributes = layer._parameters, vars(layer)
    weight, bias = (read(parameters, attributes, name) for name in ("weight", "bias"))
    if branch.bound is None or type(weight) is not DTensor or not (bias is None or type(bias) is DTensor):
        return None
    weight = layer.matrix(weight)
    operands = branch.bound.operands(branch, x, weight.shape, _DISTRIBUTED)
    if operands is None or operands[3] is not None:
        return None
    down, down_bias, up, _, *act = operands
    cut, whole = [each for each in (weight, bias, up) if each is not None], [down, down_bias, *act]
    mesh, rows = x.device_mesh, x.ndim - 1
    layouts: list[tuple[Any, ...]] = []
    for i, of_x in enumerate(x.placements):
        over = {each.placements[i] for each in cut if each.device_mesh == mesh}
        if any(each.device_mesh != mesh for each in cut) or not _are_whole(whole, mesh, i) or len(over) != 1:
            return None
        layout = _layout(of_x, over.pop(), rows)
        if layout is None:
            return None
        layouts.append(layout)
    of_y, grad_x, grad_cut, grad_whole = zip(*layouts, strict=True)

    def local(tensor: Any, gradient: tuple[Any, ...]) -> Any:
        if tensor is None:
            return None
        if gradient != tensor.placements:  # whose backward sums the ranks' parts, so that .grad is what the tensor is
            tensor = tensor.redistribute(placements=tensor.placements)
        return tensor.to_local(grad_placements=gradient)

    y = LINEAR(
        x.to_local(grad_placements=grad_x),
        local(weight, grad_cut),
        local(bias, grad_cut),
        local(down, grad_whole),
        local(down_bias, grad_whole),
        local(up, grad_cut),
        [local(each, grad_whole) for each in act],
        branch.key,
    )
    shape: Any = (*x.shape[:-1], weight.shape[0])
    return DTensor.from_local(y, mesh, of_y, run_check=False, shape=shape, stride=_contiguous(shape))


def _layout(x: Any, cut: Any, rows: int) -> tuple[Any, Any, Any, Any] | None:
    """Of one dimension of the mesh: how y lies, and the gradients of x, of what is cut on N, and of what is whole."""
    if x == _WHOLE and cut == _ON_N:
        return Shard(rows), _SUM, _ON_N, _SUM
    if x == _WHOLE and cut == _WHOLE:
        return _WHOLE, _WHOLE, _WHOLE, _WHOLE
    if type(x) is Shard and 0 <= x.dim < rows and cut == _WHOLE:
        return x, x, _SUM, _SUM
    return None


def _are_whole(tensors: list[Any], mesh: Any, i: int) -> bool:
    return all(each is None or (each.device_mesh == mesh and each.placements[i] == _WHOLE) for each in tensors)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides))
