"""`noble_fx::grouped_product`: rows sorted by expert, each times its expert's matrix, as one operator.

    grouped_product(x [S, K], weight [E, K, N], offsets [E]) -> [S, N]          x_e W_e
    grouped_outer(x [S, K], y [S, N], offsets [E]) -> [E, K, N]                 x_eᵀ y_e, zero without rows

`offsets` says where the rows of each expert end; every row belongs to one. Each is the other's derivative, so either
may be differentiated as often as one likes. PyTorch's own grouped product is used where it runs; Dynamo, which can
compile that in bfloat16 alone, sees one node in any dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from noble_fx.schema import library

_ops = torch.ops.noble_fx
_NATIVE = (torch.float32, torch.bfloat16, torch.float16)
_ALIGNED = 16  # bytes


def grouped_product(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """[S, N] by PyTorch's operators."""
    x = x.contiguous()
    few = x.device.type == "cpu" and x.shape[0] < weight.shape[0]  # PyTorch's goes over every expert
    if not few and _is_native(x, weight):
        return F.grouped_mm(x, weight, offs=offsets)
    y = x.new_empty(x.shape[0], weight.shape[2])
    start = 0
    for expert, end in enumerate(offsets.tolist()):
        if end > start:
            torch.mm(x[start:end], weight[expert], out=y[start:end])
        start = end
    return y


def grouped_outer(x: Tensor, y: Tensor, offsets: Tensor) -> Tensor:
    """[E, K, N] by PyTorch's operators."""
    x, y = x.contiguous(), y.contiguous()
    if _is_native(x, y):
        return F.grouped_mm(x.t(), y, offs=offsets)
    out = x.new_zeros(offsets.shape[0], x.shape[1], y.shape[1])
    start = 0
    for expert, end in enumerate(offsets.tolist()):
        if end > start:
            torch.mm(x[start:end].t(), y[start:end], out=out[expert])
        start = end
    return out


def _is_native(x: Tensor, other: Tensor) -> bool:
    """Whether `F.grouped_mm` takes the two: it wants rows of whole sixteen bytes, and a GPU of this decade."""
    if x.dtype not in _NATIVE or x.device.type not in ("cpu", "cuda") or not len(x):
        return False
    if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) < (8, 0):
        return False
    rows_in_one = other.stride(-1) == 1 or (other.ndim == 3 and other.stride(-2) == 1)
    strides = [x.stride(0), *(stride for stride in other.stride() if stride != 1), other.shape[-1]]
    aligned = all(stride * x.element_size() % _ALIGNED == 0 for stride in strides)
    return rows_in_one and aligned and all(t.data_ptr() % _ALIGNED == 0 for t in (x, other))


library.impl("grouped_product", grouped_product, "CompositeExplicitAutograd")
library.impl("grouped_outer", grouped_outer, "CompositeExplicitAutograd")


@torch.library.register_fake("noble_fx::grouped_product", lib=library)
def _product_fake(x, weight, offsets):
    return x.new_empty(x.shape[0], weight.shape[2])


@torch.library.register_fake("noble_fx::grouped_outer", lib=library)
def _outer_fake(x, y, offsets):
    return x.new_empty(offsets.shape[0], x.shape[1], y.shape[1])


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _product_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, offsets = ctx.saved_tensors
    needs_x, needs_weight, _ = ctx.needs_input_grad
    dx = _ops.grouped_product(dy, weight.transpose(1, 2), offsets) if needs_x else None
    if not needs_weight:
        return dx, None, None
    if weight.stride(1) == 1:  # a view of [E, N, K], whose gradient should lie in memory as it does
        return dx, _ops.grouped_outer(dy, x, offsets).transpose(1, 2), None
    return dx, _ops.grouped_outer(x, dy, offsets), None


def _outer_backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, y, offsets = ctx.saved_tensors
    needs_x, needs_y, _ = ctx.needs_input_grad
    dx = _ops.grouped_product(y, d_out.transpose(1, 2), offsets) if needs_x else None
    return dx, _ops.grouped_product(x, d_out, offsets) if needs_y else None, None


torch.library.register_autograd("noble_fx::grouped_product", _product_backward, setup_context=_keep, lib=library)
torch.library.register_autograd("noble_fx::grouped_outer", _outer_backward, setup_context=_keep, lib=library)


def _autocast(device: str) -> Any:
    def rule(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
        def cast(tensor: Tensor) -> Tensor:
            return tensor if tensor.dtype == torch.float64 else tensor.to(torch.get_autocast_dtype(device))

        with torch.autocast(device, enabled=False):
            y: Tensor = _ops.grouped_product(cast(x), cast(weight), offsets)
            return y

    return rule


for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    library.impl("grouped_product", _autocast(_device), _key)
