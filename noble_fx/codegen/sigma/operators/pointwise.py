"""The table of pointwise operators: aten → Triton, one row each.

A row is the text, with `{0}`, `{1}` … for the operands, which are names or numbers. Where the GPU's device library is
needed, the interpreter, which has none, gets its own text (`_DEVICE`, third column).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from noble_fx.codegen.plan import Plan

aten: Any = torch.ops.aten

_NAN = "propagate_nan=tl.PropagateNan.ALL"  # as PyTorch: a NaN is neither clipped nor hidden

_TEXT: dict[Any, str] = {
    aten.add.Tensor: "{0} + {1}",
    aten.add.Scalar: "{0} + {1}",
    aten.sub.Tensor: "{0} - {1}",
    aten.sub.Scalar: "{0} - {1}",
    aten.rsub.Scalar: "{1} - {0}",
    aten.rsub.Tensor: "{1} - {0}",
    aten.mul.Tensor: "{0} * {1}",
    aten.mul.Scalar: "{0} * {1}",
    aten.div.Tensor: "{0} / {1}",
    aten.div.Scalar: "{0} / {1}",
    aten.neg.default: "-{0}",
    aten.reciprocal.default: "1.0 / {0}",
    aten.square.default: "{0} * {0}",
    aten.abs.default: "tl.abs({0})",
    aten.sgn.default: "tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, {0}))",
    aten.sign.default: "tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, {0}))",
    aten.floor.default: "tl.floor({0})",
    aten.ceil.default: "tl.ceil({0})",
    aten.exp.default: "tl.exp({0})",
    aten.exp2.default: "tl.exp2({0})",
    aten.log.default: "tl.log({0})",
    aten.log2.default: "tl.log2({0})",
    aten.sqrt.default: "tl.sqrt_rn({0})",
    aten.rsqrt.default: "tl.rsqrt({0})",
    aten.erf.default: "tl.erf({0})",
    aten.sigmoid.default: "tl.sigmoid({0})",
    aten.relu.default: f"tl.maximum({{0}}, 0.0, {_NAN})",
    aten.maximum.default: f"tl.maximum({{0}}, {{1}}, {_NAN})",
    aten.minimum.default: f"tl.minimum({{0}}, {{1}}, {_NAN})",
    aten.clamp_min.default: f"tl.maximum({{0}}, {{1}}, {_NAN})",
    aten.clamp_max.default: f"tl.minimum({{0}}, {{1}}, {_NAN})",
    aten.where.self: "tl.where({0}, {1}, {2})",
    aten.masked_fill.Scalar: "tl.where({1}, {2}, {0})",
    aten.eq.Scalar: "{0} == {1}",
    aten.eq.Tensor: "{0} == {1}",
    aten.ne.Scalar: "{0} != {1}",
    aten.ne.Tensor: "{0} != {1}",
    aten.lt.Scalar: "{0} < {1}",
    aten.lt.Tensor: "{0} < {1}",
    aten.le.Scalar: "{0} <= {1}",
    aten.le.Tensor: "{0} <= {1}",
    aten.gt.Scalar: "{0} > {1}",
    aten.gt.Tensor: "{0} > {1}",
    aten.ge.Scalar: "{0} >= {1}",
    aten.ge.Tensor: "{0} >= {1}",
    aten.isnan.default: "{0} != {0}",
    aten.logical_and.default: "{0} & {1}",
    aten.logical_or.default: "{0} | {1}",
    aten.logical_not.default: "{0} == 0",
    aten.bitwise_and.Tensor: "{0} & {1}",
    aten.bitwise_or.Tensor: "{0} | {1}",
    aten.bitwise_not.default: "{0} == 0",
}

# On a GPU; in the interpreter.
_DEVICE: dict[Any, tuple[str, str]] = {
    aten.tanh.default: ("libdevice.tanh({0})", "1.0 - 2.0 / (tl.exp(2.0 * {0}) + 1.0)"),
    aten.expm1.default: ("libdevice.expm1({0})", "tl.exp({0}) - 1.0"),
    aten.log1p.default: ("libdevice.log1p({0})", "tl.log(1.0 + {0})"),
    aten.erfc.default: ("libdevice.erfc({0})", "1.0 - tl.erf({0})"),
    aten.sinh.default: ("libdevice.sinh({0})", "0.5 * (tl.exp({0}) - tl.exp(-{0}))"),
    aten.cosh.default: ("libdevice.cosh({0})", "0.5 * (tl.exp({0}) + tl.exp(-{0}))"),
    aten.tan.default: ("libdevice.tan({0})", "exact_sin({0}) / exact_cos({0})"),
    aten.trunc.default: ("libdevice.trunc({0})", "tl.where({0} < 0, tl.ceil({0}), tl.floor({0}))"),
}

_WAVES = {aten.cos.default: "cos", aten.sin.default: "sin"}


def number(value: Any) -> str:
    """A Python number as source text."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def pointwise(plan: Plan, target: Any, operands: Sequence[str], extra: dict[str, Any]) -> str | None:
    """The text of one operator on operands that are names or numbers; None for one that is not in the table."""
    if target in _SPECIAL:
        return _SPECIAL[target](plan, operands, extra)
    if extra.keys() - {"alpha", "rounding_mode"} or extra.get("rounding_mode"):
        return None
    if target in _WAVES:
        wave = _WAVES[target]
        return f"{'fast' if plan.fast_cosine else 'exact'}_{wave}({operands[0]})"
    if target in _DEVICE:
        on_gpu, interpreted = _DEVICE[target]
        return (interpreted if plan.backend == "interpreter" else on_gpu).format(*operands)
    text = _TEXT.get(target)
    if text is None:
        return None
    alpha = extra.get("alpha", 1)
    if alpha != 1:
        text = text.replace("{1}", f"{{1}} * {number(alpha)}")
    return text.format(*operands)


def is_pointwise(target: Any) -> bool:
    """True for an operator of the table."""
    return target in _TEXT or target in _DEVICE or target in _WAVES or target in _SPECIAL


def _clamp(plan: Plan, operands: Sequence[str], extra: dict[str, Any]) -> str | None:
    """min(max(x, low), high); either bound may be None."""
    x, *bounds = operands
    low, high = [*bounds, "None", "None"][:2]
    if extra:
        low, high = (number(extra[k]) if extra.get(k) is not None else old for k, old in (("min", low), ("max", high)))
    text = x if low == "None" else f"tl.maximum({x}, {low}, {_NAN})"
    return text if high == "None" else f"tl.minimum({text}, {high}, {_NAN})"


def _power(plan: Plan, operands: Sequence[str], extra: dict[str, Any]) -> str | None:
    """x ** e for a number e: products where e is a small integer, else through the logarithm (NaN for x < 0)."""
    x, exponent = operands[0], float(operands[1])
    roots = {0.5: f"tl.sqrt_rn({x})", -0.5: f"tl.rsqrt({x})", 0.0: f"{x} * 0.0 + 1.0"}
    if exponent in roots:
        return roots[exponent]
    if exponent.is_integer() and abs(exponent) <= 8:
        chain = " * ".join([x] * abs(int(exponent)))
        return chain if exponent > 0 else f"1.0 / ({chain})"
    if exponent.is_integer():
        sign = "" if int(exponent) % 2 == 0 else f" * tl.where({x} < 0, -1.0, 1.0)"
        return f"tl.exp2({number(exponent)} * tl.log2(tl.abs({x}))){sign}"
    return f"tl.exp2({number(exponent)} * tl.log2({x}))"


def _exponential(plan: Plan, operands: Sequence[str], extra: dict[str, Any]) -> str | None:
    """b ** x for a positive number b."""
    base = float(operands[0])
    return f"tl.exp2({operands[1]} * {number(math.log2(base))})" if base > 0 else None


def _cast(plan: Plan, operands: Sequence[str], extra: dict[str, Any]) -> str | None:
    """A change of dtype: to float32, a mask, or through a 16-bit float and back into what follows."""
    dtype = extra.get("dtype")
    names = {torch.float32: "float32", torch.bool: "int1", torch.bfloat16: "bfloat16", torch.float16: "float16"}
    names |= {torch.int32: "int32", torch.int64: "int64"}
    if dtype == torch.bool:
        return f"{operands[0]} != 0"
    return f"{operands[0]}.to(tl.{names[dtype]})" if dtype in names else None


_SPECIAL: dict[Any, Callable[[Plan, Sequence[str], dict[str, Any]], str | None]] = {
    aten.clamp.default: _clamp,
    aten.clamp.Tensor: _clamp,
    aten.hardtanh.default: _clamp,
    aten.pow.Tensor_Scalar: _power,
    aten.pow.Scalar: _exponential,
    aten._to_copy.default: _cast,
    torch.ops.prims.convert_element_type.default: lambda plan, operands, extra: _cast(
        plan, operands[:1], {"dtype": extra.get("dtype", operands[1] if len(operands) > 1 else None)}
    ),
}
