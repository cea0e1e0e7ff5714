"""The table of pointwise operators: aten → Triton, one row each.

A row says in which dtype its operator computes, and the text for each kind of dtype for which that text is right, with
`{0}`, `{1}` … for the operands: names, numbers or calls, which the lowering has cast to that dtype. Another kind is not
in the table. Where the GPU's device library is needed, the interpreter, which has none, gets its own text (`_device`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from noble_fx.codegen.code import Code
from noble_fx.codegen.plan import Plan
from noble_fx.codegen.sigma.operators.dtypes import TRITON, Kind, kind

aten: Any = torch.ops.aten

_NAN = "propagate_nan=tl.PropagateNan.ALL"  # as PyTorch: a NaN is neither clipped nor hidden
FLOAT, INTEGER, BOOL = Kind

Operands = Sequence[Code | None]  # None: an argument that is left out


# --- in which dtype an operator computes ------------------------------------------------------------------------------


def _result(node: fx.Node) -> torch.dtype:
    """In that of its result: arithmetic."""
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def _common(node: fx.Node) -> torch.dtype:
    """In the one that its operands are promoted to, whatever its result is: comparisons."""
    operands = [_like(arg) for arg in node.args if not isinstance(arg, torch.dtype)]
    return torch.result_type(*operands) if len(operands) == 2 else operands[0].dtype


def _like(arg: Any) -> Any:
    """What promotes as an operand does: dimensions count, a number less than a tensor."""
    if not isinstance(arg, fx.Node):
        return arg
    value: Tensor = arg.meta["val"]
    return torch.empty([1] * value.dim(), dtype=value.dtype, device="meta")


def _logical(node: fx.Node) -> torch.dtype:
    """Each operand is a truth value, whatever its dtype."""
    return torch.bool


@dataclass(frozen=True)
class Pointwise:
    """One operator: the text for each kind of dtype that it computes in, of which operand `mask` has no part."""

    texts: Mapping[Kind, str]
    dtype: Callable[[fx.Node], torch.dtype] = _result
    mask: int | None = None
    interpreted: str = ""  # the text for floats in the interpreter, where it is another
    code: Callable[[Plan, Operands, Kind], Code | None] | None = None  # in place of a text


def _floats(text: str) -> Pointwise:
    return Pointwise({FLOAT: text})


def _numbers(text: str, truth: str = "") -> Pointwise:
    """The same text for floats and integers, another for truth values."""
    return Pointwise({FLOAT: text, INTEGER: text} | ({BOOL: truth} if truth else {}))


def _compared(sign: str, *kinds: Kind) -> Pointwise:
    return Pointwise(dict.fromkeys((FLOAT, INTEGER, *kinds), f"{{0}} {sign} {{1}}"), _common)


def _device(text: str, interpreted: str) -> Pointwise:
    return Pointwise({FLOAT: text}, interpreted=interpreted)


_SIGN = Pointwise(
    {
        FLOAT: "tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, 0.0))",
        INTEGER: "({0} > 0).to({dtype}) - ({0} < 0).to({dtype})",
    }
)
_LARGER, _SMALLER = (_numbers(f"tl.{name}({{0}}, {{1}}, {_NAN})") for name in ("maximum", "minimum"))


# --- special ones -----------------------------------------------------------------------------------------------------


def _wave(name: str) -> Pointwise:
    def code(plan: Plan, operands: Operands, kind: Kind) -> Code | None:
        return Code.call(f"{'fast' if plan.fast_cosine else 'exact'}_{name}({operands[0]})")

    return Pointwise({FLOAT: ""}, code=code)


def _clamp(plan: Plan, operands: Operands, kind: Kind) -> Code | None:
    """min(max(x, low), high); either bound may be None."""
    code, low, high = [*operands, None, None][:3]
    code = code if low is None else Code.call(f"tl.maximum({code}, {low}, {_NAN})")
    return code if high is None else Code.call(f"tl.minimum({code}, {high}, {_NAN})")


def _power(plan: Plan, operands: Operands, kind: Kind) -> Code | None:
    """x ** e for a number e: products where e is a small integer, else through the logarithm (NaN for x < 0)."""
    x, exponent = operands[0], _value(operands[1])
    if exponent is None or not math.isfinite(exponent):
        return None
    if exponent == 0:
        return Code.number(1.0 if kind is FLOAT else 1)
    if exponent.is_integer() and abs(exponent) <= 8 and (exponent > 0 or kind is FLOAT):
        chain = " * ".join([str(x)] * abs(int(exponent)))
        return Code(chain if exponent > 0 else f"1.0 / ({chain})")
    if kind is not FLOAT:
        return None
    if abs(exponent) == 0.5:
        return Code.call(f"tl.sqrt_rn({x})" if exponent > 0 else f"tl.rsqrt({x})")
    if exponent.is_integer():
        sign = "" if int(exponent) % 2 == 0 else f" * tl.where({x} < 0, -1.0, 1.0)"
        return Code(f"tl.exp2({exponent} * tl.log2(tl.abs({x}))){sign}")
    return Code(f"tl.exp2({exponent} * tl.log2({x}))")


def _exponential(plan: Plan, operands: Operands, kind: Kind) -> Code | None:
    """b ** x for a positive number b; 1 ** x is 1, for a NaN too."""
    base = _value(operands[0])
    if base is None or not 0 < base < math.inf:
        return None
    return Code.number(1.0) if base == 1 else Code.call(f"tl.exp2({operands[1]} * {Code.number(math.log2(base))})")


def _value(code: Code | None) -> float | None:
    return code.value if code is not None else None


# --- the table --------------------------------------------------------------------------------------------------------

TABLE: dict[Any, Pointwise] = {
    **dict.fromkeys((aten.add.Tensor, aten.add.Scalar), _numbers("{0} + {1}", "{0} | {1}")),
    **dict.fromkeys((aten.sub.Tensor, aten.sub.Scalar), _numbers("{0} - {1}")),
    **dict.fromkeys((aten.rsub.Tensor, aten.rsub.Scalar), _numbers("{1} - {0}")),
    **dict.fromkeys((aten.mul.Tensor, aten.mul.Scalar), _numbers("{0} * {1}", "{0} & {1}")),
    **dict.fromkeys((aten.div.Tensor, aten.div.Scalar), _floats("{0} / {1}")),
    aten.neg.default: _numbers("-{0}"),
    aten.reciprocal.default: _floats("1.0 / {0}"),
    aten.square.default: _numbers("{0} * {0}"),
    aten.abs.default: _numbers("tl.abs({0})"),
    **dict.fromkeys((aten.sgn.default, aten.sign.default), _SIGN),
    aten.floor.default: Pointwise({FLOAT: "tl.floor({0})", INTEGER: "{0}"}),
    aten.ceil.default: Pointwise({FLOAT: "tl.ceil({0})", INTEGER: "{0}"}),
    aten.exp.default: _floats("tl.exp({0})"),
    aten.exp2.default: _floats("tl.exp2({0})"),
    aten.log.default: _floats("tl.log({0})"),
    aten.log2.default: _floats("tl.log2({0})"),
    aten.sqrt.default: _floats("tl.sqrt_rn({0})"),
    aten.rsqrt.default: _floats("tl.rsqrt({0})"),
    aten.erf.default: _floats("tl.erf({0})"),
    aten.sigmoid.default: _floats("tl.sigmoid({0})"),
    aten.cos.default: _wave("cos"),
    aten.sin.default: _wave("sin"),
    aten.relu.default: Pointwise({FLOAT: f"tl.maximum({{0}}, 0.0, {_NAN})", INTEGER: "tl.maximum({0}, 0)"}),
    aten.maximum.default: _LARGER,
    aten.minimum.default: _SMALLER,
    aten.clamp_min.default: _LARGER,
    aten.clamp_max.default: _SMALLER,
    aten.clamp.default: Pointwise({FLOAT: "", INTEGER: ""}, code=_clamp),
    aten.clamp.Tensor: Pointwise({FLOAT: "", INTEGER: ""}, code=_clamp),
    aten.hardtanh.default: Pointwise({FLOAT: ""}, code=_clamp),
    aten.pow.Tensor_Scalar: Pointwise({FLOAT: "", INTEGER: ""}, code=_power),
    aten.pow.Scalar: Pointwise({FLOAT: ""}, code=_exponential),
    aten.where.self: Pointwise(dict.fromkeys(Kind, "tl.where({0}, {1}, {2})"), mask=0),
    aten.masked_fill.Scalar: Pointwise(dict.fromkeys(Kind, "tl.where({1}, {2}, {0})"), mask=1),
    **dict.fromkeys((aten.eq.Scalar, aten.eq.Tensor), _compared("==", BOOL)),
    **dict.fromkeys((aten.ne.Scalar, aten.ne.Tensor), _compared("!=", BOOL)),
    **dict.fromkeys((aten.lt.Scalar, aten.lt.Tensor), _compared("<")),
    **dict.fromkeys((aten.le.Scalar, aten.le.Tensor), _compared("<=")),
    **dict.fromkeys((aten.gt.Scalar, aten.gt.Tensor), _compared(">")),
    **dict.fromkeys((aten.ge.Scalar, aten.ge.Tensor), _compared(">=")),
    aten.isnan.default: Pointwise({FLOAT: "{0} != {0}"}, _common),
    aten.logical_and.default: Pointwise({BOOL: "{0} & {1}"}, _logical),
    aten.logical_or.default: Pointwise({BOOL: "{0} | {1}"}, _logical),
    aten.logical_xor.default: Pointwise({BOOL: "{0} != {1}"}, _logical),
    aten.logical_not.default: Pointwise(dict.fromkeys(Kind, "{0} == 0"), _common),
    aten.bitwise_and.Tensor: Pointwise(dict.fromkeys((INTEGER, BOOL), "{0} & {1}")),
    aten.bitwise_or.Tensor: Pointwise(dict.fromkeys((INTEGER, BOOL), "{0} | {1}")),
    aten.bitwise_xor.Tensor: Pointwise({INTEGER: "{0} ^ {1}", BOOL: "{0} != {1}"}),
    aten.bitwise_not.default: Pointwise({INTEGER: "~{0}", BOOL: "{0} == 0"}),
    aten.tanh.default: _device("libdevice.tanh({0})", "1.0 - 2.0 / (tl.exp(2.0 * {0}) + 1.0)"),
    aten.expm1.default: _device("libdevice.expm1({0})", "tl.exp({0}) - 1.0"),
    aten.log1p.default: _device("libdevice.log1p({0})", "tl.log(1.0 + {0})"),
    aten.erfc.default: _device("libdevice.erfc({0})", "1.0 - tl.erf({0})"),
    aten.sinh.default: _device("libdevice.sinh({0})", "0.5 * (tl.exp({0}) - tl.exp(-{0}))"),
    aten.cosh.default: _device("libdevice.cosh({0})", "0.5 * (tl.exp({0}) + tl.exp(-{0}))"),
    aten.tan.default: _device("libdevice.tan({0})", "exact_sin({0}) / exact_cos({0})"),
    aten.trunc.default: _device("libdevice.trunc({0})", "tl.where({0} < 0, tl.ceil({0}), tl.floor({0}))"),
}
CASTS = (aten._to_copy.default, torch.ops.prims.convert_element_type.default)

# Which operand `alpha` multiplies: torch.rsub(x, y, alpha=a) is y - a x.
_SCALED = {
    aten.add.Tensor: 1,
    aten.add.Scalar: 1,
    aten.sub.Tensor: 1,
    aten.sub.Scalar: 1,
    aten.rsub.Tensor: 0,
    aten.rsub.Scalar: 0,
}


def is_pointwise(target: Any) -> bool:
    """True for an operator of the table."""
    return target in TABLE or target in CASTS


def arguments(node: fx.Node) -> list[Any]:
    """All that an operator is called with, what was left out too, in the order of its schema."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    names = [argument.name for argument in schema]
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return [given.get(argument.name, argument.default_value) for argument in schema]


def pointwise(plan: Plan, target: Any, operands: Operands, dtype: torch.dtype) -> Code | None:
    """One operator on operands that are names or numbers of the dtype it computes in; None for what no row says."""
    row, of = TABLE[target], kind(dtype, target)
    if of not in row.texts:
        return None
    if row.code is not None:
        return row.code(plan, operands, of)
    text = row.interpreted if row.interpreted and plan.backend == "interpreter" else row.texts[of]
    scaled = _scaled(target, operands, of)
    if scaled is None or len(scaled) != _arity(text):
        return None
    return Code(text.format(*scaled, dtype=TRITON[dtype]))


def _arity(text: str) -> int:
    """How many operands a row takes: one with more arguments means something that the row does not say."""
    return len(set(re.findall(r"\{\d\}", text)))


def _scaled(target: Any, operands: Operands, of: Kind) -> Operands | None:
    """The operands without alpha, that operand times alpha which the operator scales."""
    if target not in _SCALED or len(operands) < 3:
        return operands
    *operands, alpha = operands
    if alpha is None or alpha.value == 1:
        return operands
    if of is BOOL:
        return None
    return [Code(f"{code} * {alpha}") if at == _SCALED[target] else code for at, code in enumerate(operands)]
