"""Which tensors a branch is right beside: plain ones of a dtype in which it can be trained, and shards of such.

Whatever else a weight is (quantized, packed, of a class that some library made) says what it is and is left out.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from noble_fx.errors import Refusal
from noble_fx.torch_state import PLAIN_TENSORS

_TRAINED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_WITHOUT_VALUES = (UninitializedParameter, UninitializedBuffer)  # a lazy layer's: its layer says so


def why_unsuitable(tensor: Tensor) -> Refusal | None:
    """Why a branch beside this weight would be a mistake (quantized, integer, an unknown class), or None."""
    if tensor.is_quantized:
        return Refusal(f"quantized ({tensor.dtype})")
    distributed: Any = sys.modules.get("torch.distributed.tensor")  # whoever has a DTensor has imported it
    if distributed is not None and isinstance(tensor, distributed.DTensor):
        return why_unsuitable(tensor.to_local())
    kind: type = type(tensor)
    if kind not in PLAIN_TENSORS and kind not in _WITHOUT_VALUES:
        return Refusal(f"a {kind.__qualname__} of {kind.__module__.split('.')[0]}, and no plain tensor")
    if not tensor.is_floating_point():
        return Refusal(f"of dtype {tensor.dtype}, not floating point")
    if tensor.dtype not in _TRAINED:
        return Refusal(f"stored in {tensor.dtype}, in which no branch could be trained")
    return None
