"""The table of pointwise operators: aten → Triton, one row each.

A row is the text, with `{0}`, `{1}` … for the operands, which are names, numbers or calls. Where the GPU's device
library is needed, the interpreter, which has none, gets its own text (`_DEVICE`, third column).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from noble_fx.codegen.code import Code
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
    aten.sgn.default: "tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, 0.0))",
    aten.sign.default: "tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, 0.0))",
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

# Which operand `alpha` multiplies: torch.rsub(x, y, alpha=a) is y - a x.
_SCALED = {
    aten.add.Tensor: 1,
    aten.add.Scalar: 1,
    aten.sub.Tensor: 1,
    aten.sub.Scalar: 1,
    aten.rsub.Tensor: 0,
    aten.rsub.Scalar: 0,
}

Operands = Sequence[Code | None]  # None: an argument that is left out
Options = dict[str, Any]


def pointwise(plan: Plan, target: Any, operands: Operands, options: Options) -> Code | None:
    """One operator on operands that are names or numbers; None for one that is not in the table."""
    if target in _SPECIAL:
        return _SPECIAL[target](plan, operands, options)
    if options.keys() - {"alpha", "rounding_mode"} or options.get("rounding_mode"):
        return None
    if target in _WAVES:
        return Code.call(f"{'fast' if plan.fast_cosine else 'exact'}_{_WAVES[target]}({operands[0]})")
    if target in _DEVICE:
        on_gpu, interpreted = _DEVICE[target]
        return Code((interpreted if plan.backend == "interpreter" else on_gpu).format(*operands))
    template = _TEXT.get(target)
    if template is None:
        return None
    operands = _scaled(target, operands, options)
    return Code(template.format(*operands)) if len(operands) == _arity(template) else None


def is_pointwise(target: Any) -> bool:
    """True for an operator of the table."""
    return target in _TEXT or target in _DEVICE or target in _WAVES or target in _SPECIAL


def _arity(template: str) -> int:
    """How many operands a row takes: one with more arguments means something that the row does not say."""
    return len(set(re.findall(r"\{\d\}", template)))


def _scaled(target: Any, operands: Operands, options: Options) -> Operands:
    """The operands without alpha, that operand times alpha which the operator scales."""
    if target not in _SCALED:
        return operands
    *operands, alpha = (*operands[:2], *operands[2:], Code.number(options.get("alpha", 1)))[:3]
    if alpha is None or alpha.value == 1:
        return operands
    return [Code(f"{code} * {alpha}") if at == _SCALED[target] else code for at, code in enumerate(operands)]


def _clamp(plan: Plan, operands: Operands, options: Options) -> Code | None:
    """min(max(x, low), high); either bound may be None."""
    x, *bounds = operands
    low, high = [*bounds, None, None][:2]
    if any(isinstance(bound, fx.Node) for bound in options.values()):
        return None
    low = low if options.get("min") is None else Code.number(options["min"])
    high = high if options.get("max") is None else Code.number(options["max"])
    code = x if low is None else Code.call(f"tl.maximum({x}, {low}, {_NAN})")
    return code if high is None else Code.call(f"tl.minimum({code}, {high}, {_NAN})")


def _power(plan: Plan, operands: Operands, options: Options) -> Code | None:
    """x ** e for a number e: products where e is a small integer, else through the logarithm (NaN for x < 0)."""
    x, exponent = operands[0], _value(operands[1])
    roots = {0.5: Code.call(f"tl.sqrt_rn({x})"), -0.5: Code.call(f"tl.rsqrt({x})"), 0.0: Code.number(1.0)}
    if exponent is None:
        return None
    if exponent in roots:
        return roots[exponent]
    if exponent.is_integer() and abs(exponent) <= 8:
        chain = " * ".join([str(x)] * abs(int(exponent)))
        return Code(chain if exponent > 0 else f"1.0 / ({chain})")
    if exponent.is_integer():
        sign = "" if int(exponent) % 2 == 0 else f" * tl.where({x} < 0, -1.0, 1.0)"
        return Code(f"tl.exp2({exponent} * tl.log2(tl.abs({x}))){sign}")
    return Code(f"tl.exp2({exponent} * tl.log2({x}))")


def _exponential(plan: Plan, operands: Operands, options: Options) -> Code | None:
    """b ** x for a positive number b."""
    base = _value(operands[0])
    return Code.call(f"tl.exp2({operands[1]} * {Code.number(math.log2(base))})") if base and base > 0 else None


def _value(code: Code | None) -> float | None:
    return code.value if code is not None else None


def _cast(plan: Plan, operands: Operands, options: Options) -> Code | None:
    """A change of dtype: to float32, a mask, or through a 16-bit float and back into what follows."""
    dtype = options.get("dtype")
    if dtype == torch.bool:
        return Code(f"{operands[0]} != 0")
    return Code.call(f"{operands[0]}.to(tl.{_DTYPES[dtype]})") if dtype in _DTYPES else None


_DTYPES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int32: "int32",
    torch.int64: "int64",
}

_SPECIAL: dict[Any, Callable[[Plan, Operands, Options], Code | None]] = {
    aten.clamp.default: _clamp,
    aten.clamp.Tensor: _clamp,
    aten.hardtanh.default: _clamp,
    aten.pow.Tensor_Scalar: _power,
    aten.pow.Scalar: _exponential,
    aten._to_copy.default: _cast,
    torch.ops.prims.convert_element_type.default: _cast,
}
