"""Dtypes of values in a kernel: which kinds the operators' tables tell apart, and casts between them.

PyTorch promotes operands inside an operator, without a node of the graph; Triton promotes by rules of its own (the sum
of two masks is a mask's sum modulo 2, an integer beside a float16 is a float16). So the lowering casts each operand to
the dtype that PyTorch computes in, by these functions, and only then looks up the text for that kind of dtype.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import torch

from noble_fx.codegen.code import Code
from noble_fx.errors import KernelError


class Kind(Enum):
    """Kinds of dtypes for which an operator may have different texts."""

    FLOAT = "float"
    INTEGER = "integer"
    BOOL = "bool"


# What a kernel computes in. Narrower integers wrap around elsewhere, unsigned ones too: nothing is known of them.
KINDS = {
    torch.float32: Kind.FLOAT,
    torch.int64: Kind.INTEGER,
    torch.int32: Kind.INTEGER,
    torch.bool: Kind.BOOL,
}
# What a tile may be of: a value may go through a 16-bit float, which rounds it, and nothing is computed there.
TRITON = {
    torch.float32: "tl.float32",
    torch.bfloat16: "tl.bfloat16",
    torch.float16: "tl.float16",
    torch.int64: "tl.int64",
    torch.int32: "tl.int32",
    torch.bool: "tl.int1",
}
_LARGEST = torch.finfo(torch.float32).max


def kind(dtype: torch.dtype, target: Any) -> Kind:
    """The kind of a dtype; raises `KernelError` for one in which no kernel computes `target`."""
    if dtype not in KINDS:
        raise KernelError(f"{target} computes in {dtype}")
    return KINDS[dtype]


def number(value: Any, dtype: torch.dtype) -> Code:
    """A Python number as a value of this dtype, as PyTorch takes it."""
    if not isinstance(value, bool | int | float):
        raise KernelError(f"an argument that is no number: {value!r}")
    if dtype == torch.bool:
        return Code.number(bool(value))
    if not dtype.is_floating_point:
        if not math.isfinite(value) or not -(2**63) <= value < 2**63:
            raise KernelError(f"{value} is no {dtype}")
        return Code.number(int(value))
    if isinstance(value, bool) or abs(value) > 1 << 24 or 0 < abs(value) < 1e-37:
        value = float(value)
        # What is out of float32's range is nothing to Triton, which would take a float64 for it.
        value = math.copysign(math.inf, value) if abs(value) > _LARGEST else torch.tensor(value, dtype=dtype).item()
    return Code.number(value)


def cast(code: Code, source: torch.dtype, target: torch.dtype) -> Code:
    """A value of one dtype as a value of another; raises `KernelError` for a dtype that no tile is of."""
    if source == target:
        return code
    if source not in TRITON or target not in TRITON:
        raise KernelError(f"a cast from {source} to {target} is not in the lowering table")
    if code.is_number:
        return number(code.value if source.is_floating_point else int(code.value or 0), target)
    if target == torch.bool:
        return Code(f"{code.grouped} != 0")
    return Code.call(f"{code.grouped}.to({TRITON[target]})")
